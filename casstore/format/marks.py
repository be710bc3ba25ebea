"""The `format` file that makes a directory a store, the mark of a private one, and the files about packs.

Those are tombstones and quarantine notes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.digest import is_hex
from casstore.errors import FormatError, UnsupportedVersion
from casstore.format import canonical, envelope, fields

if TYPE_CHECKING:
    from typing_extensions import Buffer

FORMAT_KEY = "format"
PRIVATE_KEY = "gc/private"
TOMBSTONE_PREFIX = "gc/tombstones/"
QUARANTINE_PREFIX = "quarantine/"
STORE_VERSION = 1
PRIVATE_VERSION = 1
TOMBSTONE_VERSION = 1
QUARANTINE_VERSION = 1
HASH_NAME = "blake3-256"
STORE_ID_SIZE = 16
MACHINE_ID_SIZE = 16

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MAGIC_SIZE = 8

_FORMAT_MAGIC = b"casstore"
_PRIVATE_MAGIC = b"casspriv"
_TOMBSTONE_MAGIC = b"casstomb"
_QUARANTINE_MAGIC = b"cassquar"


@dataclass(frozen=True, slots=True)
class StoreFormat:
    """Identity of a store: 16 random bytes, made once."""

    store_id: bytes


@dataclass(frozen=True, slots=True)
class Private:
    """Says that one machine alone uses a store: `machine` is 16 random bytes, `time` nanoseconds since 1970 by its clock."""

    machine: bytes
    time: int


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Packs that a collector means to delete, `time` nanoseconds since 1970 by its clock."""

    packs: tuple[bytes, ...]
    time: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why a pack must not be relied on: found at `time`, nanoseconds since 1970 by the finder's clock."""

    pack: bytes
    reason: str
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


def begins_format(head: bytes) -> bool:
    """Say whether a file that begins with these MAGIC_SIZE bytes is the `format` file of a store."""
    return head == _FORMAT_MAGIC


def encode_private(value: Private) -> bytes:
    """Return the bytes of the mark of a private store."""
    body = {"type": "private", "version": PRIVATE_VERSION, "machine": value.machine, "time": value.time}
    return envelope.seal(_PRIVATE_MAGIC, canonical.encode(body))


def decode_private(data: Buffer) -> Private:
    """Read the mark of a private store; raise FormatError if it is damaged."""
    value = fields.decode_map(
        envelope.unseal(_PRIVATE_MAGIC, bytes(data), key=PRIVATE_KEY), kind="private", version=PRIVATE_VERSION
    )
    machine = fields.field(value, "machine", bytes, kind="private")
    if len(machine) != MACHINE_ID_SIZE:
        raise FormatError("The id of the machine in the mark of a private store has the wrong length.")
    return Private(machine, fields.field(value, "time", int, kind="private"))


def encode_tombstone(value: Tombstone) -> bytes:
    """Return the bytes of a tombstone."""
    body = {
        "type": "tombstone",
        "version": TOMBSTONE_VERSION,
        "packs": b"".join(value.packs),
        "time": value.time,
    }
    return envelope.seal(_TOMBSTONE_MAGIC, canonical.encode(body))


def may_be_tombstone(key: str, data: Buffer) -> bool:
    """Say whether a file among the tombstones is one, damaged or not, by its name or its first bytes.

    A file of another program (desktop.ini) names no packs.
    """
    name = key.removeprefix(TOMBSTONE_PREFIX)
    return _UUID.fullmatch(name) is not None or bytes(data).startswith(_TOMBSTONE_MAGIC)


def decode_tombstone(data: Buffer, *, key: str) -> Tombstone:
    """Read a tombstone; raise FormatError if it is damaged, for it may name a pack that a writer needs."""
    try:
        body = envelope.unseal(_TOMBSTONE_MAGIC, bytes(data), key=key)
    except FormatError as error:
        # Invariant 8: nobody can know which packs it condemns, so a person must say that nobody deletes them.
        raise FormatError(
            f"{error} Or remove it, if no collector is at work on any machine: the next one finds again what it named."
        ) from error
    try:
        value = fields.decode_map(body, kind="tombstone", version=TOMBSTONE_VERSION)
        packs = fields.split_ids(fields.field(value, "packs", bytes, kind="tombstone"), kind="tombstone")
        return Tombstone(tuple(packs), fields.field(value, "time", int, kind="tombstone"))
    except FormatError as error:
        # Invariant 8: this stops every writer, so the message names the file.
        raise type(error)(f"{key}: {error}") from error


def quarantine_key(pack_id: bytes) -> str:
    """Return the key of the note on a damaged pack."""
    return f"{QUARANTINE_PREFIX}{pack_id.hex()}"


def is_quarantine(key: str) -> bool:
    """Say whether a key is that of a note on a pack."""
    name = key.removeprefix(QUARANTINE_PREFIX)
    return is_hex(name) and quarantine_key(bytes.fromhex(name)) == key


def quarantined_pack(key: str) -> bytes:
    """Return the pack that the note with this key is on; raise FormatError for a foreign file."""
    if not is_quarantine(key):
        raise FormatError(f"{key} is not a quarantine note; move that file out of the store.")
    return bytes.fromhex(key.removeprefix(QUARANTINE_PREFIX))


def encode_quarantine(value: Quarantine) -> bytes:
    """Return the bytes of a note on a damaged pack."""
    body = {
        "type": "quarantine",
        "version": QUARANTINE_VERSION,
        "pack": value.pack,
        "reason": value.reason,
        "time": value.time,
    }
    return envelope.seal(_QUARANTINE_MAGIC, canonical.encode(body))


def decode_quarantine(data: Buffer, *, key: str) -> Quarantine:
    """Read a note on a damaged pack; raise FormatError if it is damaged itself."""
    kind = "quarantine"
    value = fields.decode_map(
        envelope.unseal(_QUARANTINE_MAGIC, bytes(data), key=key), kind=kind, version=QUARANTINE_VERSION
    )
    pack = fields.optional_id(value, "pack", kind=kind)
    if pack is None or quarantine_key(pack) != key:
        raise FormatError(f"{key} is the note on another pack.")
    return Quarantine(
        pack, fields.field(value, "reason", str, kind=kind), fields.field(value, "time", int, kind=kind)
    )
