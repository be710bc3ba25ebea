"""Gives a written file its final name without replacing, by the first way that a file system has.

Sources: link(2), rename(2).
"""

from __future__ import annotations

import errno
import os
import uuid
from typing import TYPE_CHECKING, NoReturn

from casstore.errors import ConfigError

if TYPE_CHECKING:
    from casstore.backend.local.syscalls import SystemCalls

# From a call that a file system does not have.
NO_SUCH_CALL = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})

# Errors that any other way of naming a file would meet as well. Any other number may mean that a file system cannot
# name files this way: EPERM (FAT), EXDEV (OpenAFS, BeeGFS), EIO (rclone), EACCES, EMLINK, ….
_NOT_ABOUT_THE_WAY = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
    }
)


class Naming:
    """Names files of the store in `root`, and remembers which way worked there."""

    def __init__(self, root: str, calls: SystemCalls) -> None:
        self._root = root
        self._calls = calls
        self._links = True  # False once link(2) was refused and another way worked

    def place(self, temporary: str, final: str, *, exclusive: bool) -> bool:
        """Give a written file its final name without replacing; return whether the old name is left over.

        link(2); where links do not exist, a rename that does not replace; where that does not exist either,
        a check and then a plain rename. The last is refused when `exclusive`: two writers of one name could
        both succeed. For other keys that is harmless, since only equal bytes share a name. Raises OSError.
        """
        if self._links:
            try:
                # Invariant 1: link fails with EEXIST rather than replace.
                self._calls.link(temporary, final)
            except OSError as error:
                _raise_unless_about_the_way(error)
            else:
                return True
        try:
            # Invariant 1: this rename fails with EEXIST rather than replace.
            self._calls.rename_exclusive(temporary, final)
        except OSError as error:
            _raise_unless_about_the_way(error)
            if exclusive:
                self._refuse_exclusive(temporary, final, error)
            self._place_after_a_look(temporary, final)
        # A rename works here, so links are not needed.
        self._links = False
        return False

    def _refuse_exclusive(self, temporary: str, final: str, refused: OSError) -> NoReturn:
        """Raise ConfigError where only a plain rename can name files, OSError where even that fails."""
        if refused.errno not in NO_SUCH_CALL:
            elsewhere = f"{os.path.dirname(final)}/.{uuid.uuid4().hex}"
            # Invariant 1: trying with a name that nobody else uses distinguishes a missing operation from a failure.
            self._calls.rename(temporary, elsewhere)
            self._calls.rename(elsewhere, temporary)
        raise ConfigError(
            f"The file system of {self._root} has neither links nor a rename that does not replace, so "
            "writers cannot be told apart there."
        ) from refused

    def _place_after_a_look(self, temporary: str, final: str) -> None:
        try:
            self._calls.stat(final, follow=False)
        except FileNotFoundError:
            # Invariant 1, as far as this file system allows: the name was free a moment ago.
            self._calls.rename(temporary, final)
            return
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), final)


def _raise_unless_about_the_way(error: OSError) -> None:
    """Raise an error that means that the name is taken, or that any other way of naming would meet as well."""
    if isinstance(error, FileExistsError) or error.errno in _NOT_ABOUT_THE_WAY:
        raise error
