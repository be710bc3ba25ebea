"""Collects a large object on this machine until its key is known, for backends that only accept whole objects."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from casstore.backend.base import BlobWriter, byte_views, validate_key
from casstore.backend.oserrors import from_os_error
from casstore.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Buffer

_IN_MEMORY = 8 << 20  # bytes; beyond this the object goes to a temporary file
_DESCRIPTORS = "/proc/self/fd"


def new_file(descriptors: str = _DESCRIPTORS) -> Any:
    """Make a temporary file.

    Where the system can reopen one without a name, by its number in the folder `descriptors`, it vanishes with this
    process, however that ends.
    """
    if os.path.isdir(descriptors):
        return tempfile.TemporaryFile(prefix="casstore-")
    return tempfile.NamedTemporaryFile(prefix="casstore-")


class SpoolingWriter(BlobWriter):
    """Hands what was written to `send(key, bytes or path)` on commit.

    Keeps up to 8 MiB in memory, more in a file in TMPDIR that only its owner can read, which `make_file` makes. A
    failed commit may be repeated: the spool stays until a commit succeeds or it is discarded.
    """

    def __init__(
        self, send: Callable[[str, bytes | str], None], url: str, *, make_file: Callable[[], Any] = new_file
    ) -> None:
        self._send = send
        self._url = url
        self._make_file = make_file
        self._memory = bytearray()
        self._file: Any = None
        self._closed = False
        self.offset = 0

    def write(self, parts: Sequence[Buffer]) -> None:
        """Append `parts`."""
        self._require_open()
        with self._spooling():
            for view in byte_views(parts):
                if self._file is None and self.offset + view.nbytes > _IN_MEMORY:
                    self._file = self._make_file()
                    self._file.write(self._memory)
                    self._memory = bytearray()
                if self._file is None:
                    self._memory += view
                else:
                    self._file.write(view)
                self.offset += view.nbytes

    def commit(self, key: str) -> None:
        """Send the object; raises ObjectExists when the key is taken."""
        self._require_open()
        validate_key(key)
        if self._file is None:
            self._send(key, bytes(self._memory))
        else:
            with self._spooling():
                self._file.flush()
            name = self._file.name
            self._send(key, name if isinstance(name, str) else f"{_DESCRIPTORS}/{name}")
        self.discard()

    def discard(self) -> None:
        """Remove the spool."""
        self._closed = True
        self._memory = bytearray()
        if self._file is not None:
            # Invariant 2: the spool was never visible in the store; closing removes it. What it could not write
            # on a full disk is tried once more by closing.
            with suppress(OSError):
                self._file.close()
            self._file = None

    @contextmanager
    def _spooling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  # only for the message
            if error.errno == errno.ENOENT:
                # What tempfile raises when it can write to none of the usual folders.
                error = OSError(errno.ENOSPC, "no temporary folder can be written to")
            raise from_os_error(
                error,
                f"keep what goes to {self._url} in {place} until it is sent",
                retryable=False,
                place=place,
                elsewhere="set TMPDIR to a folder with room",
            ) from error

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError(f"This writer of {self._url} was committed or discarded; open another one.")
