"""Runs trials in fresh processes, peer after peer in turns, and keeps every sample with what it was taken on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks import datasets
from benchmarks.network.carriers import CARRIERS
from benchmarks.network.link import Shape
from benchmarks.network.servers import KINDS as REMOTES
from benchmarks.peers import PEERS
from benchmarks.peers.base import fsync_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from benchmarks.datasets import Corpus

REPOSITORY = Path(__file__).resolve().parent.parent
SCHEMA = 1
_PACKAGES = ("casstore", "numpy", "blake3", "zstandard", "pyfastcdc", "msgpack")
_BLOCK = 1 << 24


class BenchmarkError(Exception):
    """A run that must not be reported: a failed trial, or outputs that are not what went in."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number means; `better` says which way is good, None that neither is."""

    name: str
    unit: str
    better: Literal["higher", "lower"] | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """All samples of one metric, of one subject (a peer, mostly), in one case (a corpus, mostly)."""

    scenario: str
    case: str
    subject: str
    metric: Metric
    samples: tuple[float, ...]

    def as_json(self) -> dict[str, object]:
        """Return the samples with their median and spread."""
        spread = {
            "median": statistics.median(self.samples),
            "min": min(self.samples),
            "max": max(self.samples),
        }
        return {**asdict(self), **spread}


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    peers: tuple[str, ...] = tuple(PEERS)
    corpora: tuple[str, ...] = ("minilm-variants",)
    cuts_corpora: tuple[str, ...] = ("mid-insert", "fused", "minilm-variants")
    orders: int = 5
    """Shuffled orders of the deltas scenario."""
    repeats: int = 5
    warmups: int = 1
    page_cache: Literal["warm", "cold"] = "warm"
    memory_gb: tuple[float, ...] = (0.0625, 0.5)
    """Sizes of the memory scenario's files."""
    growth_chunks: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    """Chunks in the index of the growth scenario's stores."""
    refs_counts: tuple[int, ...] = (1_000, 100_000)
    """Refs in the refs scenario's stores."""
    scale_chunks: int = 1_000_000
    scale_packs: int = 1_000
    scale_refs: int = 1_000
    """What the store of the scale command holds."""
    writers: int = 4
    """Processes of the concurrent scenario."""
    remotes: tuple[str, ...] = REMOTES
    """Kinds of servers of the sync scenario."""
    carriers: tuple[str, ...] = tuple(CARRIERS)
    """What carries models in the sync scenario."""
    link: Shape = field(default_factory=Shape)
    """The sync scenario's network."""
    many_models: int = 1_000
    """Models in the store that the sync scenario pushes once more."""
    serve_corpus: str = "synthetic:1250"
    """The corpus of the serve scenario: its first model is downloaded, the second one mirrored."""
    cache: Path = field(default_factory=datasets.default_cache)
    work: Path | None = None
    """Where stores and outputs are written: the file system that is measured. Inside `cache` by default."""


Sample = dict[Metric, float]


class Harness:
    """What scenarios measure with. Works in a directory of its own, which `close` removes."""

    def __init__(self, options: Options, *, variables: Mapping[str, str] | None = None) -> None:
        """`variables` are added to the environment of the processes that are measured."""
        self.options = options
        parent = options.work or options.cache / "work"
        parent.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(dir=parent, prefix="run-"))
        self.environment = {**self._environment(), **(variables or {})}
        self.corpora: dict[str, Corpus] = {}
        self.peers: dict[str, dict[str, str]] = {}
        self.missing: dict[str, str] = {}
        self.companions: dict[str, dict[str, str]] = {}
        """What else took part in a scenario or could not, described like the peers."""
        for name in options.peers:
            answer = self.fresh("benchmarks.worker:describe", peer=name)
            if "missing" in answer:
                self.missing[name] = answer["missing"]
            else:
                self.peers[name] = answer

    def close(self) -> None:
        """Remove everything that was written."""
        shutil.rmtree(self.work, ignore_errors=True)

    def corpus(self, name: str) -> Corpus:
        """Return a corpus, which the result then describes."""
        if name not in self.corpora:
            self.corpora[name] = datasets.load(name, cache=self.options.cache)
        return self.corpora[name]

    def fresh(self, function: str, **arguments: Any) -> Any:
        """Call "MODULE:NAME" in a new process; return its answer. Raises BenchmarkError with what it printed."""
        return self.fresh_on((), {}, function, **arguments)

    def fresh_on(
        self, machine: Sequence[str], variables: Mapping[str, str], function: str, **arguments: Any
    ) -> Any:
        """Do that with the words in front that run a command on another machine, and other variables."""
        done = subprocess.run(
            [*machine, sys.executable, "-m", "benchmarks.worker"],
            input=json.dumps({"function": function, "arguments": arguments}),
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env={**self.environment, **variables},
            check=False,
        )
        if done.returncode != 0:
            raise BenchmarkError(f"{function} failed with {arguments}:\n{done.stderr or done.stdout}")
        return json.loads(done.stdout.splitlines()[-1])

    def fresh_together(self, function: str, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Call a function in several new processes at the same time; return their answers in order."""
        with ThreadPoolExecutor(max(1, len(calls))) as threads:
            running = [threads.submit(self.fresh, function, **arguments) for arguments in calls]
            return [item.result() for item in running]

    def _environment(self) -> dict[str, str]:
        """Return the variables for programs that are measured: what a user's would be, whatever ours are."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        # The machine's state of casstore (stat cache, index copies) starts empty and is thrown away with the run.
        variables["XDG_CACHE_HOME"] = str(self.work / "user-cache")
        # An installed program has its byte code; here it is kept where it does not litter the repository.
        variables["PYTHONPYCACHEPREFIX"] = str(self.options.cache / "byte-code")
        return variables

    def interleave(
        self,
        scenario: str,
        case: str,
        trials: Mapping[str, Callable[[], Sample]],
        *,
        repeats: int | None = None,
        warmups: int | None = None,
    ) -> list[Measurement]:
        """Run every subject's trial to warm up, then all in turns (A B A B); return the samples."""
        steps = {subject: partial(_as_case, case, trial) for subject, trial in trials.items()}
        return self.interleave_steps(scenario, case, steps, repeats=repeats, warmups=warmups)

    def interleave_steps(
        self,
        scenario: str,
        title: str,
        trials: Mapping[str, Callable[[], Mapping[str, Sample]]],
        *,
        repeats: int | None = None,
        warmups: int | None = None,
    ) -> list[Measurement]:
        """Do that with trials of several steps, each of which is a case of its own; `title` is for the user."""
        warmups = self.options.warmups if warmups is None else warmups
        samples: dict[tuple[str, str, Metric], list[float]] = {}
        for turn in range(-warmups, repeats or self.options.repeats):
            for subject, trial in trials.items():
                say(f"{scenario} · {title} · {subject} · {'warm-up' if turn < 0 else f'repeat {turn + 1}'}")
                for case, sample in trial().items():
                    for metric, value in sample.items():
                        samples.setdefault((case, subject, metric), [])
                        if turn >= 0:
                            samples[case, subject, metric].append(value)
        return [
            Measurement(scenario, case, subject, metric, tuple(values))
            for (case, subject, metric), values in samples.items()
        ]

    def settle(self, inputs: Iterable[Path], *, page_cache: Literal["warm", "cold"] | None = None) -> None:
        """Bring the page cache to its stated condition: nothing waits to be written, inputs are in it or not.

        `page_cache` overrides what the user asked for, in scenarios that measure both.
        """
        os.sync()
        for path in inputs:
            if (page_cache or self.options.page_cache) == "warm":
                with path.open("rb", buffering=0) as file:
                    while file.read(_BLOCK):
                        pass
            else:
                _evict(path)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Give the path of a directory that does not exist yet, and remove what was made there."""
        path = Path(tempfile.mkdtemp(dir=self.work, prefix=f"{name}-"))
        try:
            yield path / name
        finally:
            shutil.rmtree(path)

    def filled_store(self, peer: str, store: Path, corpus: Corpus) -> dict[str, Any]:
        """Make a store, add a corpus in a fresh process; return what the worker says."""
        self.fresh("benchmarks.worker:prepare", peer=peer, store=str(store))
        return self.add(peer, store, corpus)

    def add(self, peer: str, store: Path, corpus: Corpus, *, reread: bool = True) -> dict[str, Any]:
        """Add a corpus to a store that exists, in a fresh process; return what the worker says."""
        models = [[model.name, str(corpus.path(model)), model.base] for model in corpus.models]
        answer: dict[str, Any] = self.fresh(
            "benchmarks.worker:add", peer=peer, store=str(store), models=models, reread=reread
        )
        return answer

    def restore(self, peer: str, store: Path, receipt: dict[str, Any], corpus: Corpus) -> dict[str, Any]:
        """Restore a whole corpus in a fresh process and compare it with its source, byte for byte."""
        with self.scratch("restored") as dest:
            dest.mkdir()
            answer: dict[str, Any] = self.fresh(
                "benchmarks.worker:restore", peer=peer, store=str(store), receipt=receipt, dest=str(dest)
            )
            for model in corpus.models:
                compare(corpus.path(model), dest / model.name, [file.path for file in model.files])
        return answer

    def result(self, measurements: Sequence[Measurement]) -> dict[str, object]:
        """Return everything that a report needs, as JSON values."""
        return {
            "schema": SCHEMA,
            "environment": environment(self.work),
            "options": {
                "repeats": self.options.repeats,
                "warmups": self.options.warmups,
                "page_cache": self.options.page_cache,
            },
            "peers": {**self.peers, **{name: {"missing": why} for name, why in self.missing.items()}},
            "companions": self.companions,
            "corpora": [corpus.summary() for corpus in self.corpora.values()],
            "measurements": [item.as_json() for item in measurements],
        }


def _as_case(case: str, trial: Callable[[], Sample]) -> dict[str, Sample]:
    return {case: trial()}


def compare(expected: Path, actual: Path, files: Sequence[str]) -> None:
    """Raise BenchmarkError unless `actual` holds exactly the files of `expected`, byte for byte."""
    found = sorted(str(path.relative_to(actual)) for path in actual.rglob("*") if path.is_file())
    if found != sorted(files):
        raise BenchmarkError(f"{actual} holds {found} instead of {sorted(files)}.")
    for name in files:
        with (
            (expected / name).open("rb", buffering=0) as left,
            (actual / name).open("rb", buffering=0) as right,
        ):
            while True:
                wanted, got = left.read(_BLOCK), right.read(_BLOCK)
                if wanted != got:
                    raise BenchmarkError(
                        f"{actual / name} differs from {expected / name}: nothing is reported."
                    )
                if not wanted:
                    break


def environment(work: Path) -> dict[str, object]:
    """Describe machine and software as far as figures depend on them; nothing that names the machine."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "file_system": _file_system(work),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def say(text: str) -> None:
    """Tell the user what runs, beside the result."""
    print(text, file=sys.stderr, flush=True)


def _evict(path: Path) -> None:
    fsync_path(path)  # Dirty pages would stay.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _file_system(path: Path) -> str:
    """Return the type of the file system that holds `path`."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except FileNotFoundError:
        return "unknown"
    above = [(len(point), kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(above, default=(0, "unknown"))[1]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
