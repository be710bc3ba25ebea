"""Starts a server as a child process, waits until it answers, and stops it with everything that it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

START = 60  # seconds that a server may take to answer, on a busy machine


def free_port():
    """Return a port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A command and all that it starts, in a session of their own.

    It ends with the process that made it, however that one ends: see guard.py.
    """

    def __init__(self, command, *, folder, env=None):
        self.command = command
        guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
        self.log = folder / "server.log"
        with open(self.log, "wb") as output:
            self._guard = subprocess.Popen(
                [*guard, *command],
                cwd=folder,
                env=env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def alive(self):
        return self._guard.poll() is None

    def kill(self):
        """Send SIGKILL to every process of the server; return once its own is gone."""
        if self.alive:
            os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()
        self._guard.stdin.close()


@contextmanager
def running(command, *, port, folder, env=None):
    """Run `command` until the block ends; the block starts once something listens on `port`.

    What it prints goes to server.log in `folder`, and into the failure if it does not start.
    """
    server = Server(command, folder=folder, env=env)
    try:
        _wait(server, port)
        yield server
    finally:
        server.kill()


def _wait(server, port):
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and server.alive:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    printed = server.log.read_text(errors="replace")[-4000:]
    pytest.fail(f"{server.command[0]} did not start: {printed}")
