"""What tells this machine and its user from others: an id, and a folder for each store that they use.

Two ways to one store (a link, a URL) have one folder, unlike in `state.py`: it goes by the store's id alone. What is in it
cannot be found out again, so it is not in the user's cache.
"""

from __future__ import annotations

import contextlib
import os
import platform
import uuid

from casstore.backend.local.mount_types import is_network
from casstore.backend.local.syscalls import SystemCalls
from casstore.machine.user_folders import state_folder

ID_SIZE = 16
"""Bytes of a machine's id."""


def machine_id(*, create: bool = False) -> bytes | None:
    """Return the id of this machine and user, 16 random bytes; None if there is none, and none is made.

    Raises OSError where one is to be made and cannot be written.
    """
    folder = state_folder()
    if folder is None:
        return None
    # Other machines have the same home directory, perhaps, but not the same name.
    is_shared = is_network(SystemCalls().file_system_type(folder))
    path = os.path.join(folder, f"machine-id.{platform.node()}" if is_shared else "machine-id")
    found = _read(path)
    if found is None and create:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _write(path, os.urandom(ID_SIZE))
        found = _read(path)
    return found


def store_folder(store_id: str) -> str | None:
    """Return the folder in which this machine notes how it uses the store with this id; None where there is none.

    It need not exist.
    """
    folder = state_folder()
    return None if folder is None else os.path.join(folder, "stores", store_id)


def _read(path: str) -> bytes | None:
    try:
        with open(path, encoding="ascii") as file:
            found = bytes.fromhex(file.read())
    except (OSError, ValueError):
        return None  # Without an id, nothing is private to this machine.
    return found if len(found) == ID_SIZE else None


def _write(path: str, value: bytes) -> None:
    """Give the file its content, unless another process was faster; a damaged one is replaced."""
    temporary = f"{path}.{uuid.uuid4().hex}"
    with open(temporary, "x", encoding="ascii") as file:
        file.write(value.hex())
        file.flush()
        os.fsync(file.fileno())  # As in invariant 2: a store is marked with this id, which must not be lost.
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
            return
        if _read(path) is None:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            # As in invariant 2: a file without its final name does not stay.
            os.unlink(temporary)
