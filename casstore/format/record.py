"""A record: one immutable file that gives a ref a value. The newest verified one counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casstore.errors import ConfigError, FormatError
from casstore.format import canonical, envelope, fields
from casstore.format.names import WRITE_ID_SIZE, check_name, parse_key, record_key

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"cass-ref"
VERSION = 1
MAX_INLINE = 8 << 10
"""Limit in bytes of a run or evaluation manifest inside its record."""

MAX_RECORD = 16 << 20
"""Limit of a record's file in bytes: listing refs reads every one of them."""

_KIND = "record"
_KNOWN = frozenset(
    {
        "type", "version", "requires", "name", "seq", "write", "time", "writer", "target", "manifest",
        "inline", "base", "metadata", "packs", "exclusive", "origin",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """One value that a writer gave a ref.

    `seq` is one more than the highest that the writer saw, `write_id` 16 random bytes, `time` nanoseconds
    since 1970 by the writer's clock. `target` is a model id, None for a deletion; `manifest` the object
    that describes it, or `inline` the small manifest itself. `base` is the model that this one was made
    from. `packs` are hints at the packs that cover it. `exclusive` records have a key that one writer wins.
    `origin` is the write id of the record of another store that this one was copied from.
    """

    name: str
    seq: int
    write_id: bytes
    time: int
    writer: str
    target: bytes | None
    manifest: bytes | None = None
    inline: bytes | None = None
    base: bytes | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    packs: tuple[bytes, ...] = ()
    exclusive: bool = False
    origin: bytes | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key this record is stored under."""
        return record_key(self.name, seq=self.seq, write_id=None if self.exclusive else self.write_id)

    @property
    def order(self) -> tuple[int, bool, bytes]:
        """The sort key of the records of one ref; the highest is the value.

        Of two with one number, whose writers did not see each other, one with a target comes after a deletion: what
        somebody has just written is not lost because somebody else deleted what was there before.
        """
        return (self.seq, self.target is not None, self.write_id)


def said(metadata: dict[str, Any]) -> bytes:
    """Return what metadata says, to be compared: a NaN equals itself, and True is not 1."""
    return canonical.encode(metadata)


def encode(record: Record) -> bytes:
    """Return the bytes of a record's file."""
    body = {
        **record.extra,
        "type": _KIND,
        "version": VERSION,
        "name": record.name,
        "seq": record.seq,
        "write": record.write_id,
        "time": record.time,
        "writer": record.writer,
        "target": record.target,
        "manifest": record.manifest,
        "inline": record.inline,
        "base": record.base,
        "metadata": record.metadata,
        "packs": b"".join(record.packs),
        "exclusive": record.exclusive,
    }
    if record.origin is not None:
        body["origin"] = record.origin
    return envelope.seal(MAGIC, canonical.encode(body))


def decode(data: Buffer, *, key: str) -> Record:
    """Read the record stored under `key`; raise FormatError if it is damaged or belongs elsewhere."""
    record = decode_anywhere(data, key=key)
    place = record_key(record.name, seq=record.seq, write_id=None)
    if key not in (place, f"{place}.{record.write_id.hex()}"):
        raise FormatError(f"{key} holds the record of another ref ({record.name!r}).")
    return record


def decode_anywhere(data: Buffer, *, key: str) -> Record:
    """Read the record in a file called `key`, which need not be its place; raise FormatError if it is damaged."""
    if memoryview(data).nbytes > MAX_RECORD:
        raise FormatError(f"{key} is larger than {MAX_RECORD >> 20} MiB, the limit of a record.")
    body = envelope.unseal(MAGIC, bytes(data), key=key)
    try:
        return _decode_body(body)
    except FormatError as error:
        # Invariant 8: this stops readers, so the message names the file.
        raise type(error)(f"{key}: {error}") from error


def _decode_body(body: bytes) -> Record:
    value = fields.decode_map(body, kind=_KIND, version=VERSION)
    write_id = fields.field(value, "write", bytes, kind=_KIND)
    inline = value.get("inline")
    origin = value.get("origin")
    if (
        len(write_id) != WRITE_ID_SIZE
        or not (inline is None or type(inline) is bytes)
        or not (origin is None or (type(origin) is bytes and len(origin) == WRITE_ID_SIZE))
    ):
        raise FormatError("This is not a valid record.")
    packs = fields.field(value, "packs", bytes, kind=_KIND)
    return Record(
        name=fields.field(value, "name", str, kind=_KIND),
        seq=fields.field(value, "seq", int, kind=_KIND),
        write_id=write_id,
        time=fields.field(value, "time", int, kind=_KIND),
        writer=fields.field(value, "writer", str, kind=_KIND),
        target=fields.optional_id(value, "target", kind=_KIND),
        manifest=fields.optional_id(value, "manifest", kind=_KIND),
        inline=inline,
        base=fields.optional_id(value, "base", kind=_KIND),
        metadata=fields.field(value, "metadata", dict, kind=_KIND),
        packs=tuple(fields.split_ids(packs, kind=_KIND)),
        exclusive=fields.field(value, "exclusive", bool, kind=_KIND),
        origin=origin,
        extra=fields.unknown_keys(value, _KNOWN),
    )


def check_writable(record: Record) -> None:
    """Raise ConfigError if `record` would not read back as it is."""
    check_name(record.name)
    data = encode(record)
    if len(data) > MAX_RECORD:
        raise ConfigError(
            f"The record of {record.name!r} would take {len(data)} bytes, with its metadata: "
            f"{MAX_RECORD >> 20} MiB is the limit."
        )

    def read_back(written: bytes) -> None:
        parse_key(record.key)
        if encode(decode(written, key=record.key)) != written:
            raise FormatError(f"The record for {record.name!r} does not survive a round trip.")

    fields.check_readable(data, read_back, kind=_KIND)
