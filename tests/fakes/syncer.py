"""A process that copies all refs of one store to another, in many small steps. It ends by being killed, or done.

    python syncer.py SRC DST

It prints "go" when it has a plan, and each ref that the report names as written. Stores at dirfs:///PATH are
directories that are written as a remote is: spooled, sent whole, renamed.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import fsspec
from fsspec.implementations.local import LocalFileSystem

from casstore.api.store import Store
from casstore.objects.publishing import pack_writer
from casstore.ops.sync import execute, execution, plan_sync


class DirectoryFileSystem(LocalFileSystem):
    """A directory behind fsspec, that casstore takes for a remote."""

    protocol = "dirfs"
    local_file = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("dirfs://"))


fsspec.register_implementation("dirfs", DirectoryFileSystem, clobber=True)


def small_steps():
    """Make a sync of a few megabytes have many points to stop at."""
    pack_writer.PACK_TARGET = pack_writer.REMOTE_PACK_TARGET = 128 << 10
    execution.GROUP_BYTES = 400 << 10


def main(src, dst):
    small_steps()
    with Store(src) as one, Store(dst) as other:
        plan = plan_sync(one, other)
        os.write(1, b"go\n")
        for name in execute(plan).refs:
            os.write(1, f"{name}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
