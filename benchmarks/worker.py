"""The fresh process that every timed run happens in: calls one function with JSON arguments and prints JSON.

`echo '{"function": "MODULE:NAME", "arguments": {…}}' | python -m benchmarks.worker`
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import COLLECTORS, PEERS
from benchmarks.peers.base import Model, PeerMissing, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class Timed:
    """What one run took: wall-clock and processor seconds, seconds to make its output durable, peak RSS in bytes."""

    seconds: float
    cpu_seconds: float
    sync_seconds: float
    rss_before: int
    rss_peak: int


def add(
    peer: str, store: str, models: list[tuple[str, str, str | None]], *, reread: bool
) -> dict[str, object]:
    """Add models, given as [name, folder, base or None], to a store that exists."""
    tool = PEERS[peer]()
    given = [Model(name, Path(folder), base) for name, folder, base in models]
    receipt: Receipt = {}

    def run() -> None:
        receipt.update(tool.add(Path(store), given, reread=reread))

    timed = _time(run)
    return {**asdict(timed), "receipt": receipt, "stored_bytes": tool.stored_bytes(Path(store))}


def restore(peer: str, store: str, receipt: Receipt, dest: str) -> dict[str, object]:
    """Restore all models of a receipt to an empty folder."""
    tool = PEERS[peer]()
    return asdict(_time(lambda: tool.restore(Path(store), receipt, Path(dest))))


def remove(peer: str, store: str, receipt: Receipt, models: list[int]) -> dict[str, object]:
    """Remove the names of models, by their positions in a receipt."""
    tool = COLLECTORS[peer]()
    return asdict(_time(lambda: tool.remove(Path(store), receipt, models)))


def collect(peer: str, store: str) -> dict[str, object]:
    """Free what no name needs any more."""
    tool = COLLECTORS[peer]()
    timed = _time(lambda: tool.collect(Path(store)))
    return {**asdict(timed), "stored_bytes": tool.stored_bytes(Path(store))}


def prepare(peer: str, store: str) -> None:
    PEERS[peer]().prepare(Path(store))


def describe(peer: str) -> dict[str, str]:
    """Return a peer's version and setting, or why it is missing."""
    try:
        tool = PEERS[peer]()
        return {"version": tool.version(), "setting": tool.setting}
    except PeerMissing as error:
        return {"missing": str(error)}


def _time(run: Callable[[], None]) -> Timed:
    """Run once; then wait until all is on disk, which costs time only if the run did not do so itself."""
    rss_before = peak_rss()
    cpu = _cpu_seconds()
    started = time.perf_counter()
    run()
    ended = time.perf_counter()
    cpu = _cpu_seconds() - cpu
    rss_peak = peak_rss()
    os.sync()
    return Timed(ended - started, cpu, time.perf_counter() - ended, rss_before, rss_peak)


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in usage)


def peak_rss() -> int:
    """Return the peak resident set, in bytes: of this process or of the largest program that it ran to its end.

    Not of both together: a user runs such a program alone, without a process of ours that waits for it.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    programs = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    try:
        # ru_maxrss survives exec on Linux: it would be the harness's own peak. VmHWM begins anew. (That of
        # programs starts with the peak of this process, which counts anyway.)
        status = Path("/proc/self/status").read_text()
        own = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except FileNotFoundError:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(own, programs)


def main() -> None:
    request = json.load(sys.stdin)
    module, _, name = request["function"].partition(":")
    answer = getattr(importlib.import_module(module), name)(**request["arguments"])
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # Threads that a peer leaves behind must not keep the process.


if __name__ == "__main__":
    main()
