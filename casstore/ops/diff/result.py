"""What a comparison of two models finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

__all__ = ["FileChange", "FileDiff", "ModelDiff", "TensorChange", "TensorDiff", "TensorSide"]

TensorChange = Literal[
    "same",
    "changed",
    "cast",
    "transposed",
    "quantised",
    "reshaped",
    "added",
    "removed",
    "not compared",
]
FileChange = Literal["same", "changed", "added", "removed"]


@dataclass(frozen=True, slots=True)
class TensorSide:
    """A tensor of one of the models: `file` holds it, and `size` is its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    size: int


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """A tensor of either model, and what became of it. `a` is None for one that was added, `b` for one that was removed.

    `elements` are those of `b`. `differing` of them differ: in their bits where both have one type, else in their values; of
    blocks, and of types of less than a byte, blocks and bytes are counted.
    `max_abs` and `mean_abs` are of the absolute differences of values, of all but the `not_finite` elements of which the
    difference is no number or infinite; integers and blocks with scales stand for the floats that they encode.
    `unexplained` elements (bytes of blocks) are not exactly what a cast, a transposition or a quantisation gives. What is not
    known is None: values of types that casstore does not decode, and everything where nothing was read.
    """

    change: TensorChange
    a: TensorSide | None
    b: TensorSide | None
    elements: int
    differing: int | None = None
    max_abs: float | None = None
    mean_abs: float | None = None
    not_finite: int = 0
    unexplained: int | None = None

    @property
    def name(self) -> str:
        """Its name, that of the second model if both have one."""
        side = self.b or self.a
        assert side is not None
        return side.name

    @property
    def renamed(self) -> bool:
        """Whether it has another name in the second model."""
        return self.a is not None and self.b is not None and self.a.name != self.b.name


@dataclass(frozen=True, slots=True)
class FileDiff:
    """A file of either model; a size is None where the model has no such file."""

    path: str
    change: FileChange
    size_a: int | None
    size_b: int | None


@dataclass(frozen=True, slots=True)
class ModelDiff:
    """What differs from model `a` to model `b`, refs of the ids beside them.

    `tensors` are those of `b` in its order, then those that only `a` has. `files` are ordered by path. `shared_bytes` are the
    plain bytes of the chunks that both have, each once.
    """

    a: str
    b: str
    model_id_a: str
    model_id_b: str
    tensors: tuple[TensorDiff, ...]
    files: tuple[FileDiff, ...]
    shared_bytes: int

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors there are of each change, the most frequent first."""
        return dict(Counter(tensor.change for tensor in self.tensors).most_common())
