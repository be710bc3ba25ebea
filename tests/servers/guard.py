"""Runs a server until standard input ends, which it also does when the process that holds its other end is killed.

Then, or when the server ends by itself, the whole process group gets SIGKILL: launchers such as npm's leave processes
below them that no signal to the launcher reaches. Whoever starts this makes it the leader of a session.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def end_group():
    os.killpg(0, signal.SIGKILL)


def end_with(process):
    process.wait()
    end_group()


if __name__ == "__main__":
    started = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=end_with, args=(started,), daemon=True).start()
    sys.stdin.buffer.read()
    end_group()
