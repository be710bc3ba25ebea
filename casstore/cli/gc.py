"""`casstore gc`: free what no ref reaches."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from casstore.cli.support.command import DRY_RUN, Command
from casstore.cli.support.exits import ERROR
from casstore.cli.support.sizes import Size
from casstore.cli.support.text import counted, human_bytes, human_duration
from casstore.ops.gc import GcPolicy, execute_gc, plan_gc

if TYPE_CHECKING:
    from casstore.cli.support.session import Session

_UNITS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


class _Age(click.ParamType[float]):
    """A number and a unit, as seconds."""

    name = "age"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(value[:-1]) * _UNITS[value[-1:]]
        except (KeyError, ValueError):
            self.fail(f"{value!r} is not an age: give a number and h, d or w, such as 30d.", param, ctx)


@click.command(cls=Command)
@click.option(
    "--keep-last",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Keep the last N values of each ref.",
)
@click.option(
    "--older-than",
    type=_Age(),
    metavar="AGE",
    help="Also delete refs below models/ that were written longer ago than this (12h, 30d, 8w); never tags.",
)
@click.option(
    "--unused-for",
    type=_Age(),
    metavar="AGE",
    help="Also delete refs below models/ that this machine has not used for this long; private stores only.",
)
@click.option(
    "--max-size",
    type=Size(),
    metavar="SIZE",
    help="Also delete cached models until the store is no larger than this (500MB, 50GB, 1TiB); private stores only.",
)
@click.option("--verbose", "-v", is_flag=True, help="Also list the refs that go, and why.")
@click.option(
    "--orphans",
    type=click.Choice(["old", "now"]),
    default="old",
    help="With 'now', also free what an add left less than an hour ago, and might still use.",
)
@DRY_RUN
def run(
    out: Session,
    *,
    keep_last: int,
    older_than: float | None,
    unused_for: float | None,
    max_size: int | None,
    verbose: bool,
    orphans: str,
    dry_run: bool,
) -> None:
    """Free what no ref reaches any more.

    Deleted models, and leftovers of interrupted work. Safe while other commands work on the store. Models that a tag or a
    pin names are never deleted, nor those that a running pipeline uses.
    """
    policy = GcPolicy(
        keep_last=keep_last,
        older_than=older_than,
        unused_for=unused_for,
        max_size=max_size,
        orphans_now=orphans == "now",
    )
    with out.open(read_only=dry_run) as store:
        plan = plan_gc(store, policy)
        if not out.as_json and not out.quiet:
            rows = (
                (item.what, str(item.count), human_bytes(item.bytes_freed), item.why) for item in plan.items
            )
            out.table(("what", ">number", ">frees", "why"), rows)
            if verbose:
                out.table(("ref", "why"), ((item.name, item.why) for item in plan.deletions))
        report = None if dry_run else execute_gc(store, plan, tell=out.note)
    problems = list(plan.problems) if report is None else report.problems
    kept = {} if report is None else report.kept
    if report is None:
        summary = (
            f"Would free {human_bytes(plan.bytes_freed)}{_refs_text(len(plan.refs), 'would be deleted')}."
        )
    else:
        later = ""
        if report.bytes_condemned:
            later = f"; {human_bytes(report.bytes_condemned)} more are condemned, and go with a later gc"
        refs = _refs_text(len(report.refs_deleted), "were deleted")
        summary = f"Freed {human_bytes(report.bytes_freed)} in {human_duration(report.seconds)}{refs}{later}."
    out.report(
        {
            "plan": [asdict(item) for item in plan.items],
            "bytes_to_free": plan.bytes_freed,
            "refs": [
                {
                    "ref": item.name,
                    "model_id": item.record.target,
                    "why": item.why,
                    "freed": "now" if item.at_once else "later",
                }
                for item in plan.deletions
            ],
            "notes": list(plan.notes),
            "report": asdict(report) if report is not None else None,
            "missing": plan.missing,
            "problems": problems,
        },
        summary,
    )
    for name, count in plan.missing.items():
        out.note(f"{name} needs {count} objects that no pack holds; the rest of it was kept.")
    for text in (*plan.notes, *problems):
        out.note(text)
    for pack, reason in kept.items():
        out.note(f"The pack {pack} stays: {reason}")
    if plan.missing or problems or kept:
        raise click.exceptions.Exit(ERROR)


def _refs_text(count: int, what: str) -> str:
    return f"; {counted(count, 'ref')} {what.replace('were', 'was') if count == 1 else what}" if count else ""
