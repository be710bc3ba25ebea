"""Folders for unfinished files, beside the place where they will get their name."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAKING = ".casstore-saving-"


@contextlib.contextmanager
def making_folder(folder: str) -> Iterator[str]:
    """Give a temporary folder in `folder`, deleted in the end; also delete what crashed writers left there."""
    for name in os.listdir(folder):
        if name.startswith(MAKING):
            with contextlib.suppress(OSError), _locked(os.path.join(folder, name)):
                # Its writer has ended, or it would hold the lock: these files are incomplete (invariant 10).
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    while True:
        place = os.path.join(folder, f"{MAKING}{uuid.uuid4().hex}")
        os.mkdir(place, 0o700)
        with contextlib.ExitStack() as held:
            with contextlib.suppress(
                OSError
            ):  # Where folders cannot be locked, none is considered a leftover.
                held.enter_context(_locked(place))
            if not os.path.isdir(place):
                continue  # Another process deleted it as a leftover before it was locked (invariant 10); make another one.
            try:
                yield place
            finally:
                shutil.rmtree(place, ignore_errors=True)
            return


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
