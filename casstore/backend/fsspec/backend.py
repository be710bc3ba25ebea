"""Objects on any fsspec file system.

Imported only when a URL needs it: fsspec's implementations pull in large client libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from casstore.backend.base import (
    Backend,
    byte_views,
    is_key,
    validate_key,
    validate_prefix,
    validate_range,
)
from casstore.backend.fsspec.connection import Connection
from casstore.backend.fsspec.drivers import driver_for
from casstore.backend.fsspec.errors import RangeNotSatisfiable
from casstore.backend.fsspec.info import entry
from casstore.backend.fsspec.listing import list_files
from casstore.backend.fsspec.publishing import TEMPORARY, Publisher
from casstore.backend.fsspec.spool import SpoolingWriter
from casstore.errors import BackendError, ConfigError, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Buffer

    from casstore.backend.base import BlobWriter, Entry
    from casstore.backend.fsspec.drivers.driver import Driver

_T = TypeVar("_T")

_TRUSTED = 16 << 20  # bytes: a longer read is clipped by the object's size first


class FsspecBackend(Backend):
    """The store below `url`, on a file system made from `storage_options`.

    `create` makes the root directory where there are directories; a bucket must exist. `driver` replaces the one
    that is registered for the protocol. Large objects are spooled to TMPDIR and sent when they are committed. Nothing is
    fsynced: durability is the server's.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool = False,
        driver: type[Driver] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        kind = driver or driver_for(url.split("://", 1)[0])
        self._connection = Connection(url, kind, storage_options or {}, create=create)
        self._publisher = Publisher(self._connection)
        self._marked_lockless = False
        self.url = self._connection.url
        self.is_remote = kind.is_remote
        self.lists_flat = kind.is_bucket

    def _not_an_object(self, verb: str, key: str) -> ObjectNotFound:
        return ObjectNotFound(f"Cannot {verb} {key} in {self.url}: that is a directory, not an object.")

    # ---- reading

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Fetch a range."""
        validate_range(start, length)
        connection = self._connection
        path = connection.path(validate_key(key))
        if length is not None and not 0 < length <= _TRUSTED:
            # Some file systems allocate as much as they are asked for, and fail when asked for nothing.
            length = min(length, max(0, self.stat(key).size - start))
            if not length:
                return b""
        end = None if length is None else start + length
        try:
            with connection.doing("read", key):
                return connection.driver.read(path, start=start or None, end=end)
        except RangeNotSatisfiable:
            # Servers refuse such a range; the contract says that it is empty.
            return b""
        except BackendError as error:
            # Invariant 8: some of these mean a directory, which is no object.
            if isinstance(error.__cause__, IsADirectoryError):
                raise self._not_an_object("read", key) from error
            raise

    def read_into(self, key: str, buffer: memoryview, *, start: int = 0) -> int:
        """Fetch a range and copy it into the caller's buffer."""
        data = self.read(key, start=start, length=buffer.nbytes)
        if data:
            buffer.cast("B")[: len(data)] = data
        return len(data)

    def stat(self, key: str) -> Entry:
        """Ask for one object's properties."""
        connection = self._connection
        path = connection.path(validate_key(key))
        with connection.doing("find", key):
            info = connection.driver.fs.info(path)
        if info.get("type") != "file":
            raise self._not_an_object("find", key)
        return entry(key, info)

    def list(self, prefix: str) -> Iterator[Entry]:
        """List flat where the file system can, else directory by directory."""
        return self._listing(prefix, entry, sizes=True)

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Take only the names from the same listing."""
        return self._listing(prefix, _key_only)

    def list_foreign(self) -> Iterator[str]:
        """Take the paths that cannot be keys from the same listing."""
        return (path for path in self._listing("", _key_only, wanted=_is_visible) if not is_key(path))

    def _listing(
        self,
        prefix: str,
        take: Callable[[str, Mapping[str, Any]], _T],
        *,
        sizes: bool = False,
        wanted: Callable[[str], bool] = is_key,
    ) -> Iterator[_T]:
        return list_files(self._connection, validate_prefix(prefix), take, sizes=sizes, wanted=wanted)

    # ---- writing

    @property
    def creates_exclusively(self) -> bool:
        """Whether the file system has its own create-if-absent, and it works on this server."""
        return self._publisher.creates_exclusively

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Send a small object in one request, or under a temporary name first."""
        self._publisher.send(validate_key(key), b"".join(byte_views(parts)))

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        """Send with the server's own create-if-absent."""
        self._publisher.create(validate_key(key), b"".join(byte_views(parts)))

    def open_writer(self) -> BlobWriter:
        """Return a writer that spools here and sends on commit."""
        return SpoolingWriter(self._publisher.send, self.url)

    def delete(self, key: str) -> None:
        """Remove one object."""
        self._publisher.remove(validate_key(key))

    @property
    def may_be_locked_by_others(self) -> bool:
        """Whether the server may keep objects as files of a folder, which others use without going through it."""
        return self._connection.kind.may_be_locked_by_others

    def mark_lockless(self) -> None:
        """Leave the marker once for this backend; everybody sees it on the server at once."""
        if not self._marked_lockless:
            super().mark_lockless()
            self._marked_lockless = True

    def list_temporaries(self) -> Iterator[Entry]:
        """Yield the files in the hidden directory, where objects get a temporary name first."""
        connection = self._connection
        if connection.kind.puts_whole_objects:
            return
        try:
            with connection.doing("list", TEMPORARY):
                children = connection.driver.fs.ls(connection.path(TEMPORARY), detail=True)
        except ObjectNotFound:
            return  # Invariant 8: the store is there, so no directory means no writer yet.
        for info in sorted(children, key=lambda info: str(info["name"])):
            if info["type"] == "file":
                yield entry(f"{TEMPORARY}/" + info["name"].rsplit("/", 1)[-1], info)

    def remove_temporary(self, key: str) -> None:
        """Remove one leftover."""
        directory, _, name = key.partition("/")
        if directory != TEMPORARY or "/" in name or not is_key(name):
            raise ConfigError(f"{key!r} is not a leftover of a writer in {self.url}.")
        self._publisher.remove(key)

    def close(self) -> None:
        """Let go of this process's connections."""
        self._connection.close()


def _key_only(key: str, _: Mapping[str, Any]) -> str:
    return key


def _is_visible(path: str) -> bool:
    """Say whether no part of a path is hidden: hidden names are casstore's own, or the file system's."""
    return bool(path) and not path.startswith(".") and "/." not in path
