"""What push, pull and sync share: plan, show, execute, report."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

import casstore
from casstore.cli.support.command import DRY_RUN
from casstore.cli.support.exits import ERROR, say
from casstore.cli.support.sizes import bytes_in
from casstore.cli.support.text import counted, human_bytes, human_duration, human_rate, short_id
from casstore.machine.local_names import tree_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore import Store, SyncPlan, SyncReport
    from casstore.cli.support.session import Session

_Command = TypeVar("_Command", bound="Callable[..., object]")

_ROUND_TRIP = 0.05
_BANDWIDTH = 100_000_000 / 8


def bytes_per_second(text: str) -> float:
    """Read a rate such as 5M or 500KiB: bytes per second. Raises BadParameter for anything else."""
    rate = bytes_in(text.lower().removesuffix("/s")) or 0.0
    if not 1 <= rate < 1e18:
        raise click.BadParameter(f"{text!r} is not a rate: write 5M or 500KiB, in bytes per second.")
    return rate


REMOTE = click.argument(
    "remote", metavar="REMOTE", help="A name that `casstore remote add` made, a path or a URL."
)
_OPTIONS = (
    click.argument(
        "refs",
        nargs=-1,
        type=tree_name,
        metavar="[REF]...",
        help="Refs, prefixes that end with '/', or model ids.",
    ),
    DRY_RUN,
    click.option(
        "--overwrite", is_flag=True, help="Write refs even where the other side has a value of its own."
    ),
    click.option(
        "--with-bases",
        is_flag=True,
        help="Copy what deltas rest on as well, so that they stay as small as they are.",
    ),
    click.option(
        "--limit", type=bytes_per_second, metavar="RATE", help="Bytes per second at most, such as 5M."
    ),
)


def transfer_options(command: _Command) -> _Command:
    """Add the options of push, pull and sync to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def transfer(
    out: Session,
    src: Store,
    dst: Store,
    *,
    label: str,
    refs: tuple[str, ...],
    dry_run: bool,
    overwrite: bool,
    with_bases: bool,
    limit: float | None,
) -> None:
    """Sync and say what was done; exit code 1 if a ref was left alone because of a conflict, or left out as damaged."""
    with out.status() as status:
        status("Comparing")
        plan = casstore.plan_sync(
            src, dst, refs or None, overwrite=overwrite, keep_going=True, with_bases=with_bases
        )
    if dry_run:
        _show_plan(out, plan, limit=limit)
        conflicts, damaged = plan.conflicts, plan.damaged
    else:
        with out.progress(label) as callback:
            report = casstore.execute_sync(plan, callback=callback, bandwidth_limit=limit)
        _show_report(out, plan, report)
        conflicts, damaged = report.conflicts, report.damaged
    for found in conflicts:
        say(
            f"{found.name} was left alone: {found.reason} ({short_id(found.src_target)} here,"
            f" {short_id(found.dst_target)} there). Use --overwrite to take this side's."
        )
    for item in damaged:
        say(f"{item.name} was left out: {item.reason}")
    if conflicts or damaged:
        raise click.exceptions.Exit(ERROR)


def _show_plan(out: Session, plan: SyncPlan, *, limit: float | None) -> None:
    seconds = plan.seconds(limit or _BANDWIDTH, _ROUND_TRIP)
    if out.as_json:
        out.print_json({**_plan_json(plan), "dry_run": True, "seconds_estimated": seconds})
        return
    out.listing(
        (),
        names=(ref.name for ref in plan.refs),
        columns=("ref", "target", "there", ">new bytes"),
        rows=(
            (
                ref.name,
                short_id((ref.record.target or b"").hex()),
                ref.state.value,
                human_bytes(ref.bytes_stored),
            )
            for ref in plan.refs
        ),
    )
    link = f"{human_rate(int(limit or _BANDWIDTH), 1)} and {_ROUND_TRIP * 1000:.0f} ms"
    out.summary(
        f"Would write {counted(len(plan.refs), 'ref')} to {plan.dst.backend.url}: {plan.objects} objects,"
        f" {human_bytes(plan.bytes_stored)} ({human_bytes(plan.bytes_plain)} as files), {counted(plan.requests, 'request')};"
        f" about {human_duration(seconds)} at {link}{_others(plan)}."
    )


def _show_report(out: Session, plan: SyncPlan, report: SyncReport) -> None:
    if out.quiet and not out.as_json:
        for ref in report.refs:
            out.print_line(ref)
    out.report(
        {"src": plan.src.backend.url, "dst": plan.dst.backend.url, **asdict(report)},
        f"Wrote {counted(len(report.refs), 'ref')} to {plan.dst.backend.url}: {report.objects} objects,"
        f" {human_bytes(report.bytes_moved)} in {counted(report.requests, 'request')}; {human_duration(report.seconds)},"
        f" {human_rate(report.bytes_moved, report.seconds)}{_others(report)}.",
    )


def _plan_json(plan: SyncPlan) -> dict[str, Any]:
    return {
        "src": plan.src.backend.url,
        "dst": plan.dst.backend.url,
        "refs": [
            {
                "ref": ref.name,
                "target": ref.record.target or b"",
                "state": ref.state.value,
                "bytes_stored": ref.bytes_stored,
            }
            for ref in plan.refs
        ],
        "equal": plan.equal,
        "ahead": plan.ahead,
        "conflicts": plan.conflicts,
        "damaged": plan.damaged,
        "objects": plan.objects,
        "chunks": plan.chunks,
        "bytes_stored": plan.bytes_stored,
        "bytes_plain": plan.bytes_plain,
        "reads": plan.reads,
        "puts": plan.puts,
    }


def _others(found: SyncPlan | SyncReport) -> str:
    text = f"; {len(found.equal)} equal already" if found.equal else ""
    return text + (f"; {len(found.ahead)} newer there, left alone" if found.ahead else "")
