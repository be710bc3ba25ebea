"""`dataclass`, as in the standard library, with frozen and slotted classes made in a third of the time.

A command makes 80 such classes when it starts. The standard library compiles six methods for each, which takes longer than
what most commands then do. Here only `__init__` is compiled; the other methods are closures over the fields.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from dataclasses import dataclass

__all__ = ["dataclass"]

if not TYPE_CHECKING:  # A type checker reads these classes as the standard library's.

    def dataclass(cls: type | None = None, /, **options: bool) -> Any:
        """Make a class a dataclass. Frozen and slotted ones may not have fields with `init`, `hash` or `kw_only`."""
        if options == {"frozen": True, "slots": True}:
            return _frozen if cls is None else _frozen(cls)
        return dataclasses.dataclass(cls, **options)


def _frozen(cls: type) -> type:
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    fields = dataclasses.fields(made)
    for item in fields:
        if not item.init or item.hash is not None or item.kw_only is True:
            raise TypeError(f"{cls.__qualname__}.{item.name}: the standard library's dataclass can do that.")
    own = {**cls.__dict__}
    if own.get("__hash__") is None:
        own.pop("__hash__", None)  # Python put it there because the class has an `__eq__`.
    shown = [item.name for item in fields if item.repr]
    compared = [item.name for item in fields if item.compare]
    methods = {
        "__init__": _init(made, fields),
        "__repr__": _repr(shown),
        **_comparison(compared),
        **_pickling([item.name for item in fields]),
        "__setattr__": _refuse_to_set,
        "__delattr__": _refuse_to_delete,
    }
    for name, method in methods.items():
        if name not in own:
            setattr(made, name, method)
    return made  # type: ignore[no-any-return]


def _init(made: Any, fields: Sequence[dataclasses.Field[Any]]) -> Callable[..., None]:
    """Compile the one method that is called often, and of which calls are checked against its parameters."""
    names: dict[str, Any] = {"_missing": dataclasses.MISSING}
    parameters, body = ["self"], []
    for item in fields:
        parameter = item.name
        names[f"_set_{item.name}"] = getattr(made, item.name).__set__
        if item.default is not dataclasses.MISSING:
            names[f"_default_{item.name}"] = item.default
            parameter += f"=_default_{item.name}"
        elif item.default_factory is not dataclasses.MISSING:
            names[f"_make_{item.name}"] = item.default_factory
            parameter += "=_missing"
            body.append(f" if {item.name} is _missing: {item.name} = _make_{item.name}()")
        parameters.append(parameter)
        body.append(f" _set_{item.name}(self, {item.name})")
    if hasattr(made, "__post_init__"):
        body.append(" self.__post_init__()")
    text = f"def __init__({', '.join(parameters)}):\n" + "\n".join(body or [" pass"])
    exec(text, names)  # noqa: S102 - of the names of fields alone, as in the standard library
    method: Callable[..., None] = names["__init__"]
    method.__qualname__ = f"{made.__qualname__}.__init__"
    method.__module__ = made.__module__
    return method


def _values(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return what gives the values of these fields as a tuple."""
    if not names:
        return lambda _: ()
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda value: (get(value),)


def _repr(names: Sequence[str]) -> Callable[[Any], str]:
    def shown(self: Any) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__}({fields})"

    return shown


def _comparison(names: Sequence[str]) -> dict[str, Callable[..., Any]]:
    values = _values(names)

    def equal(self: Any, other: object) -> Any:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    return {"__eq__": equal, "__hash__": lambda self: hash(values(self))}


def _pickling(names: Sequence[str]) -> dict[str, Callable[..., Any]]:
    def restore(self: Any, state: Sequence[Any]) -> None:
        for name, value in zip(names, state, strict=True):
            object.__setattr__(self, name, value)

    def state(self: Any) -> tuple[Any, ...]:
        return values(self)

    values = _values(names)
    return {"__getstate__": state, "__setstate__": restore}


def _refuse_to_set(self: Any, name: str, value: object) -> None:  # noqa: ARG001 - Python's signature
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> None:  # noqa: ARG001 - Python's signature
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
