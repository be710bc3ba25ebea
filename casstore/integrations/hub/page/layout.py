"""Where the nodes of a lineage are drawn: in columns, each to the right of all that it was made from. No I/O.

Follows K. Sugiyama, S. Tagawa, M. Toda: Methods for Visual Understanding of Hierarchical System Structures (1981): ranks by the
longest path, then the order in each column by the mean position of neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["place"]

_SWEEPS = 4


def place(nodes: Sequence[str], edges: Iterable[tuple[str, str]]) -> dict[str, tuple[int, float]]:
    """Return the column of each node, from 0, and its place in the column, counted in nodes from the top.

    Edges of a cycle that lead back are ignored.
    """
    above: dict[str, list[str]] = {node: [] for node in nodes}
    below: dict[str, list[str]] = {node: [] for node in nodes}
    for source, target in dict.fromkeys(edges):
        if source != target:
            below[source].append(target)
            above[target].append(source)
    order = _without_cycles(nodes, above, below)
    column = dict.fromkeys(nodes, 0)
    for node in order:
        for target in below[node]:
            column[target] = max(column[target], column[node] + 1)
    columns: list[list[str]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for node in order:
        columns[column[node]].append(node)
    spot: dict[str, float] = {node: float(at) for items in columns for at, node in enumerate(items)}
    for sweep in range(_SWEEPS):
        forwards = sweep % 2 == 0
        for items in columns if forwards else reversed(columns):
            near = above if forwards else below
            items.sort(key=lambda node: _mean([spot[other] for other in near[node]], spot[node]))
            spot.update((node, float(at)) for at, node in enumerate(items))
    tallest = max((len(items) for items in columns), default=0)
    for items in columns:
        for at, node in enumerate(items):
            spot[node] = at + (tallest - len(items)) / 2
    return {node: (column[node], spot[node]) for node in nodes}


def _without_cycles(
    nodes: Sequence[str], above: dict[str, list[str]], below: dict[str, list[str]]
) -> list[str]:
    """Return the nodes so that all that one was made from come before it; drop the edges that forbid that."""
    waiting = {node: len(above[node]) for node in nodes}
    ready = [node for node in nodes if not waiting[node]]
    order: list[str] = []
    done: set[str] = set()
    rest = iter(nodes)
    while len(order) < len(nodes):
        if not ready:
            # Only a cycle is left: its first node goes next, and what leads back to it does not count.
            node = next(item for item in rest if item not in done)
            for source in [item for item in above[node] if item not in done]:
                above[node].remove(source)
                below[source].remove(node)
            ready.append(node)
        node = ready.pop(0)
        order.append(node)
        done.add(node)
        for target in below[node]:
            waiting[target] = sum(source not in done for source in above[target])
            if not waiting[target] and target not in done and target not in ready:
                ready.append(target)
    return order


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
