"""`casstore check`: verify a store."""

from dataclasses import asdict
from typing import Annotated

import typer

from casstore.cli.support.exits import ERROR
from casstore.cli.support.leftovers import leftovers_text
from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import human_bytes


def run(
    *,
    read_data: Annotated[
        bool,
        typer.Option(
            "--read-data", help="Read, hash and decode every byte of every pack.", show_default=False
        ),
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Verify a store; exit code 1 if anything is wrong. Changes nothing."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        with out.open(read_only=True) as opened, out.progress("Checking") as callback:
            report = opened.check(read_data=read_data, callback=callback)
        if out.as_json:
            out.print_json({"ok": report.ok, **asdict(report)})
        else:
            for problem in report.problems:
                out.print_line(problem.key, problem.message)
            for found in () if quiet else report.foreign:
                out.print_line(found.key, found.message)
            out.summary(
                f"Checked {report.packs} packs ({report.frames} frames), {report.segments} index segments,"
                f" {report.records} records, {report.models} models"
                f"{f'; read {human_bytes(report.bytes_read)}' if read_data else ''}:"
                f" {_verdict(len(report.problems))}{_others(report.foreign_files)}."
            )
            if report.leftovers:
                out.summary(f"Of interrupted or deleted work there are {leftovers_text(report.leftovers)}.")
        if not report.ok:
            raise typer.Exit(ERROR)


def _verdict(problems: int) -> str:
    if not problems:
        return "nothing is wrong"
    return "1 problem" if problems == 1 else f"{problems} problems"


def _others(files: int) -> str:
    if not files:
        return ""
    return "; 1 file is not casstore's" if files == 1 else f"; {files} files are not casstore's"
