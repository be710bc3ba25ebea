"""A ref as listings show it, and queries for refs: values only, no I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from casstore.digest import DIGEST_SIZE, is_hex
from casstore.errors import ConfigError
from casstore.format import names

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    facts: str | dict[str, Any]
    """The metadata, as JSON text where JSON can hold it: most listings decode few rows."""

    @property
    def metadata(self) -> dict[str, Any]:
        """The record's metadata; a fresh value that is the caller's."""
        facts: dict[str, Any] = json.loads(self.facts) if isinstance(self.facts, str) else dict(self.facts)
        return facts

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
        facts_of(record.metadata),
    )


def facts_of(metadata: dict[str, Any]) -> str | dict[str, Any]:
    """Return metadata as JSON if JSON and SQLite give it back unchanged; else as it is.

    Bytes, NaN and infinities have no JSON, and SQLite ends a text at NUL.
    """
    try:
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        return metadata  # Not an error: such rows are decoded from their records (invariant 4).
    return metadata if "\\u0000" in text else text


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

    def matches(self, row: RefRow) -> bool:
        """Say whether a ref is wanted."""
        return (
            row.name.startswith(self.prefix)
            and self.target in (None, row.target)
            and self.base in (None, row.base)
            and (self.since is None or row.time >= self.since)
            and (self.until is None or row.time < self.until)
            and self.matches_metadata(row)
        )

    def matches_metadata(self, row: RefRow) -> bool:
        """Say whether a row's metadata is as wanted."""
        if not self.where:
            return True
        metadata = row.metadata
        return all(value_at(metadata, field) == value for field, value in self.where)


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
