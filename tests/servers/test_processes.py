"""Servers that tests start end with the block that runs them, and with the test process, whatever ends that."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from servers.processes import free_port, running

PATIENCE = 20.0
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
LISTEN = (
    "import socket, sys, time; held = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
)
TESTS = str(Path(__file__).parents[1])


def command(port):
    """A server below a launcher, as Azurite is below npm's."""
    return [sys.executable, "-I", "-S", "-c", LAUNCHER, "-I", "-S", "-c", LISTEN, str(port)]


def answers(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def assert_ends(port):
    deadline = time.monotonic() + PATIENCE
    while answers(port):
        assert time.monotonic() < deadline, "the server lives on"
        time.sleep(0.01)


def test_a_server_below_a_launcher_ends_with_the_block(tmp_path):
    port = free_port()
    with running(command(port), port=port, folder=tmp_path):
        assert answers(port)
    assert_ends(port)


def test_a_killed_server_is_gone_and_can_be_started_anew(tmp_path):
    port = free_port()
    for _ in range(2):
        with running(command(port), port=port, folder=tmp_path) as server:
            server.kill()
            assert not server.alive
            assert_ends(port)


def test_a_server_ends_with_a_test_process_that_is_killed(tmp_path):
    port = free_port()
    program = (
        "import os, signal, sys; from pathlib import Path; from servers.processes import running\n"
        "with running(sys.argv[3:], port=int(sys.argv[1]), folder=Path(sys.argv[2])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(port), str(tmp_path), *command(port)],
        env={**os.environ, "PYTHONPATH": TESTS},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert_ends(port)


def test_what_a_server_that_does_not_start_printed_is_told(tmp_path):
    with (
        pytest.raises(pytest.fail.Exception, match="no luck"),
        running([sys.executable, "-c", "raise SystemExit('no luck')"], port=free_port(), folder=tmp_path),
    ):
        pytest.fail("it did not start")
