"""What the plots show, taken from a result as plain values. Draws nothing, measures nothing.

Every function returns nothing for a result without the scenarios that it needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.report import OURS, rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Result = dict[str, Any]
Item = dict[str, Any]

LEFT = "left"
STORED = "stored"
DIRECTIONS = {"add": "Add", "restore": "Restore"}
_GROWTH_PANELS = (
    ("Open", "ms", r"open\b.*"),
    ("Look up 4,096 ids, page cache warm", "ms", r"find\b(?!.*\bcold\b).*"),
    ("Look up 4,096 ids, page cache cold", "ms", r"find\b.*\bcold\b.*"),
    ("Memory beyond imports", "MB", r".*\bmemory\b.*"),
    ("Index on disk", "MB", r".*\bdisk\b.*"),
)
"""Title and unit of each panel, and the names of its metrics."""


@dataclass(frozen=True, slots=True)
class Point:
    """A median with the range of its samples; `x` is without spread."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """Points that belong together, sorted by x."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes; the unit is that of y."""

    title: str
    unit: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """Panels side by side about one case."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    compares_peers: bool = True


@dataclass(frozen=True, slots=True)
class Bar:
    """What one subject stores; `parts` are (name, bytes), drawn one after another from zero."""

    subject: str
    stored: float
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """Stored bytes of all subjects in one case, which has `plain` bytes, None if nobody says how many."""

    name: str
    title: str
    plain: float | None
    bars: tuple[Bar, ...]
    compares_peers: bool = True


def throughput(result: Result) -> list[Plot]:
    """Return throughput (y, MB/s) against stored share (x, of plain bytes), a panel each for add and restore."""
    shares = {**_medians(result, "add", "stored share"), **_medians(result, "size", "stored share")}
    plots = []
    for case in dict.fromkeys(case for case, _ in shares):
        panels = []
        for scenario, title in DIRECTIONS.items():
            items = [item for item in _items(result, scenario, "throughput") if item["case"] == case]
            lines = [
                Line(item["subject"], (_point(shares[case, item["subject"]], item),))
                for item in items
                if (case, item["subject"]) in shares
            ]
            if lines:
                panels.append(Panel(title, "MB/s", _sorted(lines)))
        if panels:
            plots.append(
                Plot(_slug("throughput", case), f"Throughput and stored size, {case}", tuple(panels))
            )
    return plots


def stored(result: Result) -> list[Bars]:
    """Return stored bytes by subject; casstore's bar goes on with what was saved, up to the plain bytes."""
    totals = _medians(result, "size", "stored")
    plots = []
    for case in dict.fromkeys(case for case, _ in totals):
        subjects = {subject: total for (of, subject), total in totals.items() if of == case}
        parts = {
            item["metric"]["name"]: item["median"]
            for item in result["measurements"]
            if (item["scenario"], item["case"], item["subject"]) == ("size parts", case, OURS)
        }
        plain = parts.get("plain")
        bars = []
        for subject in sorted(subjects, key=rank):
            split = _split(parts) if subject == OURS and LEFT in parts else ((STORED, subjects[subject]),)
            bars.append(Bar(subject, subjects[subject], split))
        plots.append(Bars(_slug("stored", case), f"Stored bytes, {case}", plain, tuple(bars)))
    return plots


def _split(parts: dict[str, float]) -> tuple[tuple[str, float], ...]:
    """Order parts: what is left first, then what was saved, the encodings before dedup; nothing that is zero."""
    saved = [name for name in parts if name.startswith("saved by ")]
    saved.sort(key=lambda name: name == "saved by dedup")
    return tuple((name, parts[name]) for name in (LEFT, *saved) if parts[name] > 0)


def growth(result: Result) -> list[Plot]:
    """Return open time, look-up time, memory and disk (y) against the number of chunks (x)."""
    items = [item for item in _items(result, "growth") if _first_number(item["case"]) is not None]
    panels = []
    for title, unit, names in _GROWTH_PANELS:
        wanted = [
            item
            for item in items
            if item["metric"]["unit"] == unit and re.fullmatch(names, item["metric"]["name"])
        ]
        if len({item["subject"] for item in wanted}) > 1:
            lines = _lines(wanted, lambda item: f"{item['subject']}, {item['metric']['name']}")
        else:
            lines = _lines(wanted, lambda item: str(item["metric"]["name"]))
        if lines:
            panels.append(Panel(title, unit, lines))
    return [Plot("growth", "A store that grows", tuple(panels), compares_peers=False)] if panels else []


def memory(result: Result) -> list[Plot]:
    """Return peak memory (y, MB) against file size (x, GB) for each kind of file, panels for add and restore."""
    items = [item for item in _items(result, "memory") if _first_number(item["case"]) is not None]
    kinds = dict.fromkeys(item["case"].partition(", ")[2] for item in items)
    plots = []
    for kind in kinds:
        panels = []
        for direction, title in DIRECTIONS.items():
            wanted = [
                item
                for item in items
                if item["case"].partition(", ")[2] == kind
                and item["metric"]["name"] == f"peak RSS of {direction}"
            ]
            lines = _lines(wanted, lambda item: str(item["subject"]))
            if lines:
                panels.append(Panel(title, "MB", _sorted(lines)))
        if panels:
            about = f", {kind} file" if kind else ""
            plots.append(Plot(_slug("memory", kind), f"Peak memory and file size{about}", tuple(panels)))
    return plots


def sharing(result: Result) -> list[Plot]:
    """Return the time of each push (y, s) against the bytes that casstore's had to move (x, MB), a panel for each remote."""
    new = _medians(result, "sync", "was missing, encoded")
    lines: dict[str, dict[str, dict[str, list[Point]]]] = {}
    for item in _items(result, "sync", "time"):
        place, _, step = item["case"].partition(": ")
        corpus, _, kind = place.rpartition(", ")
        if step in _single_pushes(result, corpus) and (item["case"], OURS) in new:
            of_kind = lines.setdefault(corpus, {}).setdefault(kind, {})
            point = _point(new[item["case"], OURS], item)
            of_kind.setdefault(item["subject"], []).append(point)
    return [
        Plot(
            _slug("sharing", corpus),
            f"Push a model, {corpus}",
            tuple(
                Panel(kind, "s", _sorted(map(_line, of.keys(), of.values()))) for kind, of in kinds.items()
            ),
            compares_peers=False,
        )
        for corpus, kinds in lines.items()
    ]


def sent(result: Result) -> list[Bars]:
    """Return the bytes on the wire of all pushes, by carrier, for each corpus and remote."""
    plain = {corpus["name"]: corpus["bytes"] for corpus in result["corpora"]}
    totals: dict[str, dict[str, float]] = {}
    for item in _items(result, "sync", "sent"):
        place, _, step = item["case"].partition(": ")
        if step in _single_pushes(result, place.rpartition(", ")[0]):
            of_place = totals.setdefault(place, {})
            of_place[item["subject"]] = of_place.get(item["subject"], 0.0) + item["median"] * 1e6
    return [
        Bars(
            _slug("sent", place),
            f"Sent to push every model, {place}",
            plain[place.rpartition(", ")[0]],
            tuple(Bar(name, of[name], ((STORED, of[name]),)) for name in sorted(of, key=rank)),
            compares_peers=False,
        )
        for place, of in totals.items()
    ]


def _single_pushes(result: Result, name: str) -> set[str]:
    """Return the steps that push one model each of a corpus for the first time."""
    return {
        f"push {model['name']}"
        for corpus in result["corpora"]
        if corpus["name"] == name
        for model in corpus["models"]
    }


def missing(result: Result) -> list[str]:
    """Return the peers that were to be measured, and were not there."""
    return [name for name, peer in result["peers"].items() if "missing" in peer]


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights apart, as little as it takes, until any two differ by `gap`; their order stays."""
    order = sorted(range(len(heights)), key=lambda at: heights[at])
    # Runs of labels that touch, each as [lowest height, indices], centred on where its labels want to be.
    runs: list[tuple[float, list[int]]] = []
    for at in order:
        bottom, members = heights[at], [at]
        while runs and runs[-1][0] + gap * len(runs[-1][1]) > bottom:
            members = runs.pop()[1] + members
            centre = sum(heights[member] for member in members) / len(members)
            bottom = centre - gap * (len(members) - 1) / 2
        runs.append((bottom, members))
    found = list(heights)
    for bottom, members in runs:
        for step, at in enumerate(members):
            found[at] = bottom + gap * step
    return found


def _items(result: Result, scenario: str, metric: str | None = None) -> list[Item]:
    return [
        item
        for item in result["measurements"]
        if item["scenario"] == scenario and metric in (None, item["metric"]["name"])
    ]


def _medians(result: Result, scenario: str, metric: str) -> dict[tuple[str, str], float]:
    """Return medians by case and subject."""
    return {(item["case"], item["subject"]): item["median"] for item in _items(result, scenario, metric)}


def _lines(items: Sequence[Item], label: Callable[[Item], str]) -> tuple[Line, ...]:
    """Group items into lines; x is the number that their case begins with."""
    found: dict[str, list[Point]] = {}
    for item in items:
        x = _first_number(item["case"])
        assert x is not None
        found.setdefault(label(item), []).append(_point(x, item))
    return tuple(map(_line, found.keys(), found.values()))


def _line(label: str, points: Iterable[Point]) -> Line:
    return Line(label, tuple(sorted(points, key=lambda point: point.x)))


def _sorted(lines: Iterable[Line]) -> tuple[Line, ...]:
    return tuple(sorted(lines, key=lambda line: rank(line.label)))


def _point(x: float, item: Item) -> Point:
    return Point(x, item["median"], item["min"], item["max"])


def _first_number(case: str) -> float | None:
    found = re.match(r"[\d,]*\d(\.\d+)?(e[+-]?\d+)?", case)
    return float(found[0].replace(",", "")) if found else None


def _slug(name: str, case: str) -> str:
    """Return a file name for a plot about a case."""
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {case}".lower()).strip("-")
