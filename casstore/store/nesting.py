"""Keeping other files out of a store's own directory."""

from __future__ import annotations

import os

from casstore.backend.location import parse_location
from casstore.errors import ConfigError
from casstore.format import marks


def store_around(path: str | os.PathLike[str]) -> str | None:
    """Return the store's directory that a path, links resolved, names or lies in; None if there is none."""
    place = os.path.realpath(path)
    while not _is_store(place):
        above = os.path.dirname(place)
        if above == place:
            return None
        place = above
    return place


def refuse_inside_store(path: str | os.PathLike[str]) -> None:
    """Raise ConfigError if files that are to be written to `path` would lie in a store's directory.

    The files there are the store's own: `check` takes everything else for damage.
    """
    store = store_around(path)
    if store is not None:
        raise ConfigError(f"{os.fspath(path)} lies in the store {store}. Give a folder outside of it.")


def refuse_nested_store(path_or_url: str | os.PathLike[str]) -> None:
    """Raise ConfigError if a store that is to be made would lie in another one's directory."""
    location = parse_location(path_or_url)
    if location.kind == "local":
        store = store_around(os.path.dirname(os.path.realpath(location.target)))
        if store is not None:
            raise ConfigError(f"{location.target} lies in the store {store}. Make a new store outside of it.")


def _is_store(folder: str) -> bool:
    try:
        # Without O_NONBLOCK, opening a pipe of this name would block for ever.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(os.path.join(folder, marks.FORMAT_KEY), flags)
    except OSError:
        return False  # Absent, or not readable by this user.
    try:
        return marks.begins_format(os.read(descriptor, marks.MAGIC_SIZE))
    except OSError:
        return False  # A folder of this name, or a pipe.
    finally:
        os.close(descriptor)
