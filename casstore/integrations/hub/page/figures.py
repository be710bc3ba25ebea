"""Values as people read them, for templates."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import quote

from casstore.store.times import utc

__all__ = ["FILTERS"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHORT = 12
_LONGEST = 2000


def size(count: int | None) -> str:
    """Return bytes in the largest unit that leaves a number of 1 or more."""
    if count is None:
        return "…"
    value, unit = float(count), 0
    while abs(value) >= 1023.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def counted(count: int, noun: str) -> str:
    """Return "1 file" or "2 files"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def share(part: int | None, whole: int | None) -> str:
    """Return `part` as a share of `whole`."""
    return f"{100 * part / whole:.0f}%" if part is not None and whole else ""


def duration(nanoseconds: int) -> str:
    """Return a duration in its natural unit, nothing for one that is not known."""
    seconds = nanoseconds / 1e9
    if seconds <= 0:
        return ""
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def moment(nanoseconds: int) -> str:
    """Return a time in UTC, to the minute."""
    return utc(nanoseconds).strftime("%Y-%m-%d %H:%M")


def iso(nanoseconds: int) -> str:
    """Return a time for machines."""
    return utc(nanoseconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def short(model_id: str) -> str:
    """Return the first digits of an id."""
    return model_id[:_SHORT]


def number(value: float) -> str:
    """Return a metric."""
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}"


def shape(lengths: tuple[int, ...]) -> str:
    """Return a tensor's shape."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, lengths)) or "scalar"


def url_path(name: str) -> str:
    """Return a name with slashes as a part of a path."""
    return quote(name, safe="/")


def url_part(name: str) -> str:
    """Return a name as one part of a path or a query."""
    return quote(name, safe="")


def middle(text: str, length: int = 30) -> str:
    """Return a text with its middle left out if it is long: names differ at their ends."""
    if len(text) <= length:
        return text
    front = (length - 1) // 3
    return f"{text[:front]}…{text[front + 1 - length :]}"


def plain(value: Any) -> str:
    """Return a value of a record as text, whatever it holds."""
    text = value if isinstance(value, str) else json.dumps(_as_json(value), ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.hex() if isinstance(value, bytes) else value


FILTERS = {
    "counted": counted,
    "duration": duration,
    "iso": iso,
    "middle": middle,
    "moment": moment,
    "number": number,
    "plain": plain,
    "shape": shape,
    "share": share,
    "short": short,
    "size": size,
    "url_part": url_part,
    "url_path": url_path,
}
