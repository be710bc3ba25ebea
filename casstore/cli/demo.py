"""`casstore demo`: the main job on a real model, measured."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casstore.cli.options import DebugOption, JsonOption, QuietOption
from casstore.cli.session import session
from casstore.cli.text import human_bytes, human_duration, human_percent, human_rate, megabytes
from casstore.store.user_folders import expand_home

if TYPE_CHECKING:
    from casstore.cli.session import Session
    from casstore.ops.demo import DemoReport, DemoStep


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
        from casstore.ops.demo import run_demo  # noqa: PLC0415 - see cli/__init__.py

        with out.status() as announce:
            report = run_demo(path, store=store and expand_home(store), announce=announce)
        if out.as_json:
            out.print_json(_as_json(report))
        else:
            _print(out, report)


def _as_json(report: "DemoReport") -> dict[str, Any]:
    return {
        **asdict(report),
        "bytes_total": report.bytes_total,
        "bytes_stored": report.bytes_stored,
        "bytes_dedup": report.bytes_dedup,
        "seconds": report.seconds,
        "identical": True,  # a difference is an error, not a report
    }


def _saved(step: "DemoStep", encoding: str) -> int:
    return sum(saving.bytes_saved for saving in step.encodings if saving.encoding == encoding)


def _print(out: "Session", report: "DemoReport") -> None:
    used = sorted({saving.encoding for step in report.steps for saving in step.encodings} - {"raw"})
    out.summary(f"Model: {report.source}")
    saved = {name: [_saved(step, name) for step in report.steps] for name in used}
    rows = [
        (
            step.title,
            human_bytes(step.bytes_total),
            human_bytes(step.bytes_dedup),
            *(human_bytes(saved[name][at]) for name in used),
            human_bytes(step.bytes_stored),
            f"{step.seconds:.2f}",
            megabytes(step.bytes_total, step.seconds),
        )
        for at, step in enumerate(report.steps)
    ]
    rows.append(
        (
            "all",
            human_bytes(report.bytes_total),
            human_bytes(report.bytes_dedup),
            *(human_bytes(sum(saved[name])) for name in used),
            human_bytes(report.bytes_stored),
            f"{report.seconds:.2f}",
            megabytes(report.bytes_total, report.seconds),
        )
    )
    # The columns read as a sum: as files, less what each means saved, is what is stored.
    columns = (
        "step",
        ">as files",
        ">-dedup",
        *(f">-{name}" for name in used),
        ">=stored",
        ">seconds",
        ">MB/s",
    )
    out.table(columns, rows)
    for skipped in report.skipped:
        out.summary(f"Skipped {skipped.name}: {skipped.reason}.")
    back = report.checkout
    out.summary(
        f"Got back {back.ref} ({human_bytes(back.bytes_total)} in {human_duration(back.seconds)}, "
        f"{human_rate(back.bytes_total, back.seconds)})."
    )
    place = "in a temporary store, removed now" if report.temporary else f"in {report.store}"
    out.summary(
        f"Proven: {human_bytes(report.bytes_total)} of models took {human_bytes(report.bytes_stored)} "
        f"({human_percent(report.bytes_stored, report.bytes_total)}) {place}, and the model that was got back "
        f"equals byte for byte what was added."
    )
