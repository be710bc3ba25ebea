"""Real storage servers, each of which runs on the server's side of the links: S3 (moto), Azure Blob (Azurite), SFTP (OpenSSH).

`Remote` says where a server is and how each kind of client is let in; it is JSON, for the processes on the machines.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.network.link import SERVER, SERVER_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from benchmarks.network.link import Network

S3_KEY, S3_SECRET = "testing", "not-a-real-secret"  # moto takes any
AZURE_ACCOUNT = "devstoreaccount1"  # Azurite's own, with a key that everybody knows
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

FOLDER = "folder"
_START_SECONDS = 60


class ServerMissing(Exception):
    """A server cannot run here; the text says what to install."""


@dataclass(frozen=True, slots=True)
class Remote:
    """An empty place on a server: its kind, its address, a bucket, container or folder, and what lets clients in.

    `variables` belong into the environment of programs that go there; `log` is where the server writes what it answers.
    """

    kind: str
    endpoint: str
    place: str
    secrets: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    log: str | None = None

    @property
    def requests(self) -> int | None:
        """How many requests the server has answered, None if it does not say."""
        return None if self.log is None else Path(self.log).read_bytes().count(b' HTTP/1.1" ')

    @property
    def url(self) -> str:
        """The place as fsspec names it."""
        match self.kind:
            case "s3":
                return f"s3://{self.place}/store"
            case "azure":
                return f"az://{self.place}/store"
            case "sftp":
                return f"{self.endpoint}{self.place}/store"
        return f"{self.place}/store"

    @property
    def options(self) -> dict[str, Any]:
        """What an fsspec file system needs to get there."""
        match self.kind:
            case "s3":
                return {"key": S3_KEY, "secret": S3_SECRET, "endpoint_url": self.endpoint}
            case "azure":
                return {"connection_string": self.secrets["connection_string"]}
            case "sftp":
                return {
                    "username": "root",
                    "client_keys": [self.secrets["key"]],
                    "known_hosts": self.secrets["known_hosts"],
                    "config": None,
                }
        return {}


@contextmanager
def serving(kind: str, network: Network | None, folder: Path) -> Iterator[Remote]:
    """Run a server of this kind with one empty place, its data in `folder`; raise ServerMissing if it cannot run.

    A folder that all machines see needs no server, and no network.
    """
    folder.mkdir(parents=True)
    if network is None or kind == FOLDER:
        yield Remote(FOLDER, "", str(folder))
    else:
        with _SERVERS[kind](network, folder) as remote:
            yield remote


@contextmanager
def _s3(network: Network, folder: Path) -> Iterator[Remote]:
    """Serve S3: moto's server, in Python."""
    port, endpoint = 5000, f"http://{SERVER_ADDRESS}:5000"
    variables = {
        "AWS_ACCESS_KEY_ID": S3_KEY,
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "TMPDIR": str(folder),
    }
    program = Path(__file__).with_name("s3_process.py")
    command = [sys.executable, "-W", "ignore", str(program), SERVER_ADDRESS, str(port)]
    with _process(network, command, port, folder, variables) as log:
        _on_server(
            network,
            "import boto3, sys; "
            "boto3.client('s3', endpoint_url=sys.argv[1]).create_bucket(Bucket=sys.argv[2])",
            *(endpoint, "models"),
            variables=variables,
        )
        del variables["TMPDIR"]
        yield Remote("s3", endpoint, "models", variables=variables, log=str(log))


@contextmanager
def _azure(network: Network, folder: Path) -> Iterator[Remote]:
    """Serve Azure Blob Storage: Azurite, Microsoft's emulator."""
    program = shutil.which("azurite-blob")
    if program is None:
        raise ServerMissing("azurite-blob is not installed: npm install --global azurite@3")
    port, endpoint = 10000, f"http://{SERVER_ADDRESS}:10000/{AZURE_ACCOUNT}"
    command = [program, "--blobHost", SERVER_ADDRESS, "--blobPort", str(port), "--location", str(folder)]
    command += ["--disableTelemetry", "--skipApiVersionCheck"]
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};"
        f"BlobEndpoint={endpoint};"
    )
    with _process(network, command, port, folder, {}) as log:
        _on_server(
            network,
            "import sys; from azure.storage.blob import ContainerClient as Client; "
            "Client.from_connection_string(sys.argv[1], sys.argv[2]).create_container()",
            *(connection, "models"),
            variables={},
        )
        yield Remote("azure", endpoint, "models", {"connection_string": connection}, log=str(log))


@contextmanager
def _sftp(network: Network, folder: Path) -> Iterator[Remote]:
    """Serve SFTP: OpenSSH's server, with a key for one user."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise ServerMissing("sshd is not installed: apt-get install openssh-server")
    port = 2222
    for name in ("host", "client"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(command, check=True)
    host = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[{SERVER_ADDRESS}]:{port} {host}")
    settings = {
        "ListenAddress": f"{SERVER_ADDRESS}:{port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "client.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "PidFile": "none",
        "Subsystem": "sftp internal-sftp",
        "MaxStartups": "100",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd does not start without.
    (folder / "models").mkdir()
    secrets = {"key": str(folder / "client"), "known_hosts": str(folder / "known_hosts")}
    with _process(network, [program, "-D", "-e", "-f", str(folder / "sshd_config")], port, folder, {}):
        yield Remote("sftp", f"sftp://{SERVER_ADDRESS}:{port}", str(folder / "models"), secrets)


_SERVERS: dict[str, Callable[[Network, Path], AbstractContextManager[Remote]]] = {
    "s3": _s3,
    "azure": _azure,
    "sftp": _sftp,
}
KINDS = (FOLDER, *_SERVERS)


def _on_server(network: Network, program: str, *arguments: str, variables: Mapping[str, str]) -> None:
    command = [*network.command(SERVER), sys.executable, "-c", program, *arguments]
    subprocess.run(command, check=True, env={**os.environ, **variables})


@contextmanager
def _process(
    network: Network, command: Sequence[str], port: int, folder: Path, variables: Mapping[str, str]
) -> Iterator[Path]:
    """Run a server on its machine until the block ends; give the file with what it prints."""
    log = folder / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*network.command(SERVER), *command],
            cwd=folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait(network, process, port, log)
            yield log
        finally:
            # The whole group: Azurite's launcher leaves the server's process behind.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait(network: Network, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    probe = f"import socket; socket.create_connection(({SERVER_ADDRESS!r}, {port}), 1)"
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        done = subprocess.run(
            [*network.command(SERVER), sys.executable, "-c", probe], capture_output=True, check=False
        )
        if done.returncode == 0:
            return
        time.sleep(0.1)
    raise ServerMissing(f"{process.args} did not start: {log.read_text(errors='replace')[-2000:]}")
