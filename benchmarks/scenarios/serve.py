"""`casstore serve` against nginx with the same files: downloads by huggingface_hub, many clients at once, and a mirror.

Both answer the Hub's API: nginx from files, a list and a description of one commit that were written beforehand. Everything is on
loopback. `cold` is a download into an empty cache, `warm` the same download once more, which moves nothing; each in a fresh process, whose imports are
not counted. Of a server that 16 clients read from, the peak of its resident memory counts. `moved` is what a mirror fetches of a model that differs in one layer
from one that it has, when the other hub is a casstore, too.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks.harness import BenchmarkError, Metric, compare
from benchmarks.serving import ServerNotStarted, casstore_server, sent_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.datasets import Corpus, CorpusModel
    from benchmarks.harness import Harness, Measurement, Sample

COLD = Metric("cold", "MB/s", "higher")
WARM = Metric("warm", "ms", "lower")
MANY = Metric("16 clients", "MB/s", "higher")
MEMORY = Metric("peak RSS with 16 clients", "MB", "lower")
SIZE = Metric("model", "MB", None)
MOVED = Metric("moved for one layer", "MB", "lower")

REPO = "org/model"
_COMMIT = "c0" * 20
_CLIENTS = 16
_SECONDS = 60
_MODULE = "benchmarks.scenarios.serve"

_NGINX = """
{user}
daemon off;
worker_processes auto;
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{}}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {root}/tmp; proxy_temp_path {root}/tmp; fastcgi_temp_path {root}/tmp;
  uwsgi_temp_path {root}/tmp; scgi_temp_path {root}/tmp;
  server {{
    listen 127.0.0.1:{port};
    location /api/ {{ root {root}/site; default_type application/json; try_files $uri.json $uri =404; }}
    location / {{ root {root}/site; add_header X-Repo-Commit {commit}; }}
  }}
}}
"""


def run(harness: Harness) -> list[Measurement]:
    corpus = harness.corpus(harness.options.serve_corpus)
    base, retrained = corpus.models[:2]
    measurements = []
    with harness.scratch("serve") as root, ExitStack() as stack:
        root.mkdir()
        store = root / "store"
        harness.filled_store("casstore", store, corpus)
        subjects = {"casstore": partial(_casstore, harness, store)}
        if shutil.which("nginx"):
            subjects["nginx"] = partial(_nginx, root / "nginx", corpus.path(base))
        else:
            harness.companions["nginx"] = {"missing": "apt-get install nginx"}
        repos = {"casstore": base.name, "nginx": REPO}
        case = f"{corpus.name}, {base.name}"
        urls = {name: stack.enter_context(start()) for name, start in subjects.items()}
        trials = {
            name: partial(_downloads, harness, url, repos[name], corpus, base)
            for name, (url, _) in urls.items()
        }
        measurements += harness.interleave("serve", case, trials)
        trials = {name: partial(_many, start, repos[name], base) for name, start in subjects.items()}
        measurements += harness.interleave("serve", case, trials, repeats=1, warmups=0)
        trials = {"casstore": partial(_mirrored, harness, urls["casstore"][0], base, retrained)}
        measurements += harness.interleave(
            "serve", f"{corpus.name}, {retrained.name}", trials, repeats=1, warmups=0
        )
    return measurements


def _downloads(harness: Harness, url: str, repo: str, corpus: Corpus, model: CorpusModel) -> Sample:
    with harness.scratch("hub") as cache:
        times = []
        for _ in range(2):
            answer = harness.fresh_on(
                (), {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"},
                f"{_MODULE}:download", url=url, repo=repo, cache=str(cache),
            )  # fmt: skip
            times.append(answer["seconds"])
        compare(corpus.path(model), Path(answer["place"]), [file.path for file in model.files])
    return {SIZE: model.size / 1e6, COLD: model.size / 1e6 / times[0], WARM: 1000 * times[1]}


def download(url: str, repo: str, cache: str) -> dict[str, object]:
    """Download a model into a cache with huggingface_hub."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only this process needs it

    started = time.perf_counter()
    place = snapshot_download(repo, endpoint=url, cache_dir=cache, token=False)
    return {"seconds": time.perf_counter() - started, "place": place}


def _many(start: Any, repo: str, model: CorpusModel) -> Sample:
    """Let 16 clients read the largest file of a model from a fresh server at the same time."""
    largest = max(model.files, key=lambda file: file.size)
    with start() as (url, process):
        began = time.perf_counter()
        clients = [
            Thread(target=_read, args=(url, f"/{repo}/resolve/main/{largest.path}")) for _ in range(_CLIENTS)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        took = time.perf_counter() - began
        peak = _peak_of(process)
    return {MANY: _CLIENTS * largest.size / 1e6 / took, MEMORY: peak / 1e6}


def _read(url: str, path: str) -> None:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=_SECONDS)
    connection.request("GET", path)
    answer = connection.getresponse()
    buffer = bytearray(1 << 18)
    left = int(answer.headers["Content-Length"])
    while left:
        count = answer.readinto(buffer)
        if not count:
            raise BenchmarkError(f"{url}{path} ended early.")
        left -= count
    connection.close()


def _mirrored(harness: Harness, url: str, base: CorpusModel, retrained: CorpusModel) -> Sample:
    with harness.scratch("mirror") as store:
        harness.fresh("benchmarks.worker:prepare", peer="casstore", store=str(store))
        moved = []
        with _casstore(harness, store, "--upstream", url) as (mirror, _):
            for model in (base, retrained):
                before = sent_bytes(url)
                for file in model.files:
                    _arrive(mirror, f"/{model.name}/resolve/main/{file.path}")
                moved.append(sent_bytes(url) - before)
    return {SIZE: retrained.size / 1e6, MOVED: moved[1] / 1e6}


def _arrive(url: str, path: str) -> None:
    """Ask for a file until it is there, as often as clients are told to."""
    where = urlsplit(url)
    deadline = time.monotonic() + 10 * _SECONDS
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=_SECONDS)
        connection.request("GET", path)
        answer = connection.getresponse()
        while answer.read(1 << 20):
            pass
        connection.close()
        if answer.status == 200:
            return
        if answer.status != 429:
            break
        time.sleep(1)
    raise BenchmarkError(f"{url}{path} answered {answer.status}.")


@contextmanager
def _casstore(harness: Harness, store: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    try:
        with casstore_server(store, *options, environment=harness.environment) as started:
            yield started
    except ServerNotStarted as error:
        raise BenchmarkError(str(error)) from error


@contextmanager
def _nginx(root: Path, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run nginx on the files of a model, with what the Hub would say of them."""
    if not root.exists():
        _write_site(root / "site", folder)
        (root / "tmp").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    user = "" if os.geteuid() else "user root;"  # its workers read files of ours
    (root / "nginx.conf").write_text(_NGINX.format(root=root, port=port, commit=_COMMIT, user=user))
    with subprocess.Popen(["nginx", "-p", str(root), "-c", str(root / "nginx.conf")], text=True) as process:
        try:
            deadline = time.monotonic() + _SECONDS
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise BenchmarkError(f"nginx does not start: see {root}/error.log.") from error
                    time.sleep(0.02)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()


def _write_site(site: Path, folder: Path) -> None:
    api = site / "api" / "models" / REPO
    (api / "tree").mkdir(parents=True)
    tree = [
        {
            "type": "file",
            "path": file.name,
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.name.encode()).hexdigest(),
        }
        for file in sorted(folder.iterdir())
    ]
    described = {"id": REPO, "sha": _COMMIT, "siblings": [{"rfilename": item["path"]} for item in tree]}
    (api / "revision").mkdir()
    (api / "revision" / "main.json").write_text(json.dumps(described))
    (api / "tree" / f"{_COMMIT}.json").write_text(json.dumps(tree))
    for revision in ("main", _COMMIT):
        place = site / REPO / "resolve" / revision
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder)


def _peak_of(process: subprocess.Popen[str]) -> int:
    """Return the peak resident memory of a server, in bytes: of its largest process."""
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    peaks = []
    for pid in (str(process.pid), *children):
        status = Path(f"/proc/{pid}/status").read_text()
        peaks.append(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
    return max(peaks)
