"""Reads results and turns them into Markdown. Measures nothing."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from benchmarks.harness import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
OURS = "casstore"
DEDUP_PEERS = ("hf-xet", "restic", "restic-batch", "borg", "borg-batch")
"""The peers that do what casstore does: cut, deduplicate, compress, and give the bytes back; at their fastest, too."""

TITLES = {
    "size": "Stored size",
    "size parts": "Stored size: what each means saves",
    "size overhead": "Stored size: what is stored beside chunks",
    "deltas": "What each model adds",
    "deltas parts": "What each model adds: how it is kept, lineage given",
    "add": "Add to an empty store",
    "add-again": "Add what is there already, reading all of it",
    "one-more": "Add one more variant to a full store",
    "restore": "Restore",
    "read-tensor": "Read one tensor",
    "refs": "Many refs",
    "growth": "Open and look up, against the size of the store",
    "concurrent": "Writers at the same time",
    "sync": "Share models over a link",
    "serve": "Serve to huggingface_hub",
    "memory": "Memory",
    "startup": "Start-up",
    "cuts": "Fixed cuts inside tensors against content-defined ones",
    "gc": "Remove every other model, and free what only those needed",
    "scale": "Upkeep of a large store",
    "stages": "Stages on one core",
}
_ENVIRONMENT = (
    "date",
    "cpu",
    "cores",
    "memory_gb",
    "load_average",
    "system",
    "file_system",
    "python",
    "packages",
    "commit",
)
_OPTIONS = ("repeats", "warmups", "page_cache")
_LARGE = {"bytes": (1e6, "MB")}
"""Units that people read in larger ones, with the divisor."""

Item = dict[str, Any]
"""A measurement as it stands in a result."""


class NotAResult(Exception):
    """A file that holds no result which this version can read; the text says why, and what to do."""


def read_result(path: Path) -> dict[str, Any]:
    """Return the result in a file; raise NotAResult for a file that is missing, or is none."""
    try:
        result = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotAResult(
            f"{path} does not exist. `python -m benchmarks run --out {path}` makes it."
        ) from None
    except OSError as error:
        raise NotAResult(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise NotAResult(f"{path} is not JSON: {error}.") from error
    if not isinstance(result, dict) or not isinstance(result.get("schema"), int):
        raise NotAResult(f"{path} is no result of these benchmarks: it names no schema.")
    if result["schema"] != SCHEMA:
        raise NotAResult(
            f"{path} has schema {result['schema']}, and this version reads {SCHEMA}. "
            "Read it with the commit that it names, or measure again."
        )
    try:
        _check(result)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise NotAResult(f"{path} is no whole result: {type(error).__name__} {error}.") from error
    return result


def markdown(result: dict[str, Any], *, images: Sequence[tuple[str, str]] = ()) -> str:
    """Return the whole report; `images` are (title, address) of plots to show at its end."""
    parts = [_about(result)]
    for scenario in dict.fromkeys(item["scenario"] for item in result["measurements"]):
        items = _ordered([item for item in result["measurements"] if item["scenario"] == scenario])
        parts.append(f"### {TITLES.get(scenario, scenario)}\n")
        parts.append(_table(items, _missing(result, items)))
        ratios = _ratios(items)
        if ratios:
            parts.append(ratios)
    if images:
        parts.append("### Plots\n")
        parts.append("\n".join(f"![{title}]({address})\n" for title, address in images))
    return "\n".join(parts)


def placed(report: str, page: str) -> str:
    """Return `page` with the report between its marks; raise ValueError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page has no {BEGIN} and {END}.")
    return f"{before}{begin}\n\n{report}\n{end}{after}"


def rank(subject: str) -> int:
    """Return where a subject stands in tables and plots: casstore's own first, then dedup peers, then all others."""
    if subject == OURS:
        return 0
    if subject.startswith(f"{OURS}-"):
        return 1
    return 2 if subject in DEDUP_PEERS else 3


def _check(result: dict[str, Any]) -> None:
    """Raise one of several errors unless everything is there that tables, plots and comparisons read."""
    for part, names in (("environment", _ENVIRONMENT), ("options", _OPTIONS)):
        for name in names:
            result[part][name]
    result["environment"]["packages"].items()
    for peer in [*result["peers"].values(), *result.get("companions", {}).values()]:
        if "missing" not in peer:
            peer["version"], peer["setting"]
    for corpus in result["corpora"]:
        corpus["name"], corpus["recipe"], corpus["bytes"] / 1e6
        for model in corpus["models"]:
            model["name"], [(file["path"], file["blake3"]) for file in model["files"]]
    for item in result["measurements"]:
        item["scenario"] + item["case"] + item["subject"] + item["metric"]["name"] + item["metric"]["unit"]
        if item["metric"]["better"] not in ("higher", "lower", None):
            raise ValueError(f"{item['metric']['better']!r} is no direction")
        samples = item["samples"]
        if not samples or not all(map(math.isfinite, [item["median"], item["min"], item["max"], *samples])):
            raise ValueError(f"the samples of {item['scenario']}, {item['subject']} are not numbers")


def _about(result: dict[str, Any]) -> str:
    machine, options = result["environment"], result["options"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    repeats = f"{options['repeats']} repeat{'' if options['repeats'] == 1 else 's'}"
    about = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"{machine['file_system']}; Python {machine['python']}; {versions}; commit {machine['commit']}; "
        f"{machine['date']}. Medians (lowest to highest) of {repeats} after "
        f"{options['warmups']} to warm up, page cache {options['page_cache']}, load {machine['load_average']}.\n"
    )
    lines = [about]
    missing = [name for name, peer in result["peers"].items() if "missing" in peer]
    if missing:
        lines.append(f"**Missing, and not compared: {', '.join(missing)}.**\n")
    companions = result.get("companions", {})
    for name, peer in [*sorted(result["peers"].items(), key=lambda pair: rank(pair[0])), *companions.items()]:
        state = (
            f"missing: {peer['missing']}" if "missing" in peer else f"{peer['version']} ({peer['setting']})"
        )
        lines.append(f"- {name}: {state}")
    for corpus in result["corpora"]:
        models = ", ".join(model["name"] for model in corpus["models"])
        lines.append(f"- corpus {corpus['name']}: {corpus['bytes'] / 1e6:.1f} MB in {models}")
    return "\n".join(lines) + "\n"


def _ordered(items: Sequence[Item]) -> list[Item]:
    """Sort subjects within their case; where none is a peer, nothing moves."""
    cases = list(dict.fromkeys(item["case"] for item in items))
    return sorted(items, key=lambda item: (cases.index(item["case"]), rank(item["subject"])))


def _missing(result: dict[str, Any], items: Sequence[Item]) -> list[str]:
    """Return the peers that a table of `items` would have if they were here: it compares peers."""
    others = {name for name in result["peers"] if rank(name) > 1}
    if not others & {item["subject"] for item in items}:
        return []
    return [name for name, peer in result["peers"].items() if "missing" in peer]


def _table(items: Sequence[Item], missing: Sequence[str]) -> str:
    metrics = {item["metric"]["name"]: item["metric"] for item in items}
    cells = {(item["case"], item["subject"], item["metric"]["name"]): item for item in items}
    units = {name: _LARGE.get(metric["unit"], (1, metric["unit"])) for name, metric in metrics.items()}
    heads = [f"{name} ({unit})" if unit else name for name, (_, unit) in units.items()]
    rows = []
    for case, subjects in _by_case(items).items():
        for subject in subjects:
            shown = f"**{subject}**" if subject == OURS else subject
            rows.append(
                [case, shown, *(_cell(cells.get((case, subject, name)), units[name][0]) for name in metrics)]
            )
        rows += [[case, name, *["missing"] * len(metrics)] for name in missing]
    return _rows(["", "", *heads], rows)


def _by_case(items: Sequence[Item]) -> dict[str, list[str]]:
    """Return the subjects of each case."""
    cases: dict[str, dict[str, None]] = {}
    for item in items:
        cases.setdefault(item["case"], {})[item["subject"]] = None
    return {case: list(subjects) for case, subjects in cases.items()}


def _ratios(items: Sequence[Item]) -> str:
    """Return how many times better or worse than each peer casstore is; above 1 is better."""
    medians = {(item["case"], item["subject"], item["metric"]["name"]): item["median"] for item in items}
    metrics = {item["metric"]["name"]: item["metric"]["better"] for item in items}
    rows = []
    for case, subjects in _by_case(items).items():
        if OURS not in subjects:
            continue
        ratios = {
            subject: {
                name: improvement(medians.get((case, subject, name)), medians.get((case, OURS, name)), better)
                for name, better in metrics.items()
            }
            for subject in subjects
            if subject != OURS
        }
        present = {peer: ratios[peer] for peer in DEDUP_PEERS if peer in ratios}
        if len(present) > 1:
            row = [_closest({peer: found[name] for peer, found in present.items()}) for name in metrics]
            who = (
                f"**{OURS} against the fastest dedup peer** (in each column the best of {', '.join(present)})"
            )
            rows.append([case, who, *row])
        for subject, found in ratios.items():
            rows.append([case, f"{OURS} against {subject}", *(shown_ratio(found[name]) for name in metrics)])
    return _rows(["", "better by", *metrics], rows) if rows else ""


def improvement(before: float | None, after: float | None, better: str | None) -> float | None:
    """Return how many times better `after` is, below 1 if worse; None where that cannot be said."""
    if better is None or before is None or after is None:
        return None
    if before == after:
        return 1.0
    numerator, denominator = (after, before) if better == "higher" else (before, after)
    return numerator / denominator if denominator else math.inf


def _closest(ratios: dict[str, float | None]) -> str:
    """Return the smallest ratio, that to the best peer by this metric, and which one that is."""
    known = [(ratio, peer) for peer, ratio in ratios.items() if ratio is not None]
    if not known:
        return ""
    ratio, peer = min(known)
    return f"{shown_ratio(ratio)} ({peer})"


def shown_ratio(ratio: float | None) -> str:
    """Return a ratio as people read it, nothing for None."""
    if ratio is None:
        return ""
    return "∞" if math.isinf(ratio) else f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _cell(item: Item | None, divisor: float) -> str:
    if item is None:
        return ""
    median, low, high = (number(item[name] / divisor) for name in ("median", "min", "max"))
    return median if len(set(item["samples"])) == 1 else f"{median} ({low} to {high})"


def number(value: float) -> str:
    """Return a number as people read it: no more digits than the machine's noise leaves."""
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _rows(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table; a case is named once, in the first row of those that are about it."""
    heads = list(heads)
    lines: list[Sequence[str]] = [heads, ["---", "---", *(["---:"] * (len(heads) - 2))]]
    last = None
    for case, *cells in rows:
        shown = f"{int(case):,}" if case.isdecimal() else case
        lines.append([shown if case != last else "", *cells])
        last = case
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
