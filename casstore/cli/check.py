"""`casstore check`: verify a store."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from casstore.cli.support.command import Command
from casstore.cli.support.exits import ERROR
from casstore.cli.support.text import counted, human_bytes, human_percent, leftovers_text
from casstore.cli.support.transfer import bytes_per_second

if TYPE_CHECKING:
    from casstore import CheckReport
    from casstore.cli.support.session import Session
    from casstore.ops.check import DataRead

_ALL = "100%"
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


class _Share(click.ParamType[float]):
    """A percentage, as a share of 1."""

    name = "share"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            share = float(value.removesuffix("%")) / 100
        except ValueError:
            share = 0.0  # The error below says what is wrong.
        if not 0 < share <= 1:
            self.fail(
                f"{value!r} is not a share of the stored bytes: write --read-data=5%, or --read-data for all.",
                param,
                ctx,
            )
        return share


@click.command(cls=Command)
@click.option(
    "--read-data",
    type=_Share(),
    is_flag=False,
    flag_value=_ALL,
    metavar="[=N%]",
    help="Also read, hash and decode every pack, or N% of the stored bytes: the packs that were read longest ago.",
)
@click.option("--limit", type=bytes_per_second, metavar="RATE", help="Bytes per second at most, such as 5M.")
def run(out: Session, *, read_data: float | None, limit: float | None) -> None:
    """Verify a store; changes nothing.

    The exit code is 1 if anything is wrong.
    """
    with out.open(read_only=True) as store, out.progress("Checking") as callback:
        report = store.check(read_data=read_data or False, bandwidth_limit=limit, callback=callback)
    if out.as_json:
        out.print_json({"ok": report.ok, **asdict(report)})
    else:
        for problem in report.problems:
            out.print_line(problem.key, problem.message)
        for found in () if out.quiet else (*report.notes, *report.foreign):
            out.print_line(found.key, found.message)
        wrong = counted(len(report.problems), "problem") if report.problems else "nothing is wrong"
        out.summary(
            f"Checked {report.packs} packs ({report.frames} frames{_deltas(report)}), {report.segments} index segments,"
            f" {report.records} records, {report.models} models{_read(report)}: {wrong}{_others(report.foreign_files)}."
        )
        if report.data is not None:
            out.summary(_before(report.data))
        if report.apart:
            out.summary(
                f"Damaged, quarantined, and needed by no ref: {counted(len(report.apart), 'pack')}, for `casstore gc` to remove."
            )
        if report.leftovers:
            out.summary(f"Left by interrupted or deleted work: {leftovers_text(report.leftovers)}.")
    if not report.ok:
        raise click.exceptions.Exit(ERROR)


def _deltas(report: CheckReport) -> str:
    if not report.deltas:
        return ""
    lacking = f", {report.deltas_without_bases} of them without a base" if report.deltas_without_bases else ""
    return f", {report.deltas} of them deltas{lacking}"


def _read(report: CheckReport) -> str:
    data = report.data
    if data is None:
        return ""
    part = ""
    if report.bytes_read < data.bytes_total:
        part = f" of {human_bytes(data.bytes_total)} ({human_percent(report.bytes_read, data.bytes_total)})"
    return f"; read {human_bytes(report.bytes_read)}{part}"


def _before(data: DataRead) -> str:
    """Say how old the oldest check of a pack is."""
    if not data.remembered:
        return "This machine keeps no note of what was read, so the next check begins anew."
    if data.packs_unread:
        return f"{counted(data.packs_unread, 'pack')} {'was' if data.packs_unread == 1 else 'were'} never read whole and found good on this machine."
    if data.oldest is None:
        return "There is no pack to read."
    return f"Every pack was read whole and found good within the last {_age(time.time_ns() - data.oldest)}."


def _age(nanoseconds: int) -> str:
    seconds = max(1, nanoseconds // 10**9)
    for unit, length in _UNITS:
        if seconds >= 2 * length or length == 1:
            return counted(-(-seconds // length), unit)
    raise AssertionError("the last unit fits every age")


def _others(files: int) -> str:
    if not files:
        return ""
    return "; 1 file is not casstore's" if files == 1 else f"; {files} files are not casstore's"
