"""`casstore demo`: the main job on a real model, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casstore.api.demo import run_demo
from casstore.cli.support.command import Command
from casstore.cli.support.text import human_bytes, human_duration, human_percent, human_rate, megabytes
from casstore.machine.user_folders import expand_home

if TYPE_CHECKING:
    from casstore.api.demo import DemoReport
    from casstore.cli.support.session import Session


@click.command(cls=Command)
@click.argument(
    "path",
    required=False,
    metavar="[PATH]",
    help="A model file or folder; by default, the one in the package wordllama.",
)
@click.option(
    "--store",
    metavar="PATH_OR_URL",
    help="Keep the demo's store there; without it one in a temporary folder.",
)
def run(out: Session, *, path: str | None) -> None:
    """Add a model and variants of it, and show what is saved.

    One of them is restored and compared byte for byte.
    """
    store = expand_home(out.store_option) if out.store_option else None
    with out.status() as announce:
        report = run_demo(path, store=store, announce=announce)
    if out.as_json:
        out.print_json(report)
    else:
        _print(out, report)


def _print(out: Session, report: DemoReport) -> None:
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
            ", ".join(ref.rpartition("/")[2] for ref in step.delta_bases) or "-",
        )
        for step in report.steps
    ]
    # The columns read as a sum: as files, less what each means saved, is what is stored.
    saved = [f">-{encoding}" for encoding in used]
    out.table(
        ("step", ">as files", ">-dedup", *saved, ">=stored", ">seconds", ">MB/s", "deltas against"), rows
    )
    total = sum(step.bytes_total for step in report.steps)
    stored = sum(step.bytes_stored for step in report.steps)
    place = "in a temporary store, which is gone again" if report.temporary else f"in {report.store}"
    out.summary(
        f"{human_bytes(total)} of models took {human_bytes(stored)} ({human_percent(stored, total)}) {place}. "
        f"{report.ref} was restored in {human_duration(report.get_seconds)} "
        f"({human_rate(report.get_bytes, report.get_seconds)}) and equals byte for byte what was added."
    )
