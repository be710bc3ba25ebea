"""Ref names and the keys of their records.

A ref name is `<namespace>/<rest>`. In a key, `rest` is escaped so that it is one path component, lower
case (two names that differ only by case stay two files everywhere) and safe in a URL: every byte outside
`a-z 0-9 . _ - +`, a leading dot, and the first byte of a name that Windows takes for a device (`con.v1`), becomes `=`
and two hex digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from casstore.digest import digest
from casstore.errors import ConfigError, FormatError
from casstore.format.paths import check_path

NAMESPACES = ("models", "runs", "evaluations", "tags")
MODEL_NAMESPACES = ("models", "tags")
"""Namespaces whose refs name models; in the others they name manifests of the cache."""

MAX_NAME = 200
MAX_SEQ = (1 << 64) - 1
WRITE_ID_SIZE = 16
PREFIX = "refs/"

_KEY = re.compile(r"refs/([a-z]+)/([0-9a-f]{2})/([a-z0-9._+=-]+)@([0-9a-f]{16})(?:\.([0-9a-f]{32}))?")
_UNSAFE = re.compile(rb"[^a-z0-9._+-]")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])\.")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class RecordKey:
    """A parsed record key: the ref's `name`, its `seq`, and the write id unless the key is exclusive."""

    name: str
    seq: int
    write_id: bytes | None


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` can name a ref.

    What follows the namespace is a relative path without control characters and '@'; every other character is
    safe in a key, where it is escaped.
    """
    namespace, _, rest = name.partition("/")
    if namespace not in NAMESPACES or not rest:
        allowed = ", ".join(f"{item}/…" for item in NAMESPACES)
        raise ConfigError(
            f"{name!r} is not a ref name: names have the form {allowed}. Did you mean 'models/{name}'?"
        )
    if "@" in rest:
        raise ConfigError(f"{name!r} is not a ref name: it must not contain '@'.")
    if _CONTROL.search(rest):
        raise ConfigError(f"{name!r} is not a ref name: it must not contain control characters.")
    check_path(rest)
    if len(_escape(rest)) > MAX_NAME:
        raise ConfigError(f"The ref name {name!r} is too long: {MAX_NAME} bytes after escaping is the limit.")


def names_model(name: str) -> bool:
    """Say whether the ref called `name` names a model, rather than a manifest of a run or an evaluation."""
    return name.partition("/")[0] in MODEL_NAMESPACES


def directory(name: str) -> str:
    """Return the key prefix under which all records of `name` lie, with the trailing '@'."""
    namespace, _, rest = name.partition("/")
    return f"{PREFIX}{namespace}/{digest(name.encode()).hex()[:2]}/{_escape(rest)}@"


def record_key(name: str, *, seq: int, write_id: bytes | None) -> str:
    """Return the key of one record; without `write_id`, the key that only one writer can create."""
    tail = f".{write_id.hex()}" if write_id is not None else ""
    return f"{directory(name)}{seq:016x}{tail}"


def parse_key(key: str) -> RecordKey:
    """Parse a record's key; raise FormatError for any other key."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise FormatError(f"{key} is not the key of a record.")
    namespace, _, rest, seq, write_id = match.groups()
    name = f"{namespace}/{_unescape(rest, key=key)}"
    parsed = RecordKey(name, int(seq, 16), bytes.fromhex(write_id) if write_id else None)
    if record_key(name, seq=parsed.seq, write_id=parsed.write_id) != key:
        raise FormatError(
            f"{key} is not the key of a record: it names {name!r}, whose records have other keys."
        )
    return parsed


def _escape(rest: str) -> str:
    escaped = _UNSAFE.sub(lambda match: b"=%02x" % match[0][0], rest.encode()).decode("ascii")
    if escaped.startswith(".") or _DEVICE.match(escaped):
        return f"={ord(escaped[0]):02x}{escaped[1:]}"
    return escaped


def _unescape(escaped: str, *, key: str) -> str:
    if "=" not in escaped:
        return escaped
    try:
        return re.sub(rb"=([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()), escaped.encode()).decode()
    except UnicodeDecodeError as error:
        # Invariant 8: a name that cannot be read is an error, never skipped.
        raise FormatError(f"{key} is not the key of a record: its name is not UTF-8.") from error
