"""What people read for an encoding."""

from __future__ import annotations

from casstore.codecs import Encoding


def encoding_name(code: int) -> str:
    """Return the name of an encoding."""
    try:
        return str(Encoding(code).name).lower()
    except ValueError:
        return f"unknown-{code}"  # Design §3: an encoding of a newer casstore is not damage.
