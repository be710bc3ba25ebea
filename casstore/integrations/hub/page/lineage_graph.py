"""The lineage of a model as a drawing: models and failed runs as boxes, runs as lines between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.integrations.hub.page.figures import duration, middle, number, short
from casstore.integrations.hub.page.layout import place
from casstore.ops.metrics import metrics_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casstore.ops.lineage import Lineage, Link

__all__ = ["MOST", "Box", "Drawing", "Line", "draw_lineage"]

MOST = 80
"""Boxes of one drawing; more could not be read."""

WIDTH, HEIGHT = 196, 58
_STEP_X, _STEP_Y = WIDTH + 108, HEIGHT + 26
_MARGIN = 12
_NAME = 21
_METRICS = 2


@dataclass(frozen=True, slots=True)
class Box:
    """A node: `kind` is "self", "model", "gone" (no ref names it), "input" (never in the store) or a run's status."""

    kind: str
    x: float
    y: float
    name: str
    title: str
    lines: tuple[str, ...]
    ref: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A run, or the base of an add: a curve between two boxes, and what is written beside it."""

    path: str
    x: float
    y: float
    label: str
    took: str
    status: str
    run: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes and lines in a picture of `width` and `height`; `left_out` models are too many to be drawn."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    width: float
    height: float
    left_out: int
    box_width: int = WIDTH
    box_height: int = HEIGHT


def draw_lineage(about: Lineage) -> Drawing:
    """Return the drawing of a model's lineage, of the nearest of it if there is much."""
    models = [about.model, *about.ancestors, *about.descendants]
    shown = {node.model_id: node for node in models[:MOST]}
    links = [
        link
        for link in about.links
        if (not link.input or link.input in shown) and (not link.output or link.output in shown)
    ]
    edges: list[tuple[str, str, Link]] = []
    others: dict[str, Link] = {}
    for link in links:
        source = link.input or (f"name:{link.input_name}" if link.input_name else "")
        target = link.output or f"run:{link.run}"
        for key in (source, target):
            if key and key not in shown and len(shown) + len(others) < 2 * MOST:
                others.setdefault(key, link)
        if source and (source in shown or source in others) and (target in shown or target in others):
            edges.append((source, target, link))
    keys = [*shown, *others]
    spots = place(keys, [(source, target) for source, target, _ in edges])
    at = {
        key: (_MARGIN + column * _STEP_X, _MARGIN + spot * _STEP_Y) for key, (column, spot) in spots.items()
    }
    metrics = _metric_lines(about)
    boxes = [_model_box(about, key, at[key], metrics.get(key, ())) for key in shown]
    boxes += [_other_box(key, link, at[key]) for key, link in others.items()]
    return Drawing(
        tuple(boxes),
        tuple(_lines(edges, at)),
        max((x for x, _ in at.values()), default=0) + WIDTH + _MARGIN,
        max((y for _, y in at.values()), default=0) + HEIGHT + _MARGIN,
        max(0, len(models) - MOST),
    )


def _metric_lines(about: Lineage) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, str]] = {}
    for item in about.evaluations:
        for name, value in metrics_of(item.result).items():
            found.setdefault(item.model, {})[name] = number(value)
    return {
        model: tuple(f"{middle(name, 18)} {value}" for name, value in list(items.items())[:_METRICS])
        for model, items in found.items()
    }


def _model_box(about: Lineage, key: str, at: tuple[float, float], metrics: Sequence[str]) -> Box:
    node = next(item for item in (about.model, *about.ancestors, *about.descendants) if item.model_id == key)
    ref = next((name for name in node.refs if name.startswith("models/")), next(iter(node.refs), ""))
    name = ref.partition("/")[2] or short(key)
    kind = "self" if node is about.model else "model" if ref else "gone"
    lines = tuple(metrics) or ((short(key),) if ref else ("no ref names it",))
    return Box(kind, *at, middle(name, _NAME), f"{ref or 'Model'} {short(key)}", lines, ref)


def _other_box(key: str, link: Link, at: tuple[float, float]) -> Box:
    kind, _, name = key.partition(":")
    if kind == "name":
        return Box("input", *at, middle(name, _NAME), f"{name}, never in this store", ("not in the store",))
    status = link.status or "unknown"
    return Box(status, *at, middle(name, _NAME), f"Run {name}: {status}", (status,), f"runs/{name}")


def _lines(edges: Sequence[tuple[str, str, Link]], at: Mapping[str, tuple[float, float]]) -> list[Line]:
    between: dict[tuple[str, str], list[Link]] = {}
    for source, target, link in edges:
        between.setdefault((source, target), []).append(link)
    lines = []
    for (source, target), links in between.items():
        newest = links[-1]
        (x1, y1), (x2, y2) = at[source], at[target]
        x1, y1, y2 = x1 + WIDTH, y1 + HEIGHT / 2, y2 + HEIGHT / 2
        if x2 < x1:
            # Back to a model that is further left, or the same one: around the boxes.
            bend = f"C{x1 + 60:g},{y1 - HEIGHT:g} {x2 - 60:g},{y2 - HEIGHT:g}"
        else:
            middle_x = (x1 + x2) / 2
            bend = f"C{middle_x:g},{y1:g} {middle_x:g},{y2:g}"
        label = middle(newest.pass_name or ("run" if newest.run else "base"), 11)
        if len(links) > 1:
            label += f" \N{MULTIPLICATION SIGN}{len(links)}"
        status = newest.status or ("done" if not newest.run else "unknown")
        # At the end of the curve, where it is flat, on the side that it does not come from.
        lines.append(
            Line(
                f"M{x1:g},{y1:g} {bend} {x2:g},{y2:g}",
                x2 - 8 if x2 > x1 else x1,
                y2 + 15 if y1 < y2 else y2 - 7,
                label,
                duration(newest.duration),
                status,
                newest.run,
            )
        )
    return lines
