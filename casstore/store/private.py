"""The mark of a store that one machine alone uses: only there may policies delete what was not used for long, or to fit a size.

Another machine's pipeline could be using it, and nobody here would know.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from typing import TYPE_CHECKING

from casstore.errors import ConfigError, FormatError, ObjectExists, ObjectNotFound, UnsupportedVersion
from casstore.format import marks
from casstore.machine.this_machine import machine_id

if TYPE_CHECKING:
    from casstore.backend.base import Backend

_log = logging.getLogger("casstore")

_ANOTHERS = "marked as that of another machine or user, or this machine's own id was lost"


def mark_private(backend: Backend) -> None:
    """Mark a store as used by this machine and user alone, in the place of any other's mark.

    Raises ConfigError where this machine has no id and none can be kept.
    """
    try:
        own = machine_id(create=True)
    except OSError as error:
        # Invariant 11: a store that is not marked is not treated as if it were.
        raise ConfigError(
            f"{backend.url} cannot be made private, since this machine's id cannot be written: {error}."
        ) from error
    if own is None:
        raise ConfigError(
            f"{backend.url} cannot be made private, since there is no folder of yours to keep this machine's id in: set "
            "HOME or XDG_STATE_HOME to a folder of your own."
        )
    is_there = True
    try:
        found = _read(backend)
        if found is not None and found.machine == own:
            return
        is_there = found is not None
    except FormatError as error:
        # Invariant 13: whatever a damaged mark said, this one takes its place.
        _log.warning("%s is marked anew: %s", backend.url, error)
    if is_there:
        # Invariant 1 covers packs, index and refs; the mark is for whoever was told last to use the store alone.
        backend.delete(marks.PRIVATE_KEY)
    with contextlib.suppress(
        ObjectExists
    ):  # Another process marks it as well; `require_private` says whose it is.
        backend.put(marks.PRIVATE_KEY, [marks.encode_private(marks.Private(own, time.time_ns()))])


def is_private(backend: Backend) -> bool:
    """Say whether a store is marked as used by this machine and user alone."""
    try:
        found = _read(backend)
    except FormatError:
        return False  # Invariant 11: `require_private` says so.
    return found is not None and found.machine == machine_id()


def require_private(backend: Backend, what: str) -> None:
    """Raise ConfigError, saying what to do, unless a store is marked as this machine's; `what` needs that."""
    try:
        found = _read(backend)
        if found is not None and found.machine == machine_id():
            return
        whose = "and it is not marked as such"
        if found is not None:
            whose = f"and it is {_ANOTHERS}"
    except FormatError:
        whose = "and its mark is damaged"
    raise ConfigError(
        f"{what} works only on a store that is private to this machine, since nobody can know what other machines use: "
        f"{backend.url} is shared as far as anyone knows, {whose}. If this machine alone uses it, run "
        f"{_marking(backend)}; a store that is shared can be collected by the age of its "
        "records (`casstore gc --older-than`)."
    )


def check_mark(backend: Backend) -> str:
    """Return a sentence about a mark that does not hold for this machine, "" if there is nothing to say.

    Raises FormatError for a damaged mark, and for another program's file in its place.
    """
    try:
        found = _read(backend)
    except UnsupportedVersion:
        raise
    except FormatError as error:
        raise FormatError(
            f"{error} Without it, nothing is deleted by size or last use. If this machine alone uses the store, run "
            f"{_marking(backend)}; else remove the file."
        ) from error
    if found is None or found.machine == machine_id():
        return ""
    return (
        f"The store is {_ANOTHERS}: nothing is deleted here by size or last use. If this machine alone uses it, run "
        f"{_marking(backend)}."
    )


def _marking(backend: Backend) -> str:
    return f"`casstore init --private {shlex.quote(backend.url)}`"


def _read(backend: Backend) -> marks.Private | None:
    try:
        return marks.decode_private(backend.read(marks.PRIVATE_KEY))
    except ObjectNotFound:
        return None  # Invariant 8: it is certainly absent; an outage raises another error.
