"""Processes in which everything is imported already, for a run of the benchmarks whose figures nobody reads.

    python warm_processes.py SOCKET

forks a process for each request on the socket. Imports are most of what a fresh process does there: the run has a
hundred of them.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = (
    "benchmarks.worker",
    *(f"benchmarks.scenarios.{name}" for name in ("concurrent", "growth", "read_tensor", "refs", "size")),
    *("benchmarks.network.carriers", "casstore.ops.check", "casstore.ops.sync"),
)
NEEDED_FAR = ("boto3", "s3fs", "casstore.backend.fsspec.backend", "casstore.backend.fsspec.drivers.s3")
"""What processes need besides that are on another machine than the store."""


class WarmProcesses:
    """Stands in for Harness.fresh_on; `start` runs a command that ends with this process (servers.processes.Server)."""

    def __init__(self, start):
        self._start = start
        self._folder = Path(tempfile.mkdtemp(prefix="warm-"))  # sockets need short paths
        self._running = {}
        self._lock = threading.Lock()

    def call(self, harness, machine, variables, function, **arguments):
        """Call "MODULE:NAME" in a new process of a machine; return its answer, or raise what it printed."""
        request = {
            "environment": {**harness.environment, **variables},
            "request": {"function": function, "arguments": arguments},
        }
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(self._socket_of(tuple(machine)))
            line.sendall(json.dumps(request).encode())
            line.shutdown(socket.SHUT_WR)
            with line.makefile("rb") as answer:
                code, printed, complaints = json.load(answer)
        if code:
            from benchmarks.harness import BenchmarkError  # noqa: PLC0415  # the program below is not a test

            raise BenchmarkError(f"{function} failed with {arguments}:\n{complaints or printed}")
        return json.loads(printed.splitlines()[-1])

    def _socket_of(self, machine):
        with self._lock:
            if machine not in self._running:
                path = self._folder / str(len(self._running))
                command = [*machine, sys.executable, __file__, str(path), *(NEEDED_FAR if machine else ())]
                server = self._start(command, folder=self._folder)
                while not path.exists():
                    assert server.alive, server.log.read_text()
                    time.sleep(0.01)
                self._running[machine] = (str(path), server)
            return self._running[machine][0]

    def close(self):
        for _, server in self._running.values():
            server.kill()
        shutil.rmtree(self._folder)


def serve(path):
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{path}.new")
        door.listen(16)
        os.rename(f"{path}.new", path)
        while True:
            line, _ = door.accept()
            if os.fork() == 0:
                door.close()
                with line:
                    answer(line)
                os._exit(0)
            line.close()


def answer(line):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with line.makefile("rb") as whole:
        asked = json.load(whole)
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as complaints:
        pid = os.fork()
        if pid == 0:
            work(asked, printed, complaints)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (printed, complaints):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    line.sendall(json.dumps([code, *texts]).encode())


def work(asked, printed, complaints):
    """Be the process that was asked for."""
    try:
        os.chdir(ROOT)
        os.dup2(printed.fileno(), 1)
        os.dup2(complaints.fileno(), 2)
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.stdin = io.StringIO(json.dumps(asked["request"]))
        sys.modules["benchmarks.worker"].main()
    except BaseException:  # noqa: BLE001  # as Python itself ends
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    for module in (*NEEDED, *sys.argv[2:]):
        importlib.import_module(module)
    os.fsync = os.sync = lambda *_: None  # what they write goes with the run
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    serve(sys.argv[1])
