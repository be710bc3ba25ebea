"""`casstore log`: which models came about when, by which run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from casstore.cli.support.command import LIMIT, Command
from casstore.cli.support.graph import draw
from casstore.cli.support.lineage import link_as_json, link_cells, node_as_json
from casstore.cli.support.text import local_time, short_id, utc_time
from casstore.machine.local_names import tree_name
from casstore.ops.lineage import lineage, read_graph

if TYPE_CHECKING:
    from casstore.cli.support.session import Session
    from casstore.ops.lineage import LineageGraph, Link, LogEntry


@click.command(cls=Command)
@click.argument(
    "ref_or_id",
    required=False,
    type=tree_name,
    metavar="[REF_OR_ID]",
    help="Only this model and what it was made from.",
)
@click.option("--graph", is_flag=True, help="Draw which model was made from which.")
@LIMIT
def run(out: Session, *, ref_or_id: str | None, graph: bool, limit: int | None) -> None:
    """List models with the runs that made them, newest first."""
    if graph and limit is not None:
        raise click.BadParameter("--graph draws everything; leave out --limit.", param_hint="--limit")
    with out.open(read_only=True) as store:
        found = read_graph(out.answer_for(store))
        models, links, ref = set(found.model_ids()), found.links, ""
        if ref_or_id is not None:
            about = lineage(store, ref_or_id, graph=found)
            ref = store.resolve(ref_or_id).ref
            models = {node.model_id for node in (about.model, *about.ancestors)}
            links = [link for link in about.links if link.output in models or f"models/{link.run}" == ref]
    if graph:
        _graph(out, found, links, [model_id for model_id in found.model_ids() if model_id in models])
    else:
        entries = found.log(models if ref else None, ref=ref)[:limit]
        out.listing(
            (_as_json(found, entry) for entry in entries),
            names=map(_name, entries),
            columns=("time", "name", "model", "pass", "input", "status", ">took", ">evaluations"),
            rows=(
                (
                    local_time(entry.time_ns),
                    _name(entry),
                    short_id(entry.model_id) or "-",
                    *link_cells(entry.links[-1] if entry.links else None),
                    str(_evaluations(found, entry)),
                )
                for entry in entries
            ),
        )


def _graph(out: Session, found: LineageGraph, links: list[Link], models: list[str]) -> None:
    if out.as_json:
        nodes = [node_as_json(found.node(model_id)) for model_id in models]
        out.print_json({"models": nodes, "links": [link_as_json(link) for link in links]})
        return
    for line in draw(found, links, models):
        out.print_line(line)


def _name(entry: LogEntry) -> str:
    return entry.ref or f"runs/{entry.links[0].run}"


def _evaluations(found: LineageGraph, entry: LogEntry) -> int:
    return len(found.evaluations.get(entry.model_id, ())) if entry.model_id else 0


def _as_json(found: LineageGraph, entry: LogEntry) -> dict[str, Any]:
    return {
        "time": utc_time(entry.time_ns),
        "time_ns": entry.time_ns,
        "ref": entry.ref or None,
        "model_id": entry.model_id or None,
        "links": [link_as_json(link) for link in entry.links],
        "evaluations": _evaluations(found, entry),
    }
