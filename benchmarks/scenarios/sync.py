"""Two machines share models through a server, over links that are slow on purpose.

The first machine pushes a corpus model after model, each when it is made, as a pipeline does: the first one, that
again, every variant. The second machine pulls them all, and again. Then it has plain files, which are compared with
the source: byte for byte, or nothing is reported. Each carrier has a server of its own, empty.

`sent` is what the machine and the server sent to each other, both ways, without the headers of TCP and IP. `of the
link` is that by time, as a share of what the link can carry with such headers; no stream gets beyond 96%.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Metric, compare
from benchmarks.network.link import Network, NetworkMissing, Sent, Shape, network
from benchmarks.network.servers import Remote, ServerMissing, serving
from benchmarks.report import OURS
from casstore import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.datasets import Corpus
    from benchmarks.harness import Harness, Measurement, Sample

TIME = Metric("time", "s", "lower")
SENT = Metric("sent", "MB", "lower")
REQUESTS = Metric("requests", "", "lower")
LINK = Metric("of the link", "%", None)
MISSING = Metric("was missing, encoded", "MB", None)
OVERHEAD = Metric("sent / missing", "", "lower")

NEAR, FAR = "near", "far"
_CARRIERS = "benchmarks.network.carriers"
_NOTHING_MISSING = 3e5


@dataclass(frozen=True, slots=True)
class _Machine:
    """One of the two, with a home of its own; `network` is None where there is none, and both are this machine."""

    harness: Harness
    network: Network | None
    name: str
    home: Path
    carrier: str

    @property
    def kept(self) -> Path:
        """What the carrier keeps on this machine."""
        return self.home / "kept"

    def run(self, function: str, remote: Remote, **arguments: Any) -> Any:
        """Call one of the carriers' functions on this machine."""
        command = () if self.network is None else self.network.command(self.name)
        variables = {"XDG_CACHE_HOME": str(self.home / "cache"), "HOME": str(self.home)}
        site = {"home": str(self.kept), "remote": asdict(remote)}
        function = f"{_CARRIERS}:{function}"
        return self.harness.fresh_on(
            command, variables, function, carrier=self.carrier, site=site, **arguments
        )

    def sent(self) -> Sent:
        return Sent(0, 0) if self.network is None else self.network.sent(self.name)

    def share(self, remote: Remote, shape: Shape, function: str, **arguments: Any) -> Sample:
        """Push or pull, and say what it took."""
        before, requests = self.sent(), remote.requests
        answer = self.run(function, remote, **arguments)
        sent = self.sent().since(before).payload
        sample = {TIME: answer["seconds"]}
        if sent:
            sample[SENT] = sent / 1e6
        if requests is not None:
            sample[REQUESTS] = float((remote.requests or 0) - requests)
        missing = answer.get("missing", 0)
        if missing > _NOTHING_MISSING:
            sample[MISSING] = missing / 1e6
        if sent and missing > _NOTHING_MISSING:
            sample[OVERHEAD] = sent / missing
        if sent > _NOTHING_MISSING:
            seconds = answer.get("pull_seconds", answer["seconds"])
            sample[LINK] = 100 * sent / seconds / shape.bytes_per_s
        return sample


def run(harness: Harness) -> list[Measurement]:
    measurements = []
    with _network(harness) as lines:
        for kind in harness.options.remotes:
            if not _runs(harness, lines, kind):
                continue
            carriers = _carriers(harness, kind)
            for name in harness.options.corpora:
                corpus = harness.corpus(name)
                trials = {
                    carrier: partial(_trial, harness, lines, kind, carrier, corpus) for carrier in carriers
                }
                measurements += harness.interleave_steps("sync", f"{name}, {kind}", trials)
                if OURS in carriers:
                    trials = {OURS: partial(_at_once, harness, lines, kind, corpus)}
                    measurements += harness.interleave_steps("sync", f"{name} at once, {kind}", trials)
            if OURS in carriers:
                trials = {OURS: partial(_many, harness, lines, kind)}
                measurements += harness.interleave_steps("sync", f"many models, {kind}", trials, warmups=0)
    return measurements


def _trial(
    harness: Harness, lines: Network | None, kind: str, carrier: str, corpus: Corpus
) -> dict[str, Sample]:
    """Share a whole corpus; return a sample for every step."""
    models = [(model.name, str(corpus.path(model))) for model in corpus.models]
    shape, place = harness.options.link, f"{corpus.name}, {kind}"
    steps: dict[str, Sample] = {}
    with _two_machines(harness, lines, kind, carrier) as (near, far, remote):
        near.run("prepare", remote)
        for model in models:
            near.run("fill", remote, models=[model])
            harness.settle(corpus.paths())
            steps[f"{place}: push {model[0]}"] = near.share(remote, shape, "push", models=[model])
            if model == models[0]:
                steps[f"{place}: push it again"] = near.share(remote, shape, "push", models=[model])
        dest, names = far.home / "models", [name for name, _ in models]
        dest.mkdir()
        for title in ("pull all", "pull all again"):
            steps[f"{place}: {title}"] = far.share(remote, shape, "pull", names=names, dest=str(dest))
        for model in corpus.models:
            compare(corpus.path(model), dest / model.name, [file.path for file in model.files])
    return steps


def _at_once(harness: Harness, lines: Network | None, kind: str, corpus: Corpus) -> dict[str, Sample]:
    """Push all models of a corpus to an empty place in one go."""
    models = [(model.name, str(corpus.path(model))) for model in corpus.models]
    with _two_machines(harness, lines, kind, OURS) as (near, _, remote):
        near.kept.mkdir()
        near.run("fill", remote, models=models)
        sample = near.share(remote, harness.options.link, "push", models=models)
        return {f"{corpus.name}, {kind}: push all at once": sample}


def _many(harness: Harness, lines: Network | None, kind: str) -> dict[str, Sample]:
    """Push a store of many small models, and then once more when nothing is new."""
    count, shape = harness.options.many_models, harness.options.link
    models = [(f"model-{number}", "") for number in range(count)]
    with _two_machines(harness, lines, kind, OURS) as (near, _, remote):
        near.kept.mkdir()
        _fill(near.kept / "store", [name for name, _ in models])
        return {
            f"{kind}: push {count:,} small models": near.share(remote, shape, "push", models=models),
            f"{kind}: push {count:,} models again": near.share(remote, shape, "push", models=models),
        }


def _fill(store: Path, models: Sequence[str]) -> None:
    """Make a store of small models that differ."""
    generator = np.random.default_rng(7)
    with Store(store, create=True, durability="none") as opened:
        file = store.parent / "weights.bin"
        for model in models:
            file.write_bytes(generator.bytes(4_000))
            opened.add(file, ref=f"models/{model}")


@contextmanager
def _two_machines(
    harness: Harness, lines: Network | None, kind: str, carrier: str
) -> Iterator[tuple[_Machine, _Machine, Remote]]:
    """Give two machines with empty homes and a server with an empty place."""
    with harness.scratch("sync") as root, ExitStack() as stack:
        machines = []
        for name in (NEAR, FAR):
            (root / name).mkdir(parents=True)
            machines.append(_Machine(harness, lines, name, root / name, carrier))
        remote = stack.enter_context(serving(kind, lines, root / "server"))
        yield machines[0], machines[1], remote


@contextmanager
def _network(harness: Harness) -> Iterator[Network | None]:
    """Give the network, or None where it cannot be made, which the result then says."""
    with ExitStack() as stack:
        try:
            lines = stack.enter_context(network((NEAR, FAR), harness.options.link))
        except NetworkMissing as error:
            harness.companions["network"] = {"missing": str(error)}
            lines = None
        else:
            harness.companions["network"] = {
                "version": f"{harness.options.link}",
                "setting": "namespaces joined by a relay",
            }
        yield lines


def _runs(harness: Harness, lines: Network | None, kind: str) -> bool:
    """Return whether a server of this kind can run here; the result says so if not."""
    if lines is None:
        return kind == "folder"
    try:
        with harness.scratch("probe") as folder, serving(kind, lines, folder):
            return True
    except ServerMissing as error:
        harness.companions[f"{kind} server"] = {"missing": str(error)}
        return False


def _carriers(harness: Harness, kind: str) -> list[str]:
    """Return the carriers that go to such a server and are installed; the result says which are not."""
    found = []
    for name in harness.options.carriers:
        answer = harness.fresh(f"{_CARRIERS}:describe", carrier=name)
        if kind in answer.pop("kinds"):
            harness.companions[f"{name}, sharing"] = answer
            found += [] if "missing" in answer else [name]
    return found
