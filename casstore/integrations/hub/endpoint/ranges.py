"""The Range header: one range of bytes (RFC 9110 §14). No I/O."""

from __future__ import annotations

import re

__all__ = ["UnsatisfiableRange", "parse_range"]

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})", re.IGNORECASE)


class UnsatisfiableRange(Exception):
    """The file has no such range, or it is none that this server gives."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the bytes [begin, end) of a file of `size` that a header asks for; None without a header.

    `bytes=a-b`, `bytes=a-` and `bytes=-n` are ranges; an end beyond the file means its end. Raises UnsatisfiableRange for
    anything else: several ranges, another unit, a range of no bytes.
    """
    if header is None:
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        raise UnsatisfiableRange
    first, last = match.groups()
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            raise UnsatisfiableRange
    if begin >= end:
        raise UnsatisfiableRange
    return begin, end
