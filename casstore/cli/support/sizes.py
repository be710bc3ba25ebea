"""Numbers of bytes as people type them: 500MB, 50GB, 1TiB."""

from __future__ import annotations

import click

_UNITS: dict[str, int] = {
    "": 1,
    **{letter: 1000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}i": 1024**power for power, letter in enumerate("kmgt", start=1)},
}


def bytes_in(text: str) -> float | None:
    """Return the bytes that a number with or without a unit means; None for text that is no such number."""
    body = text.lower().removesuffix("b").strip()
    digits = body.rstrip("kmgti")
    try:
        return float(digits) * _UNITS[body[len(digits) :].strip()]
    except (ValueError, KeyError):
        return None  # Each caller says what it wanted.


class Size(click.ParamType[int]):
    """A number of bytes."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes, or fail with the usage error that says what to write."""
        size = float(value) if isinstance(value, int) else bytes_in(value)
        if size is None or not 0 <= size < 1 << 63:
            self.fail(f"{value!r} is not a size: write 500MB, 50GB or 1TiB.", param, ctx)
        return int(size)
