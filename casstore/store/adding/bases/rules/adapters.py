"""Weights into which a LoRA adapter was merged: W + s·B·A, where the store has W and the adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from casstore.codecs.delta import lora
from casstore.codecs.delta.fit import fit_lora
from casstore.codecs.delta.operations.lora import MAX_RANK
from casstore.store.adding.bases.tensors.names import plain_name
from casstore.store.adding.bases.tensors.sketch import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casstore.codecs.delta import Merge, Piece, Residual
    from casstore.store.adding.bases.rules.target import TargetTensor
    from casstore.store.adding.bases.tensors.base_tensors import BaseFile, BaseTensor, FrameBases

_PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora_A.default.weight", ".lora_B.default.weight"))
"""How PEFT names the two matrices of a weight."""

_TYPES = frozenset({"F32", "F16", "BF16"})

_TRIED = 8192
"""Elements of whole rows for which rules are tried."""


def is_adapter(file: BaseFile) -> bool:
    """Say whether a file holds matrices of adapters."""
    return any(name.endswith(tuple(first for first, _ in _PAIRS)) for name in file.by_name)


@dataclass(frozen=True, slots=True)
class Merged:
    """The operation that merges an adapter; scale, rule and block are those of *lora*."""

    weights: BaseTensor
    a: BaseTensor
    b: BaseTensor
    scale: float
    rule: Merge
    block: int

    @property
    def inputs(self) -> tuple[BaseTensor, ...]:
        """The weights and the adapter's matrices."""
        return self.weights, self.a, self.b

    def piece(self, begin: int, end: int, at: int, bases: FrameBases, residual: Residual | None) -> Piece:
        """Return the prediction of a part (`Operation.piece`)."""
        width = WIDTHS[self.weights.span.dtype]
        rank, columns = self.a.span.shape
        row = WIDTHS[self.b.span.dtype] * rank
        first, last = begin // width, end // width
        piece = lora(
            at,
            bases.extents(self.weights, begin, end),
            bases.extents(self.a, 0, self.a.size),
            bases.extents(self.b, first // columns * row, -(-last // columns) * row),
            rank=rank,
            columns=columns,
            scale=self.scale,
            block=self.block,
            first=first % columns,
            rule=self.rule,
            element=self.weights.span.dtype,
            adapter=self.a.span.dtype,
        )
        return replace(piece, residual=residual)


def merged(
    target: TargetTensor,
    weights: Sequence[BaseTensor],
    adapters: Sequence[BaseFile],
    read_base: Callable[[BaseTensor, int, int], bytes],
) -> Iterator[tuple[float, Merged]]:
    """Yield what may have made the target of weights of its name, by adapters of that name, and the share that is left.

    `read_base` returns bytes of a tensor in the store, none where they cannot be read.
    """
    dtype, shape = target.span.dtype, target.span.shape
    if dtype not in _TYPES or len(shape) != 2:
        return
    for a, b in _matrices(plain_name(target.span.name), shape, adapters):
        some = max(1, min(shape[0], _TRIED // shape[1]))
        row = (shape[0] - some) // 2
        size, rank = shape[1] * target.width, a.span.shape[0]
        begin, end = row * size, (row + some) * size
        own = WIDTHS[b.span.dtype] * rank
        first, second = read_base(a, 0, a.size), read_base(b, row * own, (row + some) * own)
        for tensor in weights:
            if tensor.span.dtype != dtype or tensor.span.shape != shape:
                continue
            before, after = read_base(tensor, begin, end), target.part(begin, end)
            if not (first and second and len(before) == len(after) == end - begin):
                continue
            fit = fit_lora(after, before, first, second, rank=rank, dtype=dtype, adapter=a.span.dtype)
            if fit is not None:
                yield fit.share, Merged(tensor, a, b, fit.scale, fit.rule, fit.block)


def _matrices(
    name: str, shape: tuple[int, ...], adapters: Sequence[BaseFile]
) -> Iterator[tuple[BaseTensor, BaseTensor]]:
    """Yield the matrices A and B that adapters have for a weight."""
    stem = name.removesuffix(".weight")
    for file in adapters:
        for first, second in _PAIRS:
            a, b = file.find(stem + first), file.find(stem + second)
            if a is None or b is None or not {a.span.dtype, b.span.dtype} <= _TYPES:
                continue
            rank = a.span.shape[0] if len(a.span.shape) == 2 else 0
            fits = a.span.shape == (rank, shape[1]) and b.span.shape == (shape[0], rank)
            if fits and a.span.dtype == b.span.dtype and 0 < rank <= MAX_RANK:
                yield a, b
