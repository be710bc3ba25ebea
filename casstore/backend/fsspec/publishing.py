"""Gives objects their names: by one upload where that shows the whole object or nothing, else by a temporary name."""

from __future__ import annotations

import uuid
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from casstore.errors import BackendError, ConfigError, ObjectExists, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.backend.fsspec.connection import Connection

TEMPORARY = ".tmp"  # hidden, hence no key


class Publisher:
    """Publishes whole objects. One serves all threads of a backend."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._made: set[str] = set()  # directories known to exist
        self._exclusive: bool | None = None

    @property
    def creates_exclusively(self) -> bool:
        """Whether the file system has its own create-if-absent, and it works on this server."""
        if self._exclusive is None:
            self._exclusive = self._connection.driver.creates and self.try_create()
        return self._exclusive

    def try_create(self) -> bool:
        """Say whether the second of two creations of one name fails and leaves the first alone."""
        key = f"gc/probe-{uuid.uuid4().hex}"
        path = self._connection.path(key)
        try:
            self._create(key, b"first")
            self._create(key, b"second")
        except ObjectExists:
            with self._connection.doing("read", key):
                return self._connection.driver.read(path, start=None, end=None) == b"first"
        except BackendError as error:
            _raise_unless_refused(error)
            return False
        else:
            return False
        finally:
            self.remove(key)  # Invariant 1 covers packs, index and refs; this scratch object is ours alone.

    def create(self, key: str, data: bytes) -> None:
        """Publish if absent. Raises ObjectExists when the key is taken, ConfigError where racing writers could both win."""
        if not self.creates_exclusively:
            raise ConfigError(
                f"{self._connection.url} cannot create an object only if it is absent, so racing writers cannot be "
                "told apart there."
            )
        self._create(key, data)

    def _create(self, key: str, source: bytes | str) -> None:
        driver = self._connection.driver
        with self._connection.doing("create", key):
            if driver.links:
                self._under_temporary_name(source, key, exclusively=True)
            else:
                driver.upload(self._connection.path(key), source, exclusively=True)

    def send(self, key: str, source: bytes | str) -> None:
        """Publish `source`, bytes or the path of a file. Raises ObjectExists when the key is taken."""
        connection, driver = self._connection, self._connection.driver
        if self._exclusive and isinstance(source, bytes):
            self._create(key, source)
            return
        if driver.uploads_exclusively and self._exclusive is not False:
            try:
                self._create(key, source)
            except BackendError as error:
                _raise_unless_refused(error)
            else:
                return
        if not driver.puts_whole_objects:
            with self._connection.doing("write", key):
                self._under_temporary_name(source, key)
            return
        self._require_free(key)
        with self._connection.doing("write", key):
            driver.upload(connection.path(key), source)

    def _require_free(self, key: str) -> None:
        connection = self._connection
        try:
            with connection.doing("find", key):
                info = connection.driver.fs.info(connection.path(key))
        except ObjectNotFound:
            return  # The name is free, as it should be (invariant 1).
        if info.get("type") == "file":
            raise ObjectExists(f"{key} is in {connection.url} already, and nothing is overwritten.")

    def _under_temporary_name(self, source: bytes | str, key: str, *, exclusively: bool = False) -> None:
        """Write a whole file, and then give it its name by a link, which fails if the name is taken, or by a rename."""
        connection, driver = self._connection, self._connection.driver
        final = connection.path(key)
        with self._temporary(source, final) as temporary:
            if driver.links:
                try:
                    # Invariant 2: the final name appears on a whole file, and on one writer's only.
                    driver.link(temporary, final)
                except NotImplementedError:
                    if exclusively:
                        raise
                else:
                    self._remove_quietly(temporary)
                    return
            # Invariant 1, as far as a replacing rename allows: the name was free a moment ago.
            self._require_free(key)
            # Invariant 2: the final name appears on a whole file.
            driver.rename(temporary, final)

    @contextmanager
    def _temporary(self, source: bytes | str, final: str) -> Iterator[str]:
        """Write `source` under a temporary name, and remove that if the block fails."""
        temporary = self._connection.path(f"{TEMPORARY}/{uuid.uuid4().hex}")
        directories = [path.rsplit("/", 1)[0] for path in (temporary, final)]
        missing = [directory for directory in directories if directory not in self._made]
        with ExitStack() as failed:
            failed.callback(self._remove_quietly, temporary)
            # If somebody removed a directory, the next attempt makes it again.
            failed.callback(self._made.clear)
            self._connection.driver.write_making(source, temporary, making=missing)
            self._made.update(missing)
            yield temporary
            failed.pop_all()

    def _remove_quietly(self, path: str) -> None:
        # Invariant 2: a temporary name that was never published. The first error is the one to report, and
        # a leftover is recognised by its age later.
        with suppress(Exception):
            self._connection.driver.fs.rm_file(path)

    def remove(self, key: str) -> None:
        """Remove an object or a leftover; one that is absent already is fine."""
        connection = self._connection
        # Invariant 8: an object that is not found is gone already, since the store is there.
        with suppress(ObjectNotFound), connection.doing("delete", key):
            # Invariant 5: only gc and repair delete objects, after confirming which copies survive.
            connection.driver.fs.rm_file(connection.path(key))


def _raise_unless_refused(error: BackendError) -> None:
    """Raise an error that says nothing about exclusive creation (invariant 10): an outage answers nothing, a refusal does."""
    if error.retryable or type(error) is not BackendError:
        raise error
