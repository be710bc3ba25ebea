"""Compares two results, measurement by measurement, and says what became worse. Measures nothing.

A change counts when the medians differ by more than the threshold and by more than noise. It is more than noise
when the ranges of the samples do not overlap, or, with four samples and more on both sides, when the ratio
of the medians is beyond the square of the larger ratio of third to first quartile: one slow sample hides
nothing then. A time or a speed that was measured once says nothing about noise, and never counts.
What changed in another tool is no regression of casstore: it says that the machine or that tool is not the same.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from benchmarks.report import OURS, TITLES, improvement, number, rank, shown_ratio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Verdict = Literal["regression", "improvement", "control", "noise", "once", "same", "neither"]
"""`control`: beyond threshold and noise, but in a peer; `noise`: beyond the threshold, but no more than noise; `once`:
beyond it, but measured once; `same`: within it; `neither`: a figure of which neither way is good."""

THRESHOLD = 1.10
_FEWEST_FOR_QUARTILES = 4
_MACHINE = ("cpu", "cores", "memory_gb", "system", "file_system")
_OPTIONS = ("repeats", "warmups", "page_cache")
_WORDS = {
    "regression": "**worse**",
    "improvement": "better",
    "control": "other tool or machine",
    "noise": "noise",
    "once": "measured once",
    "same": "",
    "neither": "",
}

Result = dict[str, Any]
Key = tuple[str, str, str, str, str]
"""Scenario, case, subject, metric and unit: what two measurements must share to be compared."""


@dataclass(frozen=True, slots=True)
class Change:
    """One measurement in both results: its medians, and `ratio`, how many times better the second one is.

    `ratio` is below 1 for worse, infinite where something bad is gone, None where neither way is good.
    """

    scenario: str
    case: str
    subject: str
    metric: str
    unit: str
    before: float
    after: float
    ratio: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that two results say about each other; `only_in_…` name measurements that have no partner."""

    threshold: float
    warnings: tuple[str, ...]
    changes: tuple[Change, ...]
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What became worse."""
        return tuple(change for change in self.changes if change.verdict == "regression")

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values; an infinite ratio is null, as one that cannot be said is."""
        changes = [asdict(change) for change in self.changes]
        for change in changes:
            if change["ratio"] is not None and math.isinf(change["ratio"]):
                change["ratio"] = None
        counts = dict.fromkeys(get_args(Verdict), 0)
        for item in self.changes:
            counts[item.verdict] += 1
        return {
            "threshold": self.threshold,
            "counts": counts,
            "warnings": self.warnings,
            "changes": changes,
            "only_in_first": self.only_in_first,
            "only_in_second": self.only_in_second,
        }


def compare(first: Result, second: Result, *, threshold: float = THRESHOLD) -> Comparison:
    """Compare two results that `report.read_result` returned; `second` is the newer one."""
    before, after = _measurements(first), _measurements(second)
    peers = {name for name in {**first["peers"], **second["peers"]} if rank(name) > 1}
    changes = [
        _change(key, before[key], after[key], threshold=threshold, peers=peers)
        for key in before
        if key in after
    ]
    warnings = [*_differences(first, second), *_controls(changes)]
    if not changes:
        warnings.append("no measurement is in both results: nothing was compared")
    return Comparison(
        threshold,
        tuple(warnings),
        tuple(changes),
        tuple(", ".join(key[:-1]) for key in before if key not in after),
        tuple(", ".join(key[:-1]) for key in after if key not in before),
    )


def markdown(comparison: Comparison) -> str:
    """Return a comparison as people read it."""
    parts = [f"Warning: {warning}.\n" for warning in comparison.warnings]
    for scenario in dict.fromkeys(change.scenario for change in comparison.changes):
        rows = [_row(change) for change in comparison.changes if change.scenario == scenario]
        parts.append(f"### {TITLES.get(scenario, scenario)}\n")
        head = "| case | subject | metric | before | after | better by | |\n| --- | --- | --- | ---: | ---: | ---: | --- |"
        parts.append("\n".join([head, *rows]) + "\n")
    for which, keys in (("first", comparison.only_in_first), ("second", comparison.only_in_second)):
        if keys:
            parts.append(f"Only in the {which} result:\n\n" + "\n".join(f"- {key}" for key in keys) + "\n")
    parts.append(_summary(comparison))
    return "\n".join(parts)


def _summary(comparison: Comparison) -> str:
    compared, worse = len(comparison.changes), comparison.regressions
    better = sum(change.verdict == "improvement" for change in comparison.changes)
    beyond = f"beyond a factor of {comparison.threshold:g} and beyond noise"
    lines = [f"{compared} measurements compared; {beyond}: {len(worse)} worse, {better} better."]
    lines += [
        f"- worse: {change.scenario}, {change.case}, {change.subject}, {change.metric}: "
        f"{number(change.before)} became {number(change.after)} {change.unit}".rstrip()
        for change in worse
    ]
    return "\n".join(lines)


def _row(change: Change) -> str:
    metric = f"{change.metric} ({change.unit})" if change.unit else change.metric
    medians = [number(change.before), number(change.after)]
    cells = [change.case, change.subject, metric, *medians, shown_ratio(change.ratio)]
    return "| " + " | ".join([*cells, _WORDS[change.verdict]]) + " |"


def _measurements(result: Result) -> dict[Key, dict[str, Any]]:
    """Return measurements by what they are about; the samples of one that was taken twice are joined."""
    found: dict[Key, dict[str, Any]] = {}
    for item in result["measurements"]:
        metric = item["metric"]
        key = (item["scenario"], item["case"], item["subject"], metric["name"], metric["unit"])
        samples = [*found[key]["samples"], *item["samples"]] if key in found else item["samples"]
        found[key] = {**item, "samples": samples}
    return found


def _change(
    key: Key, first: dict[str, Any], second: dict[str, Any], *, threshold: float, peers: set[str]
) -> Change:
    metric = second["metric"]
    before, after = (statistics.median(item["samples"]) for item in (first, second))
    ratio = improvement(before, after, metric["better"])
    verdict = _verdict(ratio, first["samples"], second["samples"], metric["unit"], threshold)
    if verdict in ("regression", "improvement") and second["subject"] in peers:
        verdict = "control"
    return Change(*key, before, after, ratio, verdict)


def _controls(changes: Sequence[Change]) -> Iterator[str]:
    """Say which other tools changed: then casstore's figures may have changed for the same reason."""
    for subject in dict.fromkeys(change.subject for change in changes if change.verdict == "control"):
        of_it = [change.verdict == "control" for change in changes if change.subject == subject]
        yield f"{subject}, which is not casstore, changed in {sum(of_it)} of {len(of_it)} measurements"


def _verdict(
    ratio: float | None, first: Sequence[float], second: Sequence[float], unit: str, threshold: float
) -> Verdict:
    if ratio is None:
        return "neither"
    factor = _factor(ratio)
    if factor <= threshold:
        return "same"
    if _depends_on_time(unit) and min(len(first), len(second)) == 1:
        return "once"
    apart = max(first) < min(second) or max(second) < min(first)
    if not apart and factor <= max(_spread(first), _spread(second)) ** 2:
        return "noise"
    return "regression" if ratio < 1 else "improvement"


def _factor(ratio: float) -> float:
    """Return by how much two medians differ, whichever way."""
    return max(ratio, 1 / ratio if ratio else math.inf)


def _spread(samples: Sequence[float]) -> float:
    """Return the ratio of third to first quartile; without end for too few samples."""
    if len(samples) < _FEWEST_FOR_QUARTILES:
        return math.inf
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return high / low if low else math.inf


def _depends_on_time(unit: str) -> bool:
    return unit in ("s", "ms", "s/GB") or "/s" in unit


def _differences(first: Result, second: Result) -> Iterator[str]:
    """Say what makes two results hard to compare: all that may change figures, and is not casstore itself."""
    for part, names in (("environment", _MACHINE), ("options", _OPTIONS)):
        for name in names:
            yield from _differs(name.replace("_", " "), first[part][name], second[part][name])
    yield from _differs("Python", first["environment"]["python"], second["environment"]["python"])
    old, new = (result["environment"]["packages"] for result in (first, second))
    for name in {**old, **new}:
        if name != "casstore":
            yield from _differs(name, old.get(name), new.get(name))
    for name, peer in first["peers"].items():
        if name in second["peers"]:
            other = second["peers"][name]
            if ("missing" in peer) != ("missing" in other):
                yield f"{name} is missing in the {'first' if 'missing' in peer else 'second'} result only"
                continue
            for key in ("setting",) if name.startswith(OURS) else ("version", "setting"):
                yield from _differs(f"{key} of {name}", peer.get(key), other.get(key))
    hashes = [{corpus["name"]: _hashes(corpus) for corpus in result["corpora"]} for result in (first, second)]
    for name, files in hashes[0].items():
        if name in hashes[1] and hashes[1][name] != files:
            changed = sum(
                files.get(path) != hashes[1][name].get(path) for path in {**files, **hashes[1][name]}
            )
            yield f"corpus {name} is not the same: {changed} files differ by their hashes"


def _differs(what: str, before: object, after: object) -> Iterator[str]:
    if before != after:
        yield f"{what} differs: {_shown(before)} before, {_shown(after)} after"


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _hashes(corpus: dict[str, Any]) -> dict[str, str]:
    return {
        f"{model['name']}/{file['path']}": file["blake3"]
        for model in corpus["models"]
        for file in model["files"]
    }
