"""`casstore demo`: the main job on a real model, measured."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from casstore.cli.support.options import DebugOption, JsonOption, QuietOption
from casstore.cli.support.session import session
from casstore.cli.support.text import human_bytes, human_duration, human_percent, human_rate, megabytes
from casstore.machine.user_folders import expand_home

if TYPE_CHECKING:
    from casstore.api.demo import DemoReport
    from casstore.cli.support.session import Session


def run(
    *,
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="A model file or folder; without it the package wordllama's."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="PATH_OR_URL",
            help="Keep the demo's store there; without it one in a temporary folder.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Add a model and variants of it, get one back, compare every byte, and show what was saved."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        from casstore.api.demo import run_demo  # noqa: PLC0415 - see cli/__init__.py

        with out.status() as announce:
            report = run_demo(path, store=store and expand_home(store), announce=announce)
        if out.as_json:
            out.print_json(asdict(report))
        else:
            _print(out, report)


def _print(out: "Session", report: "DemoReport") -> None:
    out.summary(f"Model: {report.source}")
    used = sorted({encoding for step in report.steps for encoding in step.saved} - {"raw"})
    rows = [
        (
            step.title,
            human_bytes(step.bytes_total),
            human_bytes(step.bytes_dedup),
            *(human_bytes(step.saved.get(encoding, 0)) for encoding in used),
            human_bytes(step.bytes_stored),
            f"{step.seconds:.2f}",
            megabytes(step.bytes_total, step.seconds),
        )
        for step in report.steps
    ]
    # The columns read as a sum: as files, less what each means saved, is what is stored.
    saved = [f">-{encoding}" for encoding in used]
    out.table(("step", ">as files", ">-dedup", *saved, ">=stored", ">seconds", ">MB/s"), rows)
    total = sum(step.bytes_total for step in report.steps)
    stored = sum(step.bytes_stored for step in report.steps)
    place = "in a temporary store, removed now" if report.temporary else f"in {report.store}"
    out.summary(
        f"{human_bytes(total)} of models took {human_bytes(stored)} ({human_percent(stored, total)}) {place}. "
        f"{report.ref} was got back in {human_duration(report.get_seconds)} "
        f"({human_rate(report.get_bytes, report.get_seconds)}) and equals byte for byte what was added."
    )
