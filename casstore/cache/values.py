"""Settings as plain values: a pipeline's objects become maps, lists, text and numbers, or are refused."""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_PATH_SETTINGS = ("path", "file", "dir", "folder", "script", "directory", "filename")

MAX_DEPTH = 24
"""Limit of nesting in a setting: anything deeper is nearly always a cycle."""

MAX_ITEMS = 1 << 20
"""Limit of the number of values in one config."""


def plain(value: Any, *, what: str) -> Any:
    """Return a copy of `value` made of maps, lists, text, numbers, booleans and None.

    Tuples and sets become lists, paths and enumerations text, numpy scalars numbers, objects with `to_json`
    or `model_dump` their results. Raises ConfigError, naming `what` and where, for a cycle, a config
    of absurd size, or an object without a plain form.
    """
    return _Walk(what).take(value, ())


class _Walk:
    def __init__(self, what: str) -> None:
        self._what = what
        self._left = MAX_ITEMS

    def take(self, value: Any, where: tuple[str, ...]) -> Any:
        self._left -= 1
        # Refuse a container before walking it.
        if self._left < (len(value) if isinstance(value, (list, tuple, dict, set)) else 0):
            raise ConfigError(f"{self._what} holds more than {MAX_ITEMS} values.")
        if len(where) > MAX_DEPTH:
            raise ConfigError(
                f"{self._what} is nested deeper than {MAX_DEPTH}, or contains itself, at {_name(where)}."
            )
        if value is None or isinstance(value, (bool, str)) or type(value) is int:
            return self._text(value, where) if isinstance(value, str) else value
        if isinstance(value, float):
            # All NaNs become the same one, so that a key does not depend on which operation made it.
            return math.nan if math.isnan(value) else float(value)
        if isinstance(value, enum.Enum):
            return self.take(value.value, where)
        if isinstance(value, os.PathLike):
            return self.take(os.fspath(value), where)
        if isinstance(value, Mapping):
            return self._map(value, where)
        if isinstance(value, AbstractSet):
            return sorted((self.take(item, (*where, "…")) for item in value), key=repr)
        if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
            return [self.take(item, (*where, str(at))) for at, item in enumerate(value)]
        return self._other(value, where)

    def _map(self, value: Mapping[Any, Any], where: tuple[str, ...]) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for key, item in value.items():
            name = self._key(key, where)
            if name in taken:
                raise ConfigError(
                    f"{self._what} has two keys at {_name(where)} that are both written {name!r}."
                )
            taken[name] = self.take(item, (*where, name))
        return taken

    def _key(self, key: Any, where: tuple[str, ...]) -> str:
        if isinstance(key, enum.Enum):
            key = key.value
        if not isinstance(key, (str, int, float, bool)) and key is not None:
            raise ConfigError(f"{self._what} has a key that is not text at {_name(where)}: {key!r:.200}.")
        return self._text(str(key), where)

    def _text(self, value: str, where: tuple[str, ...]) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # Invariant 3: text that cannot be encoded cannot be in a record; file names that are not UTF-8 are like this.
            raise ConfigError(
                f"{self._what} has text at {_name(where)} that is not valid Unicode."
            ) from error
        # A subclass of str (such as a string enumeration) becomes its text.
        return value if type(value) is str else str.__str__(value)

    def _other(self, value: Any, where: tuple[str, ...]) -> Any:
        for method in ("to_json", "model_dump", "tolist", "item"):
            convert = getattr(value, method, None)
            if callable(convert) and not isinstance(value, type):
                try:
                    converted = convert()
                except Exception as error:
                    # Invariant 11: whatever the pipeline's object raises only means that it has no plain form.
                    raise ConfigError(
                        f"{self._what} holds a {type(value).__name__} at {_name(where)}, whose {method}() failed: "
                        f"{error!r:.200}."
                    ) from error
                return self.take(converted, (*where, "()"))
        raise ConfigError(
            f"{self._what} holds a {type(value).__name__} at {_name(where)}, which has no plain form. "
            "Give text, numbers, lists or maps."
        )


def _name(where: tuple[str, ...]) -> str:
    shown = where[:6]
    return ".".join(shown) + (".…" if len(where) > len(shown) else "") if where else "its top"


def by_content(settings: Any, content_id: Callable[[str | Mapping[str, str]], str], name: str = "") -> Any:
    """Replace plain settings that name files or folders by their content, which `content_id` gives.

    Those are absolute paths, and settings whose name ends in path, file, dir, folder or script, that exist.
    Of the file's name only the suffix counts, since many readers choose a format by it.
    """
    if isinstance(settings, dict):
        return {key: by_content(item, content_id, key) for key, item in settings.items()}
    if isinstance(settings, list):
        return [by_content(item, content_id, name) for item in settings]
    if isinstance(settings, str) and _names_file(name, settings):
        if os.path.isfile(settings):
            return {"content": content_id({f"file{os.path.splitext(settings)[1]}": settings})}
        return {"content": content_id(settings)}
    return settings


def _names_file(name: str, value: str) -> bool:
    if not value or "\0" in value:
        return False
    word = name.lower().rsplit("_", 1)[-1]
    if not (os.path.isabs(value) or word in _PATH_SETTINGS):
        return False
    try:
        return os.path.exists(value)
    except OSError as error:
        # Invariant 12: a key must not depend on a file that could not be looked at.
        raise ConfigError(f"The setting {name} names {value}, which cannot be read: {error}.") from error
