"""What predicts the tensors that are too small for a sketch: what made the large ones of their file, or the one of their name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.store.adding.bases.rules.relation import Elementwise, Relation, Transposed, same
from casstore.store.adding.bases.tensors.sketch import FIRST, WIDTHS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from casstore.codecs.delta import Step
    from casstore.store.adding.bases.policy import DeltaPolicy
    from casstore.store.adding.bases.rules.relation import Operation
    from casstore.store.adding.bases.tensors.base_tensors import BaseFile, BaseTensor
    from casstore.tensors import TensorSpan

_EXACT = 0.5
"""The share of a few elements that must be made exactly, where more than one operation may fit."""


class _Recipe(NamedTuple):
    """An operation without its tensors: those of one name in these files, of these types, make one of type `dtype`."""

    files: tuple[BaseFile, ...]
    dtypes: tuple[str, ...]
    steps: tuple[Step, ...]
    dtype: str


class SmallTensors:
    """Finds what predicts small tensors of one file. For one thread."""

    def __init__(
        self, policy: DeltaPolicy, *, read: Callable[[BaseTensor, int, int], bytes], large: int
    ) -> None:
        """`read` returns bytes of a base, none if it cannot.

        Of the first `large` tensors that are noted, the first one that follows from others decides.
        """
        self._policy = policy
        self._read = read
        self._left = large
        self._recipe: _Recipe | None = None

    def note(self, dtype: str, operation: Operation | None) -> None:
        """Note what made a large tensor of the file, None for nothing."""
        self._left -= 1
        if self._left >= 0 and self._recipe is None:
            self._recipe = _recipe(dtype, operation)

    def find(self, span: TensorSpan, data: memoryview | None, files: Iterable[BaseFile]) -> Relation | None:
        """Return what predicts a tensor; `data` are its bytes, or None, and `files` have those of its name that it may equal."""
        if span.dtype not in WIDTHS:
            return None
        operation = self._by_recipe(span, data)
        if operation is None:
            tensors = (self._of_name(file, span, span.dtype) for file in files)
            named = next(filter(None, tensors), None)
            operation = None if named is None else same(named)
        return None if operation is None else Relation(span, operation)

    def _by_recipe(self, span: TensorSpan, data: memoryview | None) -> Elementwise | None:
        recipe = self._recipe
        if recipe is None or span.dtype != recipe.dtype:
            return None
        pairs = zip(recipe.files, recipe.dtypes, strict=True)
        found = [self._of_name(file, span, dtype) for file, dtype in pairs]
        tensors = [tensor for tensor in found if tensor is not None]
        made = Elementwise(tuple(tensors), recipe.steps, WIDTHS[span.dtype])
        if len(set(recipe.files)) == 1:
            return made if len(tensors) == len(found) else None
        # A sum of several, or what was copied from one of them.
        operations = [made] if len(tensors) == len(found) else []
        operations += [same(tensor) for tensor in dict.fromkeys(tensors) if tensor.span.dtype == span.dtype]
        return next((operation for operation in operations if self._makes(operation, data)), None)

    def _of_name(self, file: BaseFile, span: TensorSpan, dtype: str) -> BaseTensor | None:
        tensor = file.find(span.name)
        if tensor is None or tensor.span.dtype != dtype or tensor.span.shape != span.shape:
            return None
        return tensor if self._policy.allows(tensor.rank) else None

    def _makes(self, operation: Elementwise, data: memoryview | None) -> bool:
        """Say whether an operation makes the first elements of a tensor."""
        if data is None:
            return False
        count = min(FIRST, len(data) // operation.width)
        inputs = []
        for tensor in operation.inputs:
            width = WIDTHS[tensor.span.dtype]
            part = self._read(tensor, 0, count * width)
            if len(part) < count * width:
                return False
            inputs.append(np.frombuffer(part, f"<u{width}"))
        actual = np.frombuffer(data, f"<u{operation.width}", count)
        return float((operation.of(inputs) == actual).mean()) >= _EXACT


def _recipe(dtype: str, operation: Operation | None) -> _Recipe | None:
    """Return what an operation says of tensors that it did not make; None for one that goes with its tensor."""
    # Of what is transposed, vectors are not, but they are cast like all else.
    if not isinstance(operation, Elementwise | Transposed) or not operation.steps:
        return None
    files = tuple(tensor.file for tensor in operation.inputs)
    return _Recipe(files, tuple(tensor.span.dtype for tensor in operation.inputs), operation.steps, dtype)
