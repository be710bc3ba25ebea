"""Values as people read them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casstore.ops.leftovers import Leftovers

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHORT = 12


def printable(text: str) -> str:
    """Return `text` with everything that could steer a terminal, or is not text, as an escape.

    Names of tensors and refs come from files that anyone may have written.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def human_bytes(count: int) -> str:
    """Return bytes in the largest unit that leaves a number of 1 or more, to three digits or so."""
    value, unit = float(count), 0
    while abs(value) >= 1023.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def counted(count: int, noun: str) -> str:
    """Return "1 file" or "2 files"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def megabytes(count: int, seconds: float) -> str:
    """Return a throughput as a number of MB/s (10^6 bytes)."""
    return f"{count / 1e6 / seconds:,.0f}" if seconds > 0 else "-"


def human_rate(count: int, seconds: float) -> str:
    """Return a throughput with its unit."""
    return f"{megabytes(count, seconds)} MB/s"


def human_duration(seconds: float) -> str:
    """Return seconds to three digits or so."""
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:,.0f} s"


def human_percent(part: int, whole: int) -> str:
    """Return `part` as a share of `whole`."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def leftovers_text(left: Leftovers) -> str:
    """Return what there is, with bytes; packs are not known where something is damaged."""
    found = []
    if left.temporaries:
        found.append(f"{counted(left.temporaries, 'temporary file')} ({human_bytes(left.bytes_temporaries)})")
    if left.packs:
        found.append(f"{counted(left.packs, 'pack')} that no ref needs ({human_bytes(left.bytes_packs)})")
    if not left.complete:
        found.append("an unknown number of packs, because something is damaged: run casstore check")
    return " and ".join(found) or "nothing"


def local_time(nanoseconds: int) -> str:
    """Return nanoseconds since 1970 as local date and time."""
    return _formatted(nanoseconds, "%Y-%m-%d %H:%M:%S", local=True)


def utc_time(nanoseconds: int) -> str:
    """Return nanoseconds since 1970 as ISO 8601 in UTC, to the second."""
    return _formatted(nanoseconds, "%Y-%m-%dT%H:%M:%SZ", local=False)


def short_id(hex_id: str) -> str:
    """Return the first digits of an id: for people, never for programs."""
    return hex_id[:_SHORT]


def _formatted(nanoseconds: int, form: str, *, local: bool) -> str:
    try:
        seconds = nanoseconds // 10**9
        return time.strftime(form, time.localtime(seconds) if local else time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        # A writer's clock may claim any time.
        return str(nanoseconds)
