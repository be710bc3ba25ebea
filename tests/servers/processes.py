"""Starts a server as a child process, waits until it answers, and stops it."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import contextmanager, suppress

import pytest

START = 60  # seconds that a server may take to answer, on a busy machine


def free_port():
    """Return a port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command, *, port, folder, env=None):
    """Run `command` until the block ends; the block starts once something listens on `port`.

    What it prints goes to server.log in `folder`, and into the failure if it does not start.
    """
    log = folder / "server.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait(process, port, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process, port, log):
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    pytest.fail(f"{process.args[0]} did not start: {log.read_text(errors='replace')[-4000:]}")
