"""What carries models to a remote and back: casstore, and what people use instead. Each runs in a process on one machine.

A carrier's machine has a `home`, for what the carrier keeps there (a local store or repository), and models as plain
folders. `fill` is what a pipeline has done before it shares, and not timed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.network.link import SERVER_ADDRESS
from benchmarks.network.servers import S3_KEY, S3_SECRET, Remote
from benchmarks.peers.base import Model, PeerMissing, import_peer, model_files
from benchmarks.peers.programs import find_program, run_program
from casstore import Store, execute_sync, plan_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

Told = dict[str, float]
"""What a carrier says of a run beside its time."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a carrier works: a folder of its own on this machine, and the remote."""

    home: Path
    remote: Remote


class Carrier(ABC):
    """One way to share models. Objects are made in the process that is timed."""

    name: ClassVar[str]
    setting: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    """The remotes that it can go to."""

    @abstractmethod
    def version(self) -> str:
        """Return its version; raise PeerMissing if it is not here."""

    def load(self, site: Site) -> None:  # noqa: B027  # many need nothing here
        """Import what a run needs. Not timed; programs load within their time."""

    def prepare(self, site: Site) -> None:  # noqa: B027  # many need nothing here
        """Make what both sides need before the first model. Not timed."""

    def fill(self, site: Site, model: Model) -> None:  # noqa: B027  # many need nothing here
        """Take a model into what this machine keeps. Not timed."""

    @abstractmethod
    def push(self, site: Site, models: Sequence[Model]) -> Told:
        """Bring models, all filled in before, to the remote, which may have them already."""

    @abstractmethod
    def pull(self, site: Site, names: Sequence[str], dest: Path) -> Told:
        """Fetch models to `dest`/NAME as plain files, on a machine that may have fetched them before."""


class Casstore(Carrier):
    """`plan_sync` and `execute` between a local store and the remote one; a pull ends with a checkout."""

    name = "casstore"
    setting = "library, durability full on the local side"
    kinds = ("folder", "s3", "azure", "sftp")

    def version(self) -> str:
        """The version of the package that is imported."""
        return str(import_peer("casstore", install="pip install .").__version__)

    def load(self, site: Site) -> None:
        """The file system, and casstore's modules, which load when they are first used."""
        import_peer("casstore.ops.sync", install="pip install .")
        extras = {"s3": "s3fs", "azure": "adlfs", "sftp": "sshfs"}
        if site.remote.kind in extras:
            import_peer(extras[site.remote.kind], install=f"pip install '.[{site.remote.kind}]'")

    def fill(self, site: Site, model: Model) -> None:
        """`Store.add`."""
        with Store(site.home / "store", create=True) as store:
            store.add(model.folder, ref=f"models/{model.name}")

    def push(self, site: Site, models: Sequence[Model]) -> Told:
        """What `casstore push` does, opening of both stores included."""
        refs = [f"models/{model.name}" for model in models]
        with (
            Store(site.home / "store") as store,
            Store(site.remote.url, create=True, **site.remote.options) as far,
        ):
            report = execute_sync(plan_sync(store, far, refs))
        return {"missing": report.bytes_missing, "moving_seconds": report.seconds}

    def pull(self, site: Site, names: Sequence[str], dest: Path) -> Told:
        """What `casstore pull` and `casstore get` do."""
        started = time.perf_counter()
        with Store(site.home / "store", create=True) as store:
            with Store(site.remote.url, read_only=True, **site.remote.options) as far:
                report = execute_sync(plan_sync(far, store, [f"models/{name}" for name in names]))
            seconds = time.perf_counter() - started
            for name in names:
                if not (dest / name).exists():
                    store.get(f"models/{name}", dest / name)
        return {"missing": report.bytes_missing, "pull_seconds": seconds, "moving_seconds": report.seconds}


class WholeFiles(Carrier):
    """Every file of every model, uploaded one after another: what Olive's shared cache does.

    Like it, a pull fetches every file of the model; a model that is there already is not asked for.
    """

    name = "whole-files"
    setting = "every file of a model, one after another, as Olive's shared cache does"
    kinds = ("azure", "s3")

    def version(self) -> str:
        """That of the client library for Azure."""
        return str(import_peer("azure.storage.blob", install="pip install azure-storage-blob").__version__)

    def load(self, site: Site) -> None:
        """The client library."""
        library = "boto3" if site.remote.kind == "s3" else "azure.storage.blob"
        import_peer(library, install="pip install '.[bench]'")

    def push(self, site: Site, models: Sequence[Model]) -> Told:
        """Upload every file."""
        with _Blobs(site.remote) as blobs:
            for model in models:
                for path in model_files(model.folder):
                    blobs.upload(f"{model.name}/{path}", model.folder / path)
        return {}

    def pull(self, site: Site, names: Sequence[str], dest: Path) -> Told:
        """Download every file of models that are not here."""
        with _Blobs(site.remote) as blobs:
            for name in names:
                if (dest / name).exists():
                    continue
                for key in blobs.names(f"{name}/"):
                    (dest / key).parent.mkdir(parents=True, exist_ok=True)
                    blobs.download(key, dest / key)
        return {}


class _Blobs:
    """Azure's and Amazon's own client libraries, as far as whole files need them."""

    def __init__(self, remote: Remote) -> None:
        self._place = remote.place
        if remote.kind == "azure":
            library = import_peer("azure.storage.blob", install="pip install azure-storage-blob")
            self._azure = library.ContainerClient.from_connection_string(
                remote.options["connection_string"], remote.place
            )
            self._s3 = None
        else:
            library = import_peer("boto3", install="pip install boto3")
            keys = {"aws_access_key_id": S3_KEY, "aws_secret_access_key": S3_SECRET}
            self._s3 = library.client("s3", endpoint_url=remote.endpoint, region_name="us-east-1", **keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        (self._s3 or self._azure).close()

    def upload(self, key: str, path: Path) -> None:
        if self._s3 is not None:
            self._s3.upload_file(str(path), self._place, key)
            return
        with path.open("rb") as file:
            self._azure.upload_blob(key, file, overwrite=True)

    def names(self, prefix: str) -> list[str]:
        if self._s3 is not None:
            found = self._s3.list_objects_v2(Bucket=self._place, Prefix=prefix)["Contents"]
            return [item["Key"] for item in found]
        return list(self._azure.list_blob_names(name_starts_with=prefix))

    def download(self, key: str, path: Path) -> None:
        if self._s3 is not None:
            self._s3.download_file(self._place, key, str(path))
            return
        with path.open("wb") as file:
            self._azure.download_blob(key).readinto(file)


class Rclone(Carrier):
    """`rclone copy` of plain folders, both ways."""

    name = "rclone"
    setting = "copy of plain files, 4 transfers at once"
    kinds = ("s3", "sftp")

    def __init__(self) -> None:
        self._program = find_program("rclone", install="apt-get install rclone")

    def version(self) -> str:
        """What `rclone version` says, the number alone."""
        return run_program([self._program, "version"]).split()[1]

    def push(self, site: Site, models: Sequence[Model]) -> Told:
        """One `rclone copy` for each folder."""
        for model in models:
            self._copy(site, str(model.folder), f"there:{site.remote.place}/{model.name}")
        return {}

    def pull(self, site: Site, names: Sequence[str], dest: Path) -> Told:
        """One `rclone copy` for each model."""
        for name in names:
            self._copy(site, f"there:{site.remote.place}/{name}", str(dest / name))
        return {}

    def _copy(self, site: Site, source: str, target: str) -> None:
        remote = site.remote
        settings = {
            "s3": {
                "type": "s3",
                "provider": "Other",
                "access_key_id": S3_KEY,
                "secret_access_key": S3_SECRET,
                "endpoint": remote.endpoint,
                "no_check_bucket": "true",
            },
            "sftp": {
                "type": "sftp",
                "host": SERVER_ADDRESS,
                "port": remote.endpoint.rpartition(":")[2],
                "user": "root",
                "key_file": remote.secrets.get("key", ""),
                "known_hosts_file": remote.secrets.get("known_hosts", ""),
                "shell_type": "none",
            },
        }[remote.kind]
        variables = {f"RCLONE_CONFIG_THERE_{name.upper()}": value for name, value in settings.items()}
        command = [self._program, "copy", "--config", str(site.home / "rclone.conf"), source, target]
        run_program(command, variables=variables)


class AwsSync(Carrier):
    """`aws s3 sync` of plain folders, both ways."""

    name = "aws-s3-sync"
    setting = "sync of plain files, as installed"
    kinds = ("s3",)

    def __init__(self) -> None:
        self._program = find_program("aws", install="apt-get install awscli")

    def version(self) -> str:
        """What `aws --version` says, the number alone."""
        return run_program([self._program, "--version"]).split()[0].partition("/")[2]

    def push(self, site: Site, models: Sequence[Model]) -> Told:
        """One `aws s3 sync` for each folder."""
        for model in models:
            self._sync(site.remote, str(model.folder), f"s3://{site.remote.place}/{model.name}")
        return {}

    def pull(self, site: Site, names: Sequence[str], dest: Path) -> Told:
        """One `aws s3 sync` for each model."""
        for name in names:
            self._sync(site.remote, f"s3://{site.remote.place}/{name}", str(dest / name))
        return {}

    def _sync(self, remote: Remote, source: str, target: str) -> None:
        command = [self._program, "s3", "sync", "--only-show-errors", "--endpoint-url", remote.endpoint]
        run_program([*command, source, target], variables=remote.variables)


class ResticCopy(Carrier):
    """`restic copy` from this machine's repository to one on the remote; `restic restore` from there."""

    name = "restic"
    setting = (
        "copy between repositories with the same chunker parameters; restore from the remote one; zstd auto"
    )
    kinds = ("s3", "sftp")

    def __init__(self) -> None:
        self._program = find_program("restic", install="apt-get install restic")

    def version(self) -> str:
        """What `restic version` says, the number alone."""
        return run_program([self._program, "version"]).split()[1]

    def prepare(self, site: Site) -> None:
        """`restic init` on both sides, with the same chunker parameters, without which nothing deduplicates."""
        self._run(["--repo", str(site.home / "repository")], site.remote, "init")
        other = ["--from-repo", str(site.home / "repository"), "--copy-chunker-params"]
        self._run(self._far(site.remote), site.remote, "init", *other)

    def fill(self, site: Site, model: Model) -> None:
        """`restic backup`, tagged with the model's name."""
        self._run(
            ["--repo", str(site.home / "repository"), "--cache-dir", str(site.home / "cache")],
            None,
            *("backup", "--quiet", "--tag", model.name, model.name),
            cwd=model.folder.parent,
        )

    def push(self, site: Site, models: Sequence[Model]) -> Told:
        """One `restic copy` for all snapshots of these models."""
        tags = [word for model in models for word in ("--tag", model.name)]
        far = [*self._far(site.remote), "--cache-dir", str(site.home / "cache")]
        self._run(far, site.remote, "copy", "--quiet", "--from-repo", str(site.home / "repository"), *tags)
        return {}

    def pull(self, site: Site, names: Sequence[str], dest: Path) -> Told:
        """One `restic restore` for each model that is not here."""
        far = [*self._far(site.remote), "--cache-dir", str(site.home / "cache")]
        for name in names:
            if not (dest / name).exists():
                self._run(
                    far, site.remote, "restore", "latest", "--quiet", "--tag", name, "--target", str(dest)
                )
        return {}

    def _far(self, remote: Remote) -> list[str]:
        if remote.kind == "s3":
            return ["--repo", f"s3:{remote.endpoint}/{remote.place}/repository"]
        port = remote.endpoint.rpartition(":")[2]
        login = (
            f"ssh -p {port} -i {remote.secrets['key']} -o UserKnownHostsFile={remote.secrets['known_hosts']} "
            f"root@{SERVER_ADDRESS} -s sftp"
        )
        return [
            "--repo",
            f"sftp:root@{SERVER_ADDRESS}:{remote.place}/repository",
            "-o",
            f"sftp.command={login}",
        ]

    def _run(
        self, repository: list[str], remote: Remote | None, *arguments: str, cwd: Path | None = None
    ) -> None:
        variables = {"RESTIC_PASSWORD": "benchmark", "RESTIC_FROM_PASSWORD": "benchmark"}
        if remote is not None:
            variables |= remote.variables
        run_program([self._program, *repository, *arguments], cwd=cwd, variables=variables)


CARRIERS: dict[str, type[Carrier]] = {
    carrier.name: carrier for carrier in (Casstore, WholeFiles, Rclone, AwsSync, ResticCopy)
}
"""Every carrier by name."""


def describe(carrier: str) -> dict[str, Any]:
    """Return what remotes a carrier can go to, and its version and setting or why it is missing."""
    kinds = CARRIERS[carrier].kinds
    try:
        tool = CARRIERS[carrier]()
        return {"kinds": kinds, "version": tool.version(), "setting": tool.setting}
    except PeerMissing as error:
        return {"kinds": kinds, "missing": str(error)}


def prepare(carrier: str, site: dict[str, Any]) -> None:
    """Make what both sides need."""
    there = _site(site)
    there.home.mkdir(parents=True, exist_ok=True)
    CARRIERS[carrier]().prepare(there)


def fill(carrier: str, site: dict[str, Any], models: list[tuple[str, str]]) -> None:
    """Take models, given as [name, folder], into what the machine keeps."""
    tool, there = CARRIERS[carrier](), _site(site)
    for name, folder in models:
        tool.fill(there, Model(name, Path(folder)))


def push(carrier: str, site: dict[str, Any], models: list[tuple[str, str]]) -> Told:
    """Push models, given as [name, folder]; return the seconds that it took, and what the carrier says."""
    tool, there = CARRIERS[carrier](), _site(site)
    given = [Model(name, Path(folder)) for name, folder in models]
    return _timed(tool, there, lambda: tool.push(there, given))


def pull(carrier: str, site: dict[str, Any], names: list[str], dest: str) -> Told:
    """Pull models to plain files; return the seconds that it took, and what the carrier says."""
    tool, there = CARRIERS[carrier](), _site(site)
    return _timed(tool, there, lambda: tool.pull(there, names, Path(dest)))


def _timed(tool: Carrier, site: Site, share: Callable[[], Told]) -> Told:
    tool.load(site)
    started = time.perf_counter()
    told = share()
    return {"seconds": time.perf_counter() - started, **told}


def _site(given: dict[str, Any]) -> Site:
    return Site(Path(given["home"]), Remote(**given["remote"]))
