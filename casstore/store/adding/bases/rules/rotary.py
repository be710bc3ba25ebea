"""Matrices of queries and keys whose rows converters put in another order, for rotary position embeddings.

Of each head, transformers has the first halves of all pairs and then the second ones, llama.cpp and the original Llama one
pair after the other. Source: `LlamaModel.permute` in https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py.
A range of such a matrix is one of the other, row by row, so every operation also works on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from casstore.store.adding.bases.tensors.base_tensors import BaseTensor
from casstore.store.adding.bases.tensors.names import is_rotated

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from casstore.format.layout import Span
    from casstore.tensors import TensorSpan

Rows = TypeVar("Rows", int, "NDArray[np.int64]")

_HEADS = (64, 128, 96, 80, 32, 48, 256, 112, 160, 192)
"""Rows that a head may have, the most usual ones first."""


@dataclass(frozen=True, slots=True, eq=False)
class Rotated(BaseTensor):
    """A matrix as it is with its rows in the other order, `head` rows in a head; `pairs` says that pairs are to be adjacent."""

    head: int
    pairs: bool

    @property
    def key(self) -> int:
        """A number that no tensor of the file has."""
        return -2 - (self.number * (max(_HEADS) + 1) + self.head) * 2 - self.pairs

    @property
    def may_read(self) -> bool:
        """Whether its chunks may be read for its sketch, which no catalogue has."""
        return True

    def parts(self, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield the parts of chunks that make up a range (`BaseTensor.parts`)."""
        row = self.size // self.span.shape[0]
        origin = self.span.begin
        while begin < end:
            number, inside = divmod(begin, row)
            stop = min(row, inside + end - begin)
            at = origin + source_row(number, self.head, pairs=self.pairs) * row
            yield from self.file.parts(at + inside, at + stop)
            begin += stop - inside


def rotated(target: TensorSpan | Span, tensor: BaseTensor) -> Iterator[Rotated]:
    """Yield a tensor with its rows in the orders that the target may have, if both are of queries or keys."""
    shape = target.shape
    if shape == tensor.span.shape and is_rotated(tensor.span.name):
        for head, pairs in orders(shape):
            yield Rotated(tensor.file, tensor.number, tensor.span, head, pairs)


def orders(shape: tuple[int, ...]) -> Iterator[tuple[int, bool]]:
    """Yield the orders that the rows of a matrix may have: rows in a head, and whether pairs are to be adjacent."""
    for head in _HEADS if len(shape) == 2 else ():
        if shape[0] % head == 0:
            yield from ((head, True), (head, False))


def source_row(number: Rows, head: int, *, pairs: bool) -> Rows:
    """Return which row comes to be row `number`."""
    place, half = number % head, head // 2
    source = place % 2 * half + place // 2 if pairs else place % half * 2 + place // half
    return number - place + source
