"""A repair that is killed at its nth change of a file, or that says how many there are.

    python repair_killed.py STORE HUB N

Prints the number of changes if it ends.
"""

from __future__ import annotations

import os
import signal
import sys

from casstore import Store
from casstore.backend.local.syscalls import SystemCalls

CHANGES = ("write", "fsync", "link", "rename", "rename_exclusive", "unlink", "mkdir")


def main(place, hub, last):
    done = 0

    def counted(inner):
        def call(*arguments, **options):
            nonlocal done
            done += 1
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*arguments, **options)

        return call

    with Store(place) as store:
        for name in CHANGES:
            setattr(SystemCalls, name, counted(getattr(SystemCalls, name)))
        report = store.repair(source=hub, dry_run=False)
    assert report.ok
    print(done, flush=True)  # noqa: T201  # read by the test


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
