"""Where packs and index segments live in a store."""

from __future__ import annotations

from casstore.digest import HEX_SIZE, digest, is_hex
from casstore.errors import FormatError

PACK_PREFIX = "packs/"
INDEX_PREFIX = "index/"


def pack_key(pack_id: bytes) -> str:
    """Return the key of a pack."""
    text = pack_id.hex()
    return f"{PACK_PREFIX}{text[:2]}/{text}"


def pack_id_of(key: str) -> bytes:
    """Return the pack id in a key below PACK_PREFIX; raise FormatError for a foreign file."""
    name = key[-HEX_SIZE:]
    if not is_hex(name) or pack_key(bytes.fromhex(name)) != key:
        raise FormatError(f"{key} is not a pack; move that file out of the store.")
    return bytes.fromhex(name)


def index_id_of(key: str) -> bytes:
    """Return the segment id in a key below INDEX_PREFIX; raise FormatError for a foreign file."""
    name = key.removeprefix(INDEX_PREFIX)
    if not is_hex(name) or index_key_of(bytes.fromhex(name)) != key:
        raise FormatError(f"{key} is not an index segment; move that file out of the store.")
    return bytes.fromhex(name)


def is_foreign(key: str) -> bool:
    """Say whether the name of a key below PACK_PREFIX or INDEX_PREFIX is not that of a pack or an index segment."""
    try:
        if key.startswith(PACK_PREFIX):
            pack_id_of(key)
        elif key.startswith(INDEX_PREFIX):
            index_id_of(key)
    except FormatError:
        return True  # Invariant 13: foreign files are left alone, and `check` reports them.
    return False


def index_key(data: bytes) -> str:
    """Return the key of an index segment with these bytes."""
    return index_key_of(digest(data))


def index_key_of(segment_id: bytes) -> str:
    """Return the key of the index segment with this BLAKE3."""
    return f"{INDEX_PREFIX}{segment_id.hex()}"
