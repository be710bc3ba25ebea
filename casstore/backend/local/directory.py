"""The directory tree of a local store: where files may appear, and when its directories are durable.

Sources: open(2), fsync(2); Pillai et al., "All File Systems Are Not Created Equal",
OSDI 2014, for what a crash may lose.
"""

from __future__ import annotations

import errno
import os
import shlex
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Literal

from casstore.backend.base import STORE_FILE, validate_key
from casstore.backend.local.mount_types import is_one_kernels
from casstore.backend.local.naming import NO_SUCH_CALL, Naming
from casstore.backend.local.reach import require_no_dead_link, require_reachable
from casstore.backend.local.syscalls import close_quietly
from casstore.backend.oserrors import from_os_error
from casstore.errors import AccessDenied, ConfigError, StoreNotFound

if TYPE_CHECKING:
    from casstore.backend.base import Durability
    from casstore.backend.local.syscalls import SystemCalls

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# From fsync(2) on a directory: "there is no such operation here" (EBADF: CIFS, EISDIR, EACCES: FUSE), or a failure.
_MAY_BE_NO_SUCH_CALL = {errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTTY}
_NO_MODE_FOR_DIRECTORIES = NO_SUCH_CALL | {errno.EPERM, errno.EACCES}

_GROUP_DIRECTORY = 0o2770  # set-group-id: files made inside belong to the same group, whoever makes them
_REMEMBERED = 0o2070  # the mode bits of a root that tell later writers so
_GROUP_ACCESS = 0o070


class StoreDirectory:
    """One store's root, the modes of what is made below it, and the steps that make names durable.

    Methods raise OSError where they make a single call, so that callers can name what they were doing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        calls: SystemCalls,
        create: bool,
        durability: Durability,
        shared: Literal["group"] | None,
    ) -> None:
        text = os.fspath(root)
        if not text or "\0" in text or not _is_encodable(text):
            raise ConfigError(f"{text!r} cannot be the path of a store.")
        self.root = os.path.abspath(text)
        self.calls = calls
        self.durable = durability == "full"
        self._group = shared == "group"
        self._ensured: set[str] = set()  # directories whose own entry this process made durable
        self._prepared: set[str] = (
            set()
        )  # directories that this process made, and whose entry may not be durable
        self._failed: set[str] = set()  # directories of which an fsync failed
        self.naming = Naming(self.root, calls)
        self._owner: tuple[int, int] | None = (
            None  # the owner to give new files to; None keeps this process's own
        )
        if create:
            try:
                self._make_root()
            except OSError as error:
                raise from_os_error(
                    error, f"make the directory {self.root}", retryable=False, place=self.root
                ) from error
        try:
            status = calls.stat(self.root)
        except FileNotFoundError:
            # Invariant 8: a missing store must never look like an empty one.
            require_no_dead_link(self.root, calls=calls)
            raise StoreNotFound(
                f"There is no directory {self.root}. Check the path, or make a store there with create=True "
                f"(casstore init {shlex.quote(self.root)})."
            ) from None
        except OSError as error:
            raise from_os_error(error, f"open the store {self.root}") from error
        if not status.is_directory:
            raise ConfigError(f"{self.root} is not a directory, so it cannot be a store.")
        self._device = status.device
        self._sees_locks: bool | None = None
        if self._group and status.mode & _GROUP_ACCESS != _GROUP_ACCESS:
            raise ConfigError(
                f"{self.root} is private: its group may not use it, and casstore does not open up an existing private store "
                f"by itself. Its owner can: chmod -R g+rX {self.root}; "
                f"find {self.root} -type d -exec chmod g+ws {{}} +"
            )
        self._group = self._group or status.mode & _REMEMBERED == _REMEMBERED
        if calls.geteuid() == 0:
            self._owner = self._find_owner()

    @property
    def writing_mode(self) -> int:
        """Mode of files that are being written, and of the lock."""
        return 0o660 if self._group else 0o600

    @property
    def published_mode(self) -> int:
        """Mode of published files: read-only, so that a slip elsewhere cannot change one (invariant 1)."""
        return 0o440 if self._group else 0o400

    @property
    def sees_every_lock(self) -> bool:
        """Whether everybody who can write here sees a flock; determined once."""
        if self._sees_locks is None:
            self._sees_locks = is_one_kernels(self.calls.file_system_type(self.root))
        return self._sees_locks

    def path(self, key: str) -> str:
        """Return the path of a key. Raises ConfigError for what is not a key."""
        return f"{self.root}/{validate_key(key)}"

    # ---- owners

    def _find_owner(self) -> tuple[int, int] | None:
        """Return the owner of this store, None if it is root: the owner of its `format`, else of its directory."""
        try:
            status = self.calls.stat(f"{self.root}/{STORE_FILE}", follow=False)
        except FileNotFoundError:
            status = self.calls.stat(
                self.root
            )  # Invariant 8: the file is certainly absent, so the store is only being made.
        except OSError as error:
            raise from_os_error(error, f"open the store {self.root}") from error
        return (status.uid, status.gid) if status.uid else None

    def give(self, fd: int) -> None:
        """Give what root has just made to the store's owner, who could not read it otherwise.

        Raises AccessDenied where that cannot be done; nothing is in the file yet, and it has no name that counts.
        """
        if self._owner is None:
            return
        status = self.calls.fstat(fd)
        if (status.uid, status.gid) == self._owner:
            return  # On some file systems, and in containers, everything has one owner.
        try:
            self.calls.fchown(fd, *self._owner)
        except OSError as error:
            uid, gid = self._owner
            raise AccessDenied(
                f"{self.root} belongs to user {uid}, and root cannot give files there to user {uid} and group {gid} "
                f"({error.strerror}): they could not read what is written now. Run this as that user; nothing "
                "was written."
            ) from error

    def make_file(self, path: str) -> int:
        """Make a file that only its owner, or the store's group, can open, and return its descriptor."""
        fd = self.calls.open(path, _NEW_FILE, self.writing_mode)
        with ExitStack() as failed:
            # Invariant 2: a file that cannot be given to the store's owner never gets its final name.
            failed.callback(self.unlink_quietly, path)
            failed.callback(close_quietly, self.calls, fd)
            self.give(fd)
            failed.pop_all()
        return fd

    # ---- directories

    def _make_root(self) -> None:
        missing = []
        path = self.root
        while True:
            try:
                self.calls.stat(path)
                break
            except FileNotFoundError:
                missing.append(path)
                path = os.path.dirname(path)
        # Invariant 2: the maker of existing directories may have stopped before their entries were
        # durable. One that may not be read belongs to someone else, who made it durable.
        while path != os.path.dirname(path):
            path = os.path.dirname(path)
            with suppress(PermissionError):
                self.sync(path)
        for path in reversed(missing):
            self._make_directory(path, own=path == self.root)
        if self._group and not missing and not self.calls.scan_kinds(self.root):
            # Someone made the folder for the store; later writers go by its mode.
            with suppress(OSError):
                self.calls.chmod(self.root, _GROUP_DIRECTORY)

    def _make_directory(self, path: str, *, own: bool = True) -> None:
        """Make one directory, or find it made, and make its entry durable."""
        made = path in self._prepared or self._make(path, own=own)
        try:
            # Invariant 2: also when it was there, since its maker may have stopped before this.
            self.sync(os.path.dirname(path))
        except (OSError, AccessDenied):
            # Invariant 2: a failed fsync discards the directory, so that the next writer makes a new one.
            if made:
                self._remove_prepared(path)
            raise
        self._prepared.discard(path)

    def _remove_prepared(self, path: str) -> None:
        """Remove a directory that this process made, and those that it made in it."""
        for inner in sorted(self._prepared.copy(), reverse=True):
            if inner.startswith(f"{path}/"):
                with suppress(OSError):
                    self.calls.rmdir(inner)
                self._prepared.discard(inner)
        with suppress(OSError):
            self.calls.rmdir(path)
        self._prepared.discard(path)

    def _make(self, path: str, *, own: bool) -> bool:
        """Make one directory; say whether it was not there."""
        try:
            self._mkdir(path, (0o770 if self._group else 0o700) if own else 0o777)
        except FileExistsError:
            return False  # another writer was faster; anything else in the way shows at the next call
        try:
            if own:
                self._equip(path)
        except (OSError, AccessDenied):
            # Invariant 2: nobody uses a directory that is not the owner's.
            with suppress(OSError):
                self.calls.rmdir(path)
            raise
        return True

    def _mkdir(self, path: str, mode: int) -> None:
        try:
            self.calls.mkdir(path, mode)
        except OSError as error:
            if error.errno not in _NO_MODE_FOR_DIRECTORIES:
                raise
            # Some file systems refuse every mode but their own. Where there are modes, the file stays private.
            self.calls.mkdir(path, 0o777)
            with suppress(OSError):
                self.calls.chmod(path, mode)

    def _equip(self, path: str) -> None:
        """Set the owner and the group's mode of a directory that was just made, before anything is in it."""
        if self._owner is not None or self._group:
            # Follow no link: root would give away its target.
            fd = self.calls.open(path, _DIRECTORY_FLAGS | os.O_NOFOLLOW)
            try:
                self.give(fd)
                if self._group:
                    # mkdir obeys the umask and ignores the set-group-id bit.
                    self.set_mode(fd, _GROUP_DIRECTORY)
            finally:
                close_quietly(self.calls, fd)

    def ensure(self, directory: str) -> None:
        """Make `directory` and what leads to it, and make their entries durable, once in this process."""
        if directory == self.root or directory in self._ensured:
            return
        self.ensure(os.path.dirname(directory))
        self._make_directory(directory)
        self._ensured.add(directory)

    def prepare(self, directory: str) -> None:
        """Make `directory` and what leads to it, ahead of `ensure`, which makes their entries durable."""
        if directory == self.root or directory in self._ensured or directory in self._prepared:
            return
        self.prepare(os.path.dirname(directory))
        if self._make(directory, own=True):
            self._prepared.add(directory)

    def forget(self) -> None:
        """Forget which directories are known to exist: someone removed one."""
        self._ensured.clear()
        self._prepared.clear()

    def sync(self, directory: str) -> None:
        """Make the entries of `directory` durable.

        A failure is final for this process: the kernel may have dropped an entry and answer the next call
        with success, so there is no next call.
        """
        if not self.durable:
            return
        if directory in self._failed:
            raise OSError(
                errno.EIO,
                "an earlier fsync of this directory failed; check the disk, then open the store again",
            )
        refused = self._fsync(directory)
        if refused is None or refused.errno in NO_SUCH_CALL:
            return
        if refused.errno in _MAY_BE_NO_SUCH_CALL:
            # Invariant 2: success of this second call would not undo the failure of the first.
            again = self._fsync(directory)
            if again is not None and again.errno == refused.errno:
                return
        self._failed.add(directory)
        raise refused

    def _fsync(self, directory: str) -> OSError | None:
        """Call fsync(2) on a directory and return its error, or that of opening it where that may be the same."""
        try:
            fd = self.calls.open(directory, _DIRECTORY_FLAGS)
        except OSError as error:
            # Invariant 2: a second call shows whether a file system always refuses this.
            if error.errno not in _MAY_BE_NO_SUCH_CALL:
                raise
            return error
        try:
            # Invariant 2: a name counts only once its directory is on the disk.
            self.calls.fsync(fd)
        except OSError as error:
            # Invariant 2: raised by the caller, unless the file system has no such operation.
            return error
        finally:
            # Invariant 2: only fsync's answer counts, and the descriptor is closed even after an error.
            close_quietly(self.calls, fd)
        return None

    # ---- files

    def set_mode(self, fd: int, mode: int) -> None:
        """Set the mode of a file that this process made, where the file system has modes; it is private until then."""
        try:
            self.calls.fchmod(fd, mode)
        except OSError:
            # Modes only protect against mistakes; invariant 1 does not rest on them. But the group was promised access.
            lacking = mode & ~self.calls.fstat(fd).mode & _GROUP_ACCESS
            if self._group and lacking:
                raise

    def unlink_quietly(self, path: str) -> None:
        """Remove a name that nobody relies on; a leftover is found by its age later."""
        # Invariant 2: only temporary names, and files whose publication failed, are removed like this. The
        # result is known already, and a leftover only costs space.
        with suppress(OSError):
            self.calls.unlink(path)

    def require_reachable(self, key: str) -> None:
        """Raise BackendUnavailable unless `key`'s absence is certain (invariant 8)."""
        require_reachable(self.root, key, device=self._device, calls=self.calls)


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False  # No file can have such a name, so it is not taken.
    return True
