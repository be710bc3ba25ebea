"""`casstore check`: verify a store."""

from dataclasses import asdict

import click

from casstore.cli.support.command import Command
from casstore.cli.support.exits import ERROR
from casstore.cli.support.session import Session
from casstore.cli.support.text import counted, human_bytes, leftovers_text


@click.command(cls=Command)
@click.option("--read-data", is_flag=True, help="Read, hash and decode every byte of every pack.")
def run(out: Session, *, read_data: bool) -> None:
    """Verify a store; changes nothing.

    The exit code is 1 if anything is wrong.
    """
    with out.open(read_only=True) as store, out.progress("Checking") as callback:
        report = store.check(read_data=read_data, callback=callback)
    if out.as_json:
        out.print_json({"ok": report.ok, **asdict(report)})
    else:
        for problem in report.problems:
            out.print_line(problem.key, problem.message)
        for found in () if out.quiet else report.foreign:
            out.print_line(found.key, found.message)
        read = f"; read {human_bytes(report.bytes_read)}" if read_data else ""
        wrong = counted(len(report.problems), "problem") if report.problems else "nothing is wrong"
        out.summary(
            f"Checked {report.packs} packs ({report.frames} frames), {report.segments} index segments,"
            f" {report.records} records, {report.models} models{read}: {wrong}{_others(report.foreign_files)}."
        )
        if report.leftovers:
            out.summary(f"Left by interrupted or deleted work: {leftovers_text(report.leftovers)}.")
    if not report.ok:
        raise click.exceptions.Exit(ERROR)


def _others(files: int) -> str:
    if not files:
        return ""
    return "; 1 file is not casstore's" if files == 1 else f"; {files} files are not casstore's"
