"""`casstore serve` as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fakes.command_line import run
from fakes.hub_server import raw


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_until_a_signal(store, number, code):
    process = subprocess.Popen(
        [sys.executable, "-m", "casstore", "serve", "--port", "0", "--json", "--store", store.backend.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            lines = [process.stdout.readline() for _ in range(5)]
            said = json.loads("".join(lines))
            app = SimpleNamespace(url=said["url"])
            assert raw(app, "GET", "/api/models/org/minilm").status == 200
            assert raw(app, "GET", "/none\x1b[31m".replace("\x1b", "%1b")).status == 404
        finally:
            process.send_signal(number)
        _, log = process.communicate(timeout=20)
    assert process.returncode == code
    assert '127.0.0.1 "GET /api/models/org/minilm" 200' in log
    assert "Traceback" not in log
    assert "\x1b" not in log


def test_what_it_cannot_do(store, tmp_path):
    place = ("--store", store.backend.url)
    with open(tmp_path / "tokens", "w") as file:
        file.write("short\n")
    _, error = run("serve", *place, "--token-file", tmp_path / "tokens", code=1)
    assert "could be guessed" in error
    _, error = run("serve", *place, "--host", "192.0.2.1", code=1)
    assert "Cannot listen at 192.0.2.1 port 8000" in error
    _, error = run("serve", "--store", tmp_path / "none", code=1)
    assert "casstore init" in error


def test_without_its_packages(tmp_path):
    """A package that is not there is named with the extra that brings it."""
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('none', name='starlette')")
    done = subprocess.run(
        [sys.executable, "-m", "casstore", "serve"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        1,
        "casstore: casstore serve needs packages of its own: install casstore[serve].\n",
    )
