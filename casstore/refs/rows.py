"""A ref as listings show it, and queries for refs: values only, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from casstore.digest import DIGEST_SIZE, is_hex
from casstore.errors import ConfigError
from casstore.format import canonical, names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from casstore.format.record import Record


class RefRow(NamedTuple):
    """The value of one ref as listings show it; what else its record says is `Store.record(name)`.

    `time` is nanoseconds since 1970 by the writer's clock. Rows of equal refs are equal.
    """

    name: str
    target: bytes
    manifest: bytes | None
    base: bytes | None
    time: int
    writer: str
    packed_metadata: bytes
    """The metadata in canonical msgpack: most listings decode few rows."""

    @property
    def metadata(self) -> dict[str, Any]:
        """The record's metadata; a fresh value that is the caller's."""
        metadata: dict[str, Any] = msgpack.unpackb(self.packed_metadata)
        return metadata

    @property
    def order(self) -> tuple[int, str]:
        """The sort key of rows: the older one first, then by name."""
        return (self.time, self.name)


def row_of(record: Record) -> RefRow:
    """Return what listings show of a ref whose value is this record."""
    assert record.target is not None
    return RefRow(
        record.name,
        record.target,
        record.manifest,
        record.base,
        record.time,
        record.writer,
        canonical.encode(record.metadata),
    )


@dataclass(frozen=True, slots=True)
class RefQuery:
    """Which refs are wanted: all conditions must hold; None means any.

    `where` holds pairs of a field of the metadata and its value. `since` is the first nanosecond, `until`
    the one after the last.
    """

    prefix: str = ""
    where: tuple[tuple[str, Any], ...] = ()
    target: bytes | None = None
    base: bytes | None = None
    since: int | None = None
    until: int | None = None

    @classmethod
    def of(
        cls,
        prefix: str,
        *,
        where: Mapping[str, Any] | None,
        target: bytes | str | None,
        base: bytes | str | None,
        since: int | None,
        until: int | None,
    ) -> RefQuery:
        """Return the query that a caller's arguments mean; raise ConfigError for an invalid id."""
        return cls(
            prefix,
            tuple((where or {}).items()),
            _object_id(target, "target"),
            _object_id(base, "base"),
            since,
            until,
        )

    @property
    def folder(self) -> str:
        """The key prefix below which all records of wanted refs lie."""
        namespace, slash, _ = self.prefix.partition("/")
        return f"{names.PREFIX}{namespace}/" if slash and namespace in names.NAMESPACES else names.PREFIX

    @property
    def contained(self) -> list[bytes]:
        """Bytes that every wanted row contains when it is packed: most folders have no row with a given id or text."""
        ids = [item for item in (self.target, self.base) if item is not None]
        return [self.prefix.encode(errors="surrogatepass"), *ids, *self._contained_in_metadata]

    @property
    def _contained_in_metadata(self) -> list[bytes]:
        """Bytes that all wanted metadata contains: the names of fields, and texts. Numbers of several types are equal."""
        texts: list[str] = []
        for name, value in self.where:
            if value is not None:  # A field that is not there is None.
                texts += name.split(".")
            if type(value) is str:
                texts.append(value)
        return [msgpack.packb(text, unicode_errors="surrogatepass") for text in texts]

    def choose(self, rows: Iterable[RefRow]) -> Iterable[RefRow]:
        """Return the rows of the refs that are wanted."""
        if names.PREFIX + self.prefix != self.folder:
            rows = [row for row in rows if row.name.startswith(self.prefix)]
        if self.target is not None:
            rows = [row for row in rows if row.target == self.target]
        if self.base is not None:
            rows = [row for row in rows if row.base == self.base]
        if self.since is not None:
            rows = [row for row in rows if row.time >= self.since]
        if self.until is not None:
            rows = [row for row in rows if row.time < self.until]
        for part in self._contained_in_metadata:
            rows = [row for row in rows if part in row.packed_metadata]
        if self.where:
            rows = [row for row in rows if self._matches(row.metadata)]
        return rows

    def _matches(self, metadata: dict[str, Any]) -> bool:
        return all(value_at(metadata, name) == value for name, value in self.where)


def value_at(metadata: dict[str, Any], field: str) -> Any:
    """Return the value of a field, of maps within maps by a path with dots; None where there is none."""
    value: Any = metadata
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _object_id(value: bytes | str | None, what: str) -> bytes | None:
    if isinstance(value, str) and is_hex(value):
        return bytes.fromhex(value)
    if value is None or (isinstance(value, bytes) and len(value) == DIGEST_SIZE):
        return value
    raise ConfigError(f"{value!r} cannot be the {what} of a ref: give a whole id, 64 hex digits or 32 bytes.")
