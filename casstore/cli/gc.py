"""`casstore gc`: free what no ref reaches."""

from dataclasses import asdict
from typing import Annotated

import typer

import casstore
from casstore.cli.support.exits import ERROR
from casstore.cli.support.options import DebugOption, DryRunOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import human_bytes, human_duration

_UNITS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def _seconds(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    try:
        return float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        raise typer.BadParameter(
            f"{text!r} is not an age: give a number and h, d or w, such as 30d."
        ) from None


def run(
    *,
    dry_run: DryRunOption = False,
    keep_last: Annotated[
        int,
        typer.Option("--keep-last", metavar="N", min=1, help="Keep the last N values of each ref."),
    ] = 1,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Delete refs below models/ that were written so long ago (12h, 30d, 8w); tags never.",
            show_default=False,
        ),
    ] = None,
    orphans: Annotated[
        str,
        typer.Option(
            "--orphans",
            metavar="old|now",
            help="With 'now', also what is so young that an add may be at work on it.",
        ),
    ] = "old",
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Free what no ref reaches: deleted models, leftovers of interrupted work. Safe beside other commands."""
    if orphans not in ("old", "now"):
        raise typer.BadParameter(f"--orphans is 'old' or 'now', not {orphans!r}.")
    age = _seconds(older_than) if older_than is not None else None
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        policy = casstore.GcPolicy(keep_last=keep_last, older_than=age, orphans_now=orphans == "now")
        with out.open(readonly=dry_run) as opened:
            plan = casstore.plan_gc(opened, policy)
            if not as_json and not quiet:
                out.table(
                    ["what", ">number", ">frees", "why"],
                    [
                        (item.what, str(item.count), human_bytes(item.bytes_freed), item.why)
                        for item in plan.items
                    ],
                )
            report = None if dry_run else casstore.execute_gc(opened, plan, tell=out.note)
        problems = list(plan.problems) if report is None else report.problems
        kept = {} if report is None else report.kept
        if as_json:
            out.print_json(
                {
                    "plan": [asdict(item) for item in plan.items],
                    "bytes_to_free": plan.bytes_freed,
                    "refs": list(plan.refs),
                    "report": asdict(report) if report is not None else None,
                    "missing": plan.missing,
                    "problems": problems,
                }
            )
        elif report is None:
            out.summary(f"Would free {human_bytes(plan.bytes_freed)}.")
        else:
            later = (
                f"; {human_bytes(report.bytes_condemned)} more are condemned, and go with a later gc"
                if report.bytes_condemned
                else ""
            )
            out.summary(
                f"Freed {human_bytes(report.bytes_freed)} in {human_duration(report.seconds)}{later}."
            )
        for name, count in plan.missing.items():
            out.note(f"{name} needs {count} objects that no pack holds; the rest of it was kept.")
        for problem in problems:
            out.note(problem)
        for pack, reason in kept.items():
            out.note(f"The pack {pack} stays: {reason}")
        if plan.missing or problems or kept:
            raise typer.Exit(ERROR)
