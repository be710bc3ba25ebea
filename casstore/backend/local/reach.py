"""Whether what a local store lacks is absent, or only out of reach: an unmounted disk looks like an empty folder (invariant 8)."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from casstore.backend.oserrors import from_os_error
from casstore.errors import BackendUnavailable

if TYPE_CHECKING:
    from casstore.backend.local.syscalls import SystemCalls

__all__ = ["require_no_dead_link", "require_reachable"]


def require_reachable(root: str, key: str, *, device: int, calls: SystemCalls) -> None:
    """Raise BackendUnavailable unless `key`'s absence below `root`, which was on `device`, is certain.

    An unmounted disk leaves an empty directory behind, and a link to one leads nowhere.
    """
    try:
        status = calls.stat(root)
    except OSError as error:
        raise BackendUnavailable(
            f"The store's directory {root} is out of reach. Is its disk mounted?"
        ) from error
    if status.device != device:
        raise BackendUnavailable(
            f"{root} is on another file system than when the store was opened. Is its disk mounted? "
            "Open the store again once it is."
        )
    path = root
    for segment in key.rstrip("/").split("/"):
        path = f"{path}/{segment}"
        try:
            calls.stat(path)
        except FileNotFoundError:
            if _is_link(path, calls):
                raise BackendUnavailable(
                    f"{path} is a link that leads nowhere. Is the disk behind it mounted?"
                ) from None
            return
        except OSError as error:
            raise from_os_error(error, f"look for {path}") from error


def require_no_dead_link(root: str, *, calls: SystemCalls) -> None:
    """Raise BackendUnavailable if the root's absence is that of a disk behind a link on the way to it."""
    path = root
    while path != os.path.dirname(path):
        if _is_link(path, calls):
            raise BackendUnavailable(
                f"{root} is out of reach: {path} is a link that leads nowhere. Is the disk behind it mounted?",
                retryable=False,
            )
        path = os.path.dirname(path)
        with suppress(OSError):
            calls.stat(path)
            return  # Invariant 8: the parent is there, so what is below it is certainly absent.


def _is_link(path: str, calls: SystemCalls) -> bool:
    try:
        return calls.stat(path, follow=False).is_link
    except FileNotFoundError:
        # Invariant 8: nothing has this name, not even a link.
        return False
    except OSError as error:
        raise from_os_error(error, f"look for {path}") from error
