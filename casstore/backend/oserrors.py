"""One mapping from the operating system's errors to casstore's, with a sentence for people."""

from __future__ import annotations

import errno
import os

from casstore.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    ObjectExists,
    ObjectNotFound,
)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FULL = {*_NO_ROOM, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM}
_UNAVAILABLE = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.ENOLCK,
    errno.ENFILE,
    errno.EMFILE,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EPIPE,
    errno.ESHUTDOWN,
}


def from_os_error(
    error: OSError, doing: str, *, retryable: bool = True, place: str | None = None, elsewhere: str = ""
) -> BackendError:
    """Return the casstore error for `error`; `doing` completes the sentence "Cannot …".

    `retryable=False` marks what must not be repeated as it is, such as anything after a failed fsync. `place` is
    where was to be written, and `elsewhere` what to do instead of making room there.
    """
    number = error.errno
    reason = error.strerror or (os.strerror(number) if number else str(error) or type(error).__name__)
    if number == errno.ENOENT:
        return ObjectNotFound(f"Cannot {doing}: it is not there.")
    if number == errno.EEXIST:
        return ObjectExists(f"Cannot {doing}: it is there already, and nothing is overwritten.")
    if number in _FULL:
        instead = f", or {elsewhere}" if elsewhere else ""
        return BackendError(
            f"Cannot {doing}: the disk is full or the quota is used up ({reason}{_room(place)}). Free space there or "
            f"raise the quota{instead}, then try again; `casstore stats` shows leftovers in a store, and `casstore gc` "
            "frees them on a full disk, too."
        )
    if number == errno.EROFS:
        return AccessDenied(
            f"Cannot {doing}: the file system is read-only. Mount it writable, or open the store with "
            "read_only=True."
        )
    if number in _REFUSED:
        return AccessDenied(
            f"Cannot {doing}: {reason}. Check the owner, group and mode of the store's directories: colleagues can "
            "use one that was made for its group (casstore init --shared group), and only if they are in that group."
        )
    if number == errno.EXDEV:
        return BackendError(
            f"Cannot {doing}: a directory inside the store is on another file system, so nothing can be "
            "published there atomically. Move the whole store instead of a part of it."
        )
    if number in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        return BackendError(
            f"Cannot {doing}: {reason}. A file or folder that casstore did not make is in the way; move it aside."
        )
    if number in _UNAVAILABLE:
        return BackendUnavailable(f"Cannot {doing}: {reason}.", retryable=retryable)
    return BackendError(f"Cannot {doing}: {reason}.")


def is_disk_full(error: BackendError) -> bool:
    """Say whether a local disk has no room, or its user's quota is used up."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _NO_ROOM


def _room(place: str | None) -> str:
    """Say what is free on the file system of `place`, or of the nearest folder above it."""
    while place and not os.path.exists(place):
        place = os.path.dirname(place)
    if not place:
        return ""
    try:
        found = os.statvfs(place)
    except (OSError, ValueError):
        return ""  # Only a detail of a message is missing.
    if found.f_files and not found.f_favail:
        return f"; no more files fit on the file system of {place}"
    free = found.f_bavail * found.f_frsize
    return f"; {free / 2**20:,.1f} MiB are free on the file system of {place}"
