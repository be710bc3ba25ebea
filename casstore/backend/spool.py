"""Collects a large object on this machine until its key is known, for backends that only accept whole objects."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from casstore.backend.base import BlobWriter, byte_views, validate_key
from casstore.backend.fserrors import translated
from casstore.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

_IN_MEMORY = 8 << 20  # bytes; beyond this the object goes to a temporary file


class SpoolingWriter(BlobWriter):
    """Hands what was written to `send(key, bytes or path)` on commit.

    Keeps up to 8 MiB in memory, more in a file in TMPDIR that only its owner can read. A failed commit may
    be repeated: the spool stays until a commit succeeds or it is discarded.
    """

    def __init__(self, send: Callable[[str, bytes | str], None], url: str) -> None:
        self._send = send
        self._url = url
        self._memory = bytearray()
        self._file: Any = None
        self._closed = False
        self.offset = 0

    def write(self, parts: Sequence[Buffer]) -> None:
        """Append `parts`."""
        self._require_open()
        with translated(f"spool an object for {self._url} on this machine (set TMPDIR to move it)"):
            for view in byte_views(parts):
                if self._file is None and self.offset + view.nbytes > _IN_MEMORY:
                    self._file = tempfile.NamedTemporaryFile(prefix="casstore-")  # noqa: SIM115  # closed by discard
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
            with translated(f"spool an object for {self._url}"):
                self._file.flush()
            self._send(key, self._file.name)
        self.discard()

    def discard(self) -> None:
        """Remove the spool."""
        self._closed = True
        self._memory = bytearray()
        if self._file is not None:
            # Invariant 2: the spool was never visible in the store; closing removes it.
            self._file.close()
            self._file = None

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError(f"This writer of {self._url} was committed or discarded; open another one.")
