"""The `format` file that makes a directory a store, and the tombstones that a collector leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import FormatError, UnsupportedVersion
from casstore.format import canonical, envelope, fields

if TYPE_CHECKING:
    from typing_extensions import Buffer

FORMAT_KEY = "format"
TOMBSTONE_PREFIX = "gc/tombstones/"
STORE_VERSION = 1
TOMBSTONE_VERSION = 1
HASH_NAME = "blake3-256"
STORE_ID_SIZE = 16

_FORMAT_MAGIC = b"casstore"
_TOMBSTONE_MAGIC = b"casstomb"


@dataclass(frozen=True, slots=True)
class StoreFormat:
    """Identity of a store: 16 random bytes, made once; `features` are names a reader must know."""

    store_id: bytes


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Packs that a collector means to delete, `time` nanoseconds since 1970 by its clock."""

    packs: tuple[bytes, ...]
    time: int


def encode_format(value: StoreFormat) -> bytes:
    """Return the bytes of the `format` file."""
    body = {
        "type": "store",
        "version": STORE_VERSION,
        "hash": HASH_NAME,
        "id": value.store_id,
        "requires": [],
    }
    return envelope.seal(_FORMAT_MAGIC, canonical.encode(body))


def decode_format(data: Buffer) -> StoreFormat:
    """Read the `format` file; raise UnsupportedVersion for a store that only a newer casstore reads."""
    value = fields.decode_map(
        envelope.unseal(_FORMAT_MAGIC, bytes(data), key=FORMAT_KEY), kind="store", version=STORE_VERSION
    )
    name = fields.field(value, "hash", str, kind="store")
    if name != HASH_NAME:
        raise UnsupportedVersion(f"This store names objects by {name}; upgrade casstore to read it.")
    store_id = fields.field(value, "id", bytes, kind="store")
    if len(store_id) != STORE_ID_SIZE:
        raise FormatError("The store's id has the wrong length.")
    return StoreFormat(store_id)


def encode_tombstone(value: Tombstone) -> bytes:
    """Return the bytes of a tombstone."""
    body = {
        "type": "tombstone",
        "version": TOMBSTONE_VERSION,
        "packs": b"".join(value.packs),
        "time": value.time,
    }
    return envelope.seal(_TOMBSTONE_MAGIC, canonical.encode(body))


def decode_tombstone(data: Buffer, *, key: str) -> Tombstone:
    """Read a tombstone; raise FormatError if it is damaged, for it may name a pack that a writer needs."""
    body = envelope.unseal(_TOMBSTONE_MAGIC, bytes(data), key=key)
    try:
        value = fields.decode_map(body, kind="tombstone", version=TOMBSTONE_VERSION)
        packs = fields.split_ids(fields.field(value, "packs", bytes, kind="tombstone"), kind="tombstone")
        return Tombstone(tuple(packs), fields.field(value, "time", int, kind="tombstone"))
    except FormatError as error:
        # Invariant 8: what stops a writer is named, or nobody could mend it.
        raise type(error)(f"{key}: {error}") from error
