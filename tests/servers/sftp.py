"""A real SFTP server on loopback: asyncssh in a process of its own, which serves this machine's files."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from servers.processes import free_port, running


@dataclass(frozen=True)
class SftpServer:
    port: int
    folder: Path  # holds the keys

    def url(self, path):
        """Name a path of this machine as the server shows it."""
        return f"sftp://127.0.0.1:{self.port}{path}"

    @property
    def options(self):
        """What casstore needs to reach this server."""
        return {
            "username": "tester",
            "client_keys": [str(self.folder / "client")],
            "known_hosts": str(self.folder / "known_hosts"),
            "config": None,  # of whoever runs the tests
        }


@contextmanager
def sftp_server(folder, *, without=()):
    """Run a server; `without` names protocol extensions that it does not have."""
    port = free_port()
    with running(prepare(folder, port, without=without), port=port, folder=folder):
        yield SftpServer(port, folder)


def prepare(folder, port, *, without=()):
    """Write the keys of a server on `port` to `folder`; return the command that runs it, any number of times."""
    for name in ("host", "client"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(folder / name)
        key.write_public_key(folder / f"{name}.pub")
    public = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    program = Path(__file__).with_name("sftp_process.py")
    command = [sys.executable, program, str(port), "host", "client.pub", *without]
    return [str(part) for part in command]
