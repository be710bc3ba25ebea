"""`casstore repair`: make a store whole again."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from casstore.cli.support.command import Command
from casstore.cli.support.exits import ERROR
from casstore.cli.support.text import counted, human_bytes, short_id
from casstore.cli.support.transfer import bytes_per_second
from casstore.machine.local_names import tree_name
from casstore.ops.repair import Health

if TYPE_CHECKING:
    from casstore import RepairReport
    from casstore.cli.support.session import Session
    from casstore.ops.repair import RecordRepair

_FILES = 3


@click.command(cls=Command)
@click.argument(
    "refs",
    nargs=-1,
    type=tree_name,
    metavar="[REF]...",
    help="Refs, prefixes that end with '/', or model ids; without any, the whole store is read.",
)
@click.option(
    "source",
    "--from",
    metavar="STORE",
    help="Where to take what is lost: a path, a URL or the name of a remote. By default all remotes are asked.",
)
@click.option("--apply", is_flag=True, help="Do it. Without this option, only say what would be done.")
@click.option("--limit", type=bytes_per_second, metavar="RATE", help="Bytes per second at most, such as 5M.")
def run(out: Session, *, refs: tuple[str, ...], source: str | None, apply: bool, limit: float | None) -> None:
    """Take good copies of what is damaged or missing.

    Only says what it would do, unless --apply is given. Reads what the refs need, or everything, and takes good copies of what is damaged or missing from other packs of the
    store, from what can still be read of damaged ones, and from other stores. Damaged packs are quarantined, never deleted. The
    exit code is 1 if something stays missing.
    """
    with ExitStack() as stack:
        store = stack.enter_context(out.open(read_only=not apply))
        other = None
        if source is not None:
            other = stack.enter_context(out.open_remote(source, store, read_only=True))
        callback = stack.enter_context(out.progress("Reading"))
        report = store.repair(
            refs or None, source=other, dry_run=not apply, bandwidth_limit=limit, callback=callback
        )
    if out.as_json:
        out.print_json({"ok": report.ok, **asdict(report)})
    else:
        _show(out, report)
    for name, reason in report.unreachable.items():
        out.note(f"{name} could not be asked: {reason}")
    for problem in report.problems:
        out.note(problem)
    if not report.ok:
        raise click.exceptions.Exit(ERROR)


def _show(out: Session, report: RepairReport) -> None:
    rows = [
        (ref.name, ref.health.value, str(ref.objects), str(ref.healed), str(ref.missing), _files(ref.files))
        for ref in report.refs
        if ref.health is not Health.WHOLE
    ]
    if rows:
        out.table(
            ("ref", "is" if not report.dry_run else "would be", ">objects", ">healed", ">missing", "files"),
            rows,
        )
    for pack, reason in report.packs.items():
        out.print_line(pack, reason)
    for key, reason in report.segments.items():
        out.print_line(key, reason)
    for record in report.records:
        out.print_line(record.name, _record(record, dry_run=report.dry_run))
    would = "Would " if report.dry_run else ""
    done = [
        text
        for count, text in (
            (len(report.packs), f"quarantine {counted(len(report.packs), 'damaged pack')}"),
            (len(report.segments), f"replace {counted(len(report.segments), 'damaged index segment')}"),
            (report.uncovered, f"cover {counted(report.uncovered, 'pack')} by the index"),
        )
        if count
    ]
    done += [f"copy {counted(count, 'object')} from {place}" for place, count in report.sources.items()]
    if done and report.dry_run:
        out.summary(f"{would}{'; '.join(done)}. Run it again with --apply to do so.")
    elif done:
        out.summary(f"Done: {'; '.join(done)} ({human_bytes(report.bytes_written)} written).")
    counts = [f"{report.count(health)} {health.value}" for health in Health if report.count(health)]
    out.summary(f"{counted(len(report.refs), 'ref')}: {', '.join(counts) or 'nothing to examine'}.")


def _files(files: tuple[str, ...]) -> str:
    return ", ".join(files[:_FILES]) + (f" and {len(files) - _FILES} more" if len(files) > _FILES else "")


def _record(record: RecordRepair, *, dry_run: bool) -> str:
    """Say what a damaged record said, or may have said."""
    if record.source is not None:
        value = f"model {short_id(record.model_id)}" if record.model_id else "that it is deleted"
        did = "would be" if dry_run else "was"
        return (
            f"Its newest record cannot be read. It said {value}, by {record.source}, and {did} written anew."
        )
    known = f" It may have been {', '.join(record.candidates[:_FILES])}." if record.candidates else ""
    return f"{record.reason}{known} Nothing is written, since nobody knows for certain what it said."
