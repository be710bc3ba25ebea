"""`casstore du`: where the bytes are, and what removing refs would free."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from casstore.cli.support.command import Command
from casstore.cli.support.exits import ERROR
from casstore.cli.support.text import counted, human_bytes
from casstore.machine.local_names import tree_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore import UsageRow
    from casstore.cli.support.session import Session

_HOLDERS = 3
_TOTALS = {
    "referenced": "needed by refs",
    "unneeded": "needed by no ref",
    "pack_overhead": "beside frames in packs",
    "unreadable": "packs that cannot be read",
    "index": "index",
    "records": "records",
    "other": "other files",
    "temporaries": "temporary files",
}


@click.command(cls=Command)
@click.argument(
    "prefixes", nargs=-1, type=tree_name, metavar="[REF_PREFIX]...", help="Only refs with these prefixes."
)
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    metavar="N",
    help="One row for all refs whose names agree in N parts; 1 for models, runs, evaluations and tags.",
)
def run(out: Session, *, prefixes: Sequence[str], depth: int | None) -> None:
    """Say where the bytes are, and what removing refs would free.

    For each ref: its size as files, what it takes in the store, how much of that nothing else needs, and what gc would free
    if only it were removed. What would free most comes first. Of what it takes, the part "for deltas" are chunks of other models
    that its deltas rest on; "saved" is about what these deltas save.
    """
    with out.open(read_only=True) as store:
        usage = out.answer_for(store).du(*prefixes, depth=depth)
    totals = asdict(usage.totals)
    if out.as_json:
        out.print_json(
            {
                "refs": [_as_json(row) for row in usage.rows],
                "together": _as_json(usage.together),
                "totals": {**totals, "bytes_total": usage.totals.bytes_total},
            }
        )
    elif out.quiet:
        for row in usage.rows:
            out.print_line(row.name)
    else:
        bases = any(row.bytes_bases or row.bytes_saved for row in usage.rows)
        more = [*([">for deltas", ">saved"] if bases else []), ">as files", *([">refs"] if depth else [])]
        rows = [_cells(row, depth=depth, bases=bases) for row in usage.rows]
        together = _cells(usage.together, depth=depth, bases=bases, name="all of these")
        out.table(
            (">frees", ">alone", ">stored", *more, "ref", "held by", *(["deltas rest on"] if bases else [])),
            [*rows, together],
        )
        out.table(
            ("where", ">bytes"),
            [(text, human_bytes(totals[name])) for name, text in _TOTALS.items() if totals[name]]
            + [("the whole store", human_bytes(usage.totals.bytes_total))],
            label="total",
        )
    missing = [row for row in usage.rows if row.missing]
    for row in missing:
        out.note(f"{row.name} needs {counted(row.missing, 'object')} that no pack holds: run casstore check.")
    if missing:
        raise click.exceptions.Exit(ERROR)


def _as_json(row: UsageRow) -> dict[str, Any]:
    return {**asdict(row), "bytes_shared": row.bytes_shared}


def _cells(row: UsageRow, *, depth: int | None, bases: bool, name: str | None = None) -> tuple[str, ...]:
    return (
        human_bytes(row.bytes_freed),
        human_bytes(row.bytes_alone),
        human_bytes(row.bytes_stored),
        *([human_bytes(row.bytes_bases), human_bytes(row.bytes_saved)] if bases else []),
        human_bytes(row.bytes_logical),
        *([str(row.refs)] if depth else []),
        name or row.name,
        _some(row.held_by),
        *([_some(row.rests_on)] if bases else []),
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _HOLDERS} more" if len(names) > _HOLDERS else ""
    return (", ".join(names[:_HOLDERS]) + more) or "-"
