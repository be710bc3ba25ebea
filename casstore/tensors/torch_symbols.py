"""What calls in a pickle mean for torch tensors, as symbols: nothing is imported, called or built.

Source: torch/_utils.py and torch/_tensor.py for the arguments of the `_rebuild_*` functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from casstore.tensors.span import MAX_DIMS

__all__ = ["Global", "Node", "StorageSymbol", "TensorSymbol", "call", "persistent"]


class Global(NamedTuple):
    """A class or function by name."""

    module: str
    name: str


class StorageSymbol(NamedTuple):
    """A persistent id: the storage with this key, of the type that `kind` names."""

    kind: Global
    key: str


class TensorSymbol(NamedTuple):
    """A view of a storage; `dtype` is torch's name where the tensor has one that differs from its storage's."""

    storage: StorageSymbol
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Global | None


class Node:
    """A dict, or an object that nothing is known about but its parts."""

    __slots__ = ("args", "items", "state")

    def __init__(self, args: tuple[Any, ...] = ()) -> None:
        self.args = args
        self.items: list[Any] = []
        self.state: list[Any] = []


_VIEWS = {
    Global("torch._utils", "_rebuild_tensor"),
    Global("torch._utils", "_rebuild_tensor_v2"),
    Global("torch._utils", "_rebuild_qtensor"),
}
_VIEW_WITH_DTYPE = Global("torch._utils", "_rebuild_tensor_v3")
_FROM_TYPE = Global("torch._tensor", "_rebuild_from_type_v2")
# Functions whose result is, for the names and places of tensors, their first argument.
_WRAPPERS = {
    Global("torch._utils", "_rebuild_parameter"),
    Global("torch._utils", "_rebuild_parameter_with_state"),
    Global("torch", "Size"),
    Global("torch.jit._pickle", "restore_type_tag"),
    Global("torch.jit._pickle", "build_intlist"),
    Global("torch.jit._pickle", "build_tensorlist"),
}


def call(function: object, args: object) -> object:
    """Return the symbol of what `function(*args)` gives."""
    while type(function) is Global and function == _FROM_TYPE and type(args) is tuple and len(args) >= 3:
        # Its arguments are the function that does the work, a type, and that function's arguments.
        function, args = args[0], args[2]
    if type(args) is not tuple:
        return Node((args,))
    if type(function) is Global:
        if function in _WRAPPERS and args:
            return args[0]
        if function in _VIEWS and len(args) >= 4:
            return _view(args, None)
        if function == _VIEW_WITH_DTYPE and len(args) >= 7:
            return _view(args, args[6])
    return Node(args)


def _view(args: tuple[Any, ...], dtype: Any) -> object:
    storage, offset, shape, strides = args[:4]
    if (
        type(storage) is StorageSymbol
        and type(shape) is type(strides) is tuple
        and len(shape) == len(strides) <= MAX_DIMS
        and all(type(number) is int and number >= 0 for number in (offset, *shape, *strides))
        and (dtype is None or type(dtype) is Global)
    ):
        return TensorSymbol(storage, offset, shape, strides, dtype)
    return Node(args)


def persistent(identity: object) -> StorageSymbol | None:
    """Return the storage that a persistent id stands for, None for anything else."""
    if type(identity) is tuple and len(identity) >= 3 and identity[0] == "storage":
        kind, key = identity[1:3]
        if type(kind) is Global and type(key) is str:
            return StorageSymbol(kind, key)
    return None
