"""What calls in a pickle mean for torch tensors, as symbols: nothing is imported, called or built.

Source: torch/_utils.py and torch/_tensor.py for the arguments of the `_rebuild_*` functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from casstore.tensors.span import MAX_DIMS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Global", "Node", "StorageSymbol", "TensorSymbol", "call", "persistent"]


class Global(NamedTuple):
    """A class or function by name."""

    module: str
    name: str


class StorageSymbol(NamedTuple):
    """A persistent id: the storage with this key, of the type that `kind` names; `elements` is what it says of its length."""

    kind: Global
    key: str
    elements: object


class TensorSymbol(NamedTuple):
    """A view of a storage; `dtype` is torch's name where the tensor has one that differs from its storage's."""

    storage: StorageSymbol
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Global | None


class Node:
    """A dict, or an object that nothing is known about but its parts.

    Most have no part: lists are made when the first comes, so that a pickle of millions of empty dicts stays small.
    """

    __slots__ = ("args", "items", "state")

    def __init__(self, args: tuple[Any, ...] = ()) -> None:
        self.args = args
        self.items: list[tuple[Any, Any]] | tuple[()] = ()
        self.state: list[Any] | tuple[()] = ()

    def add_items(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Add keys with their values."""
        self.items = items = self.items or []
        items.extend(pairs)

    def add_state(self, state: object) -> None:
        """Add what the object is built from."""
        self.state = states = self.state or []
        states.append(state)


# What is known of a function.
_VIEW, _VIEW_WITH_DTYPE = 1, 2
# Its arguments are the function that does the work, a type, and that function's arguments.
_FROM_TYPE = 3
# Its result is, for the names and places of tensors, its first argument.
_WRAPPER = 4

_MEANINGS = {
    Global("torch._utils", "_rebuild_tensor"): _VIEW,
    Global("torch._utils", "_rebuild_tensor_v2"): _VIEW,
    Global("torch._utils", "_rebuild_qtensor"): _VIEW,
    Global("torch._utils", "_rebuild_tensor_v3"): _VIEW_WITH_DTYPE,
    Global("torch._tensor", "_rebuild_from_type_v2"): _FROM_TYPE,
    Global("torch._utils", "_rebuild_parameter"): _WRAPPER,
    Global("torch._utils", "_rebuild_parameter_with_state"): _WRAPPER,
    Global("torch", "Size"): _WRAPPER,
    Global("torch.jit._pickle", "restore_type_tag"): _WRAPPER,
    Global("torch.jit._pickle", "build_intlist"): _WRAPPER,
    Global("torch.jit._pickle", "build_tensorlist"): _WRAPPER,
}
_INTEGERS = frozenset({int})


def call(function: object, args: object) -> object:
    """Return the symbol of what `function(*args)` gives."""
    meaning = _MEANINGS.get(function) if type(function) is Global else None
    while meaning == _FROM_TYPE and type(args) is tuple and len(args) >= 3:
        function, args = args[0], args[2]
        meaning = _MEANINGS.get(function) if type(function) is Global else None
    if type(args) is not tuple:
        return Node((args,))
    if meaning == _VIEW and len(args) >= 4:
        return _view(args, None)
    if meaning == _VIEW_WITH_DTYPE and len(args) >= 7:
        return _view(args, args[6])
    if meaning == _WRAPPER and args:
        return args[0]
    return Node(args)


def _view(args: tuple[Any, ...], dtype: Any) -> object:
    storage, offset, shape, strides = args[:4]
    if (
        type(storage) is StorageSymbol
        and type(shape) is type(strides) is tuple
        and len(shape) == len(strides) <= MAX_DIMS
        and _INTEGERS.issuperset(map(type, (offset, *shape, *strides)))
        and min((offset, *shape, *strides)) >= 0
        and (dtype is None or type(dtype) is Global)
    ):
        return TensorSymbol(storage, offset, shape, strides, dtype)
    return Node(args)


def persistent(identity: object) -> StorageSymbol | None:
    """Return the storage that a persistent id stands for, None for anything else.

    A view of another storage, from before torch 0.4, is something else: its tensors count from the view's begin.
    """
    if type(identity) is not tuple or len(identity) < 3 or identity[0] != "storage":
        return None
    kind, key = identity[1:3]
    if type(kind) is not Global or type(key) is not str or (len(identity) > 5 and identity[5] is not None):
        return None
    return StorageSymbol(kind, key, identity[4] if len(identity) > 4 else None)
