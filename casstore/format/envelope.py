"""The envelope of small files: magic, body, BLAKE3 of both.

Used for the `format` file, records, tombstones and quarantine notes, so that a single flipped bit is detected.
"""

from __future__ import annotations

from casstore.digest import DIGEST_SIZE, digest
from casstore.errors import FormatError

MAGIC_SIZE = 8
OVERHEAD = MAGIC_SIZE + DIGEST_SIZE


def seal(magic: bytes, body: bytes) -> bytes:
    """Return `magic`, `body` and the BLAKE3 of both."""
    assert len(magic) == MAGIC_SIZE
    head = magic + body
    return head + digest(head)


def unseal(magic: bytes, data: bytes, *, key: str) -> bytes:
    """Return the body; raise FormatError, naming `key`, for another magic or a wrong checksum."""
    if len(data) < OVERHEAD or data[:MAGIC_SIZE] != magic:
        raise FormatError(f"{key} is torn, or is another kind of file; restore it from another copy.")
    if digest(data[:-DIGEST_SIZE]) != data[-DIGEST_SIZE:]:
        raise FormatError(f"{key} fails its checksum; restore it from another copy.")
    return data[MAGIC_SIZE:-DIGEST_SIZE]
