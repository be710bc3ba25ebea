"""casstore._values.dataclass makes what the standard library's makes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from dataclasses import FrozenInstanceError, field

import pytest

from casstore._values import dataclass as own

BY = pytest.mark.parametrize("dataclass", [own, dataclasses.dataclass])
"""Every claim is tried on both."""


@own(frozen=True, slots=True)
class Point:
    """A place."""

    x: int
    y: int = 2
    notes: list[str] = field(default_factory=list, compare=False)
    hidden: str = field(default="", repr=False)

    @property
    def total(self) -> int:
        return self.x + self.y


@dataclasses.dataclass(frozen=True, slots=True)
class Standard:
    """A place."""

    x: int
    y: int = 2
    notes: list[str] = field(default_factory=list, compare=False)
    hidden: str = field(default="", repr=False)

    @property
    def total(self) -> int:
        return self.x + self.y


KINDS = pytest.mark.parametrize("kind", [Point, Standard])


@KINDS
def test_values_are_equal_and_hashed_by_the_fields_that_compare(kind):
    assert kind(1) == kind(1, 2, ["other"])
    assert hash(kind(1)) == hash(kind(1, 2, ["other"])) == hash((1, 2, ""))
    assert kind(1) != kind(2)
    assert kind(1) != (1, 2, "")
    assert (Point(1) == Standard(1)) is False


@KINDS
def test_values_are_shown_and_have_no_other_attributes(kind):
    assert repr(kind(1, hidden="x")) == f"{kind.__name__}(x=1, y=2, notes=[])"
    assert kind(1).total == 3
    assert not hasattr(kind(1), "__dict__")
    assert kind.__match_args__ == ("x", "y", "notes", "hidden")
    assert kind.__doc__ == "A place."


@KINDS
def test_values_cannot_be_changed(kind):
    value = kind(1)
    with pytest.raises(FrozenInstanceError):
        value.x = 3
    with pytest.raises(FrozenInstanceError):
        del value.x
    # The standard library's method looks for the class that had no slots yet, and fails with a TypeError.
    with pytest.raises((FrozenInstanceError, TypeError)):
        value.unknown = 3
    assert value == kind(1)


@KINDS
def test_each_value_has_a_default_of_its_own(kind):
    first, second = kind(1), kind(1)
    first.notes.append("x")
    assert second.notes == []


@KINDS
def test_arguments_are_checked(kind):
    for arguments, named in (((), {}), ((1, 2, [], "", 5), {}), ((1,), {"z": 1}), ((1,), {"x": 1})):
        with pytest.raises(TypeError, match=rf"{kind.__name__}\.__init__\(\)"):
            kind(*arguments, **named)
    assert list(inspect.signature(kind).parameters) == ["x", "y", "notes", "hidden"]


@KINDS
def test_values_are_copied_replaced_and_pickled(kind):
    value = kind(1, notes=["a"])
    assert dataclasses.replace(value, x=5) == kind(5)
    assert dataclasses.asdict(value) == {"x": 1, "y": 2, "notes": ["a"], "hidden": ""}
    for again in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert (again, again.notes) == (value, ["a"])


@BY
def test_own_methods_stay(dataclass):
    @dataclass(frozen=True, slots=True)
    class Odd:  # noqa: PLW1641 - it gets one
        x: int

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Odd)

        def __repr__(self) -> str:
            return "odd"

    assert Odd(1) == Odd(2)
    assert hash(Odd(1)) == hash((1,))
    assert repr(Odd(1)) == "odd"
    with pytest.raises(ValueError):  # noqa: PT011 - raised above
        Odd(-1)


@BY
def test_fields_are_inherited(dataclass):
    @dataclass(frozen=True, slots=True)
    class Base:
        x: int

    @dataclass(frozen=True, slots=True)
    class Derived(Base):
        y: int = 2

    assert (Derived(1).x, Derived(1).y) == (1, 2)
    assert Derived(1) != Base(1)
    with pytest.raises(FrozenInstanceError):
        Derived(1).x = 3


@BY
def test_a_class_may_have_one_field_or_none(dataclass):
    @dataclass(frozen=True, slots=True)
    class Nothing:
        pass

    @dataclass(frozen=True, slots=True)
    class One:
        x: int

    assert (Nothing(), hash(Nothing()), repr(One(1))[-8:]) == (Nothing(), hash(()), "One(x=1)")
    assert hash(One(1)) == hash((1,))


@pytest.mark.parametrize("special", [{"init": False}, {"hash": False}, {"kw_only": True}])
def test_fields_that_need_the_standard_library_are_refused(special):
    with pytest.raises(TypeError, match="standard library"):

        @own(frozen=True, slots=True)
        class Refused:
            x: int = field(default=1, **special)
