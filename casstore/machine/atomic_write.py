"""Writes a file of this machine outside of any store: whole or not at all, in the place of the one that was there."""

from __future__ import annotations

import os
import uuid
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def atomic_write(
    path: str | os.PathLike[str], *, mode: int = 0o666, durable: bool = False
) -> Iterator[BinaryIO]:
    """Give a new file, which replaces `path` at the end of the block; if the block fails, it is removed.

    `mode` is what the umask leaves of it. With `durable` the bytes are fsynced, so that after a power failure the file is
    the old or the new one, and never empty. Raises OSError.
    """
    # A fixed length: derived from the name, it could be too long for a file system.
    temporary = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.casstore")
    with ExitStack() as failed:
        with open(
            temporary, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, mode)
        ) as file:
            # As in invariant 2: a file without its final name does not count, and does not stay.
            failed.callback(_remove_quietly, temporary)
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())  # As in invariant 2: the bytes are durable before the name.
        os.replace(
            temporary, path
        )  # Not a store's file, so it may be replaced: readers see the old one or the new one.
        failed.pop_all()


def _remove_quietly(path: str) -> None:
    # As in invariant 2: the first error is the one to report, and a leftover only takes space.
    with suppress(OSError):
        os.unlink(path)
