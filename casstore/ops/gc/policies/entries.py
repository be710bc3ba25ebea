"""Cache entries: models that a pipeline's cache wrote, and what it would cost to make them again.

A run says which model was made of which, and how long that took. An entry can be made again if runs lead to it from a
model that stays; the cost is that of all runs on the way.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.digest import is_hex
from casstore.format.run import RunStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from casstore.format.record import Record
    from casstore.ops.gc.roots import Roots

_RUNS = "runs/"
_STAMP = ("workflow", "type")
"""Metadata that a pipeline's cache gives to the models that it writes, and that nobody else has a reason to give."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is done: models by their ids, and how many seconds it took."""

    input: bytes
    output: bytes
    seconds: float


def is_entry(heads: Iterable[Record]) -> bool:
    """Say whether a pipeline's cache wrote a ref, rather than a person: all of its newest records."""
    return all(isinstance(record.metadata.get(key), str) for record in heads for key in _STAMP)


def read_runs(roots: Roots) -> list[Run]:
    """Return the runs that are done and whose input is known."""
    found = []
    for name, heads in roots.heads.items():
        if name.startswith(_RUNS) and heads and heads[-1].target is not None:
            run = _run_of(heads[-1].metadata)
            if run is not None:
                found.append(run)
    return found


def _run_of(shown: dict[str, Any]) -> Run | None:
    """Return the run that a record's metadata shows, which anyone may have written."""
    output, taken, duration = shown.get("output"), shown.get("input"), shown.get("duration")
    if shown.get("status") != RunStatus.DONE.value or not isinstance(duration, int):
        return None
    if not (isinstance(output, str) and is_hex(output) and isinstance(taken, str) and is_hex(taken)):
        return None
    return Run(bytes.fromhex(taken), bytes.fromhex(output), max(duration, 0) / 1e9)


def costs(runs: Iterable[Run], entries: Collection[bytes], kept: Collection[bytes]) -> dict[bytes, float]:
    """Return how many seconds it takes to make each of these entries again from models that are kept; others cannot be.

    An entry that no run made of a model that is known is one of those from which others can be made.
    """
    runs = list(runs)
    outputs = {run.output for run in runs}
    usable = [
        run for run in runs if run.input != run.output and (run.input in outputs or run.input in kept or run.input in entries)
    ]  # fmt: skip
    made = {run.output for run in usable}
    origins = set(kept) | {entry for entry in entries if entry not in made}
    following: dict[bytes, list[Run]] = {}
    for run in usable:
        following.setdefault(run.input, []).append(run)
    # Dijkstra's algorithm: models in the order of what they cost.
    least = dict.fromkeys(origins, 0.0)
    heap = [(0.0, origin) for origin in origins]
    heapq.heapify(heap)
    while heap:
        seconds, model = heapq.heappop(heap)
        if seconds > least[model]:
            continue
        for run in following.get(model, ()):
            total = seconds + run.seconds
            if total < least.get(run.output, float("inf")):
                least[run.output] = total
                heapq.heappush(heap, (total, run.output))
    return {entry: least[entry] for entry in entries if entry in least and entry not in origins}
