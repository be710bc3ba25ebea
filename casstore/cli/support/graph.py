"""A lineage as text: one trunk from the oldest input down, and a column for each branch that leaves it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.cli.support.text import human_duration, short_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore.ops.lineage import LineageGraph, Link

_SHOWN_REFS = 3


@dataclass(frozen=True, slots=True)
class _Drawing:
    """What is drawn: `children` and `same` hold links by input and output, `parents` whose child each key is ("" for a top)."""

    children: dict[str, dict[str, list[Link]]]
    same: dict[str, list[Link]]
    parents: dict[str, str]
    sizes: dict[str, int]


def draw(graph: LineageGraph, links: list[Link], models: list[str]) -> Iterator[str]:
    """Yield the lines of a drawing of `links` and of `models` that no link mentions.

    What is reached a second time is marked and not drawn again. The branch with most below it goes straight
    on, so that the drawing is narrow however long a chain is.
    """
    drawing = _arrange(links, models)
    tops = [key for key, parent in drawing.parents.items() if not parent]
    for number, top in enumerate(tops):
        if number:
            yield ""
        yield from _lines(graph, drawing, top)


def link_text(links: list[Link]) -> str:
    """Return what happened between an input and an output, the newest first of several."""
    newest = links[-1]
    if not newest.run:
        text = "added with this base"
    else:
        took = f", {human_duration(newest.duration / 1e9)}" if newest.duration else ""
        text = f"{newest.pass_name or 'run'}, {newest.status or 'unknown'}{took}"
    more = len(links) - 1
    return text + (f" (and {more} more)" if more else "")


def _arrange(links: list[Link], models: list[str]) -> _Drawing:
    keys: dict[str, None] = {}
    children: dict[str, dict[str, list[Link]]] = {}
    same: dict[str, list[Link]] = {}
    below: set[str] = set()
    for link in links:
        source = link.input or (f"name:{link.input_name}" if link.input_name else "")
        made = link.output or f"run:{link.run}"
        keys.update(dict.fromkeys(filter(None, (source, made))))
        if source == made:
            same.setdefault(made, []).append(link)
        elif source:
            children.setdefault(source, {}).setdefault(made, []).append(link)
            below.add(made)
    keys.update(dict.fromkeys(models))
    parents: dict[str, str] = {}
    # What only a cycle leads to has no top: the oldest of it becomes one.
    for top in (*(key for key in keys if key not in below), *keys):
        if top in parents:
            continue
        parents[top] = ""
        waiting = deque([top])
        while waiting:
            key = waiting.popleft()
            for child in children.get(key, ()):
                if child not in parents:
                    parents[child] = key
                    waiting.append(child)
    sizes = dict.fromkeys(parents, 1)
    for key, parent in reversed(parents.items()):
        if parent:
            sizes[parent] += sizes[key]
    return _Drawing(children, same, parents, sizes)


def _lines(graph: LineageGraph, drawing: _Drawing, top: str) -> Iterator[str]:
    # A stack of its own: a long chain is deeper than Python calls. Each entry: lines in front, column, key, again.
    waiting: list[tuple[tuple[str, ...], str, str, bool]] = [((), "", top, False)]
    while waiting:
        before, prefix, key, again = waiting.pop()
        yield from before
        yield f"{prefix}{_label(graph, key)}{' (again)' if again else ''}"
        if again:
            continue
        if key in drawing.same:
            yield f"{prefix}|   {link_text(drawing.same[key])}: the same model came out"
        found = drawing.children.get(key, {})
        own = {child: drawing.sizes[child] if drawing.parents[child] == key else 0 for child in found}
        for number, child in enumerate(sorted(found, key=own.__getitem__, reverse=True)):
            text = link_text(found[child])
            column = prefix if number == 0 else f"{prefix}| "
            lines = (f"{column}|   {text}",) if number == 0 else (f"{prefix}|\\", f"{column}|   {text}")
            waiting.append((lines, column, child, own[child] == 0))


def _label(graph: LineageGraph, key: str) -> str:
    kind, _, name = key.partition(":")
    if kind == "name" and name:
        return f"o {name} (not in the store)"
    if kind == "run" and name:
        return f"x runs/{name}"
    node = graph.node(key)
    shown = ", ".join(node.refs[:_SHOWN_REFS]) + (", …" if len(node.refs) > _SHOWN_REFS else "")
    return f"* {shown or '(not in the store)'}  {short_id(key)}"
