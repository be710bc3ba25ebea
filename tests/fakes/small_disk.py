"""A real file system of a few megabytes, with as many bytes or files free as a test wants."""

from __future__ import annotations

import itertools
import os
import subprocess
from contextlib import contextmanager, suppress

import pytest

_names = itertools.count()


class SmallDisk:
    """A tmpfs at `place`. Fillers take what is free; `store` is where a test puts its store."""

    def __init__(self, place):
        self.place = place
        self.store = place / "store"

    @property
    def free(self):
        """Bytes that are free."""
        found = os.statvfs(self.place)
        return found.f_bavail * found.f_frsize

    def leave(self, size):
        """Fill the disk but for so many bytes."""
        with open(self.place / f"filler{next(_names)}", "wb") as file:
            if self.free > size:
                os.posix_fallocate(file.fileno(), 0, self.free - size)
        assert self.free == size

    def use_up_files(self):
        """Make empty files until none fits."""
        with suppress(OSError):
            while True:
                (self.place / f"filler{next(_names)}").touch(exist_ok=False)
        assert os.statvfs(self.place).f_favail == 0


def missing(what):
    """Skip a test for what this machine lacks; in CI, where nothing is skipped, fail instead."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; in CI (the environment has CI set) every test must run")
    pytest.skip(what)


@contextmanager
def small_disk(place, *, size, files=None):
    """Mount a small disk, as only root can: for others, tests of it are skipped, but fail in CI."""
    if os.geteuid() != 0:
        missing("mounting a small file system takes root")
    place.mkdir()
    options = f"size={size}" + (f",nr_inodes={files}" if files else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
