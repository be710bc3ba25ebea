"""`casstore log`: which models came about when, by which run."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import local_time, short_id, utc_time
from casstore.machine.local_names import tree_name

if TYPE_CHECKING:
    from casstore.cli.support.session import Session
    from casstore.ops.lineage import LineageGraph, Link, LogEntry


def run(
    *,
    ref_or_id: Annotated[
        str | None,
        typer.Argument(
            parser=tree_name,
            metavar="[REF_OR_ID]",
            help="Only this model and what it was made from.",
            show_default=False,
        ),
    ] = None,
    graph: Annotated[
        bool, typer.Option("--graph", help="Draw which model was made from which.", show_default=False)
    ] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Only the newest N.", show_default=False)
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the history of models with the runs that made them, newest first."""
    if graph and limit is not None:
        raise typer.BadParameter("--graph draws everything; leave out --limit.", param_hint="--limit")
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        from casstore.ops.lineage import lineage, read_graph  # noqa: PLC0415 - see cli/__init__.py

        with out.open(read_only=True) as opened:
            found = read_graph(out.answer_for(opened))
            models, links, ref = set(found.model_ids()), found.links, ""
            if ref_or_id is not None:
                about = lineage(opened, ref_or_id, graph=found)
                ref = opened.resolve(ref_or_id).ref
                models = {node.model_id for node in (about.model, *about.ancestors)}
                links = [link for link in about.links if link.output in models or f"models/{link.run}" == ref]
        if graph:
            _graph(out, found, links, [model_id for model_id in found.model_ids() if model_id in models])
        else:
            _list(out, found, found.log(models if ref else None, ref=ref)[:limit])


def _graph(out: "Session", found: "LineageGraph", links: "list[Link]", models: list[str]) -> None:
    from casstore.cli.support.graph import draw  # noqa: PLC0415 - see cli/__init__.py
    from casstore.cli.support.lineage import link_as_json, node_as_json  # noqa: PLC0415 - as above

    if out.as_json:
        nodes = [node_as_json(found.node(model_id)) for model_id in models]
        out.print_json({"models": nodes, "links": [link_as_json(link) for link in links]})
        return
    for line in draw(found, links, models):
        out.print_line(line)


def _list(out: "Session", found: "LineageGraph", entries: "list[LogEntry]") -> None:
    from casstore.cli.support.lineage import link_cells  # noqa: PLC0415 - see cli/__init__.py

    if out.as_json:
        out.print_json([_as_json(found, entry) for entry in entries])
    elif out.quiet:
        for entry in entries:
            out.print_line(_name(entry))
    else:
        out.table(
            ("time", "name", "model", "pass", "input", "status", ">took", ">evaluations"),
            (
                (
                    local_time(entry.time_ns),
                    _name(entry),
                    short_id(entry.model_id) or "-",
                    *link_cells(entry.links[-1] if entry.links else None),
                    str(len(found.evaluations.get(entry.model_id, ())) if entry.model_id else 0),
                )
                for entry in entries
            ),
        )


def _name(entry: "LogEntry") -> str:
    return entry.ref or f"runs/{entry.links[0].run}"


def _as_json(found: "LineageGraph", entry: "LogEntry") -> dict[str, Any]:
    from casstore.cli.support.lineage import link_as_json  # noqa: PLC0415 - see cli/__init__.py

    return {
        "time": utc_time(entry.time_ns),
        "time_ns": entry.time_ns,
        "ref": entry.ref or None,
        "model_id": entry.model_id or None,
        "links": [link_as_json(link) for link in entry.links],
        "evaluations": len(found.evaluations.get(entry.model_id, ())) if entry.model_id else 0,
    }
