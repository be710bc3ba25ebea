"""The order of a value's map keys, which canonical msgpack and sorted JSON drop, as one short text.

People and programs see maps in the order in which they were written; identities must not depend on it. So the
sorted value is what is hashed and kept, and this text goes beside it. It has one part for each map of the value,
outermost first and then in the order of the sorted keys, divided by "|": for each key as it was written, its place
among the sorted ones, divided by spaces. A map that was written sorted has an empty part; empty parts at the end
are left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXT = re.compile(r"(?:[0-9]+(?: [0-9]+)*)?(?:\|(?:[0-9]+(?: [0-9]+)*)?)*")


def key_order(value: Any) -> str:
    """Return the order of the keys of all maps in a plain value; "" where all are sorted."""
    return "|".join(_parts(value)).rstrip("|")


def in_key_order(value: Any, order: str) -> Any:
    """Return a copy of a plain value with its maps in an order; raise ValueError if the order is of another one."""
    if not _TEXT.fullmatch(order):
        raise ValueError("this is not an order of keys")
    parts = iter(order.split("|"))
    ordered = _ordered(value, parts)
    if any(parts):
        raise ValueError("this is the order of another value's keys")
    return ordered


def _parts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        keys = sorted(value)
        if keys == list(value):
            yield ""
        else:
            place = {key: at for at, key in enumerate(keys)}
            yield " ".join(str(place[key]) for key in value)
        for key in keys:
            yield from _parts(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from _parts(item)


def _ordered(value: Any, parts: Iterator[str]) -> Any:
    if isinstance(value, list):
        return [_ordered(item, parts) for item in value]
    if not isinstance(value, dict):
        return value
    part = next(parts, "")
    keys = sorted(value)
    items = {key: _ordered(value[key], parts) for key in keys}
    if not part:
        return items
    places = [int(place) for place in part.split(" ")]
    if sorted(places) != list(range(len(keys))):
        raise ValueError("this is the order of another value's keys")
    return {keys[place]: items[keys[place]] for place in places}
