"""Checked access to the fields of a decoded map, shared by every value that is one msgpack map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from casstore.digest import DIGEST_SIZE
from casstore.errors import ConfigError, FormatError, UnsupportedVersion
from casstore.format import canonical

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

T = TypeVar("T")


def decode_map(data: Buffer, *, kind: str, version: int) -> dict[str, Any]:
    """Decode a map and check its `type`, `version` and `requires`.

    Raises FormatError for another type, UnsupportedVersion for a value that only a newer casstore can read.
    """
    value = canonical.decode(data, what=f"A {kind}")
    if not isinstance(value, dict) or value.get("type") != kind:
        raise FormatError(f"Expected a {kind}, found something else.")
    found = field(value, "version", int, kind=kind)
    if found > version:
        raise UnsupportedVersion(f"This {kind} has version {found}; upgrade casstore to read it.")
    if found < 1:
        raise FormatError(f"A {kind} with version {found} does not exist.")
    requires = value.get("requires", [])
    if not isinstance(requires, list) or not all(isinstance(item, str) for item in requires):
        raise FormatError(f"The `requires` of a {kind} must be a list of strings.")
    if requires:
        raise UnsupportedVersion(f"This {kind} requires {', '.join(requires)}; upgrade casstore to read it.")
    return value


def check_readable(data: bytes, decode: Callable[[bytes], object], *, kind: str) -> None:
    """Raise ConfigError unless `decode` accepts `data`: what readers refuse is never written (invariant 14)."""
    try:
        decode(data)
    except FormatError as error:
        raise ConfigError(
            f"This {kind} cannot be stored, because it could not be read back: {error}"
        ) from error


def field(value: dict[str, Any], name: str, expected: type[T], *, kind: str) -> T:
    """Return `value[name]` if it has exactly the type `expected`; raise FormatError otherwise."""
    found = value.get(name)
    if type(found) is not expected:
        raise FormatError(f"The field `{name}` of a {kind} is missing or is not {expected.__name__}.")
    return found


def optional_id(value: dict[str, Any], name: str, *, kind: str) -> bytes | None:
    """Return an object id, or None where the field is absent or nil."""
    found = value.get(name)
    if found is None:
        return None
    if type(found) is not bytes or len(found) != DIGEST_SIZE:
        raise FormatError(f"The field `{name}` of a {kind} is not an object id.")
    return found


def split_ids(data: bytes, *, kind: str) -> list[bytes]:
    """Cut one `bin` of ids into a list of 32-byte ids."""
    if len(data) % DIGEST_SIZE:
        raise FormatError(f"A {kind} holds ids whose length is not a multiple of {DIGEST_SIZE}.")
    return [data[at : at + DIGEST_SIZE] for at in range(0, len(data), DIGEST_SIZE)]


def unknown_keys(value: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Return the keys that this version does not know: they are kept when a value is rewritten."""
    return {key: item for key, item in value.items() if key not in known}
