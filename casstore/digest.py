"""BLAKE3-256 object ids: 32 bytes inside casstore, 64 lower-case hex digits in front of people.

Source: the BLAKE3 paper, https://github.com/BLAKE3-team/BLAKE3-specs; `b3sum FILE` prints a file's id.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["DIGEST_SIZE", "HEX_SIZE", "Hasher", "digest", "is_hex"]

DIGEST_SIZE = 32
HEX_SIZE = 2 * DIGEST_SIZE

Hasher = blake3
"""Incremental hasher: `update(buffer)`, `digest()`; releases the GIL on large buffers."""

_HEX = re.compile(r"[0-9a-f]{64}")


def digest(data: Buffer) -> bytes:
    """Return the 32-byte BLAKE3 of `data`; releases the GIL while it hashes a large buffer."""
    return Hasher(data).digest()


def is_hex(text: str) -> bool:
    """Say whether `text` is the whole text form of an id."""
    return _HEX.fullmatch(text) is not None
