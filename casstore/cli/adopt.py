"""`casstore adopt`: import an existing Olive cache."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casstore.cli.support.exits import ERROR, say
from casstore.cli.support.options import DebugOption, DryRunOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import human_bytes, human_percent, short_id
from casstore.machine.user_folders import expand_home

if TYPE_CHECKING:
    from casstore.cache.olive.adopt import AdoptPlan, AdoptReport, Problem
    from casstore.cli.support.session import Session


def run(
    *,
    place: Annotated[
        str,
        typer.Argument(
            metavar="OLIVE_CACHE_DIR",
            help="What a workflow's cache_dir names, or one workflow's folder in it.",
            show_default=False,
        ),
    ],
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="Also take files of models that lie in this folder, outside of the cache; may be given several times.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Import an existing Olive cache (read-only): models, runs and evaluations; exit code 1 if any was left out."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        from casstore.cache.olive.adopt import execute_adopt, plan_adopt  # noqa: PLC0415 - see cli/__init__.py

        with out.status() as status:
            status("Reading the cache")
            plan = plan_adopt(place, allow=[expand_home(folder) for folder in allow or ()])
            if dry_run:
                problems = plan.problems
                _show_plan(out, plan)
            else:
                opened, created = out.open_or_create() if out.uses_default else (out.open(), False)
                if created:
                    out.note(f"made your own store at {out.place}.")
                with opened:
                    report = execute_adopt(opened, plan, status=status)
                problems = report.problems
                _show_report(out, report)
        for problem in problems:
            say(f"left out {problem.path}: {problem.message}")
        if problems:
            raise typer.Exit(ERROR)


def _show_plan(out: "Session", plan: "AdoptPlan") -> None:
    if out.as_json:
        out.print_json(
            {
                "dry_run": True,
                "models": [
                    {
                        "id": model.name,
                        "workflow": model.workflow,
                        "place": model.path,
                        "input": model.base or None,
                        "pass": model.pass_name or None,
                        "run": model.run is not None,
                        "files": model.files,
                        "bytes_total": model.bytes_total,
                    }
                    for model in plan.models
                ],
                "evaluations": [
                    {"name": item.name, "workflow": item.workflow, "model": item.of or None}
                    for item in plan.evaluations
                ],
                "problems": _problems(plan.problems),
                "bytes_total": plan.bytes_total,
            }
        )
        return
    out.table(
        ("model", "workflow", "pass", "input", ">files", ">size"),
        (
            (
                f"models/{model.name}",
                model.workflow,
                model.pass_name or "-",
                model.base or "-",
                str(model.files),
                human_bytes(model.bytes_total),
            )
            for model in plan.models
        ),
    )
    runs = sum(model.run is not None for model in plan.models)
    out.summary(
        f"Would adopt {len(plan.models)} models, {runs} runs and {len(plan.evaluations)} evaluations,"
        f" {human_bytes(plan.bytes_total)}; {len(plan.problems)} left out."
    )


def _show_report(out: "Session", report: "AdoptReport") -> None:
    if out.as_json:
        out.print_json(
            {
                "dry_run": False,
                "models": [asdict(model) for model in report.models],
                "runs": report.runs,
                "evaluations": report.evaluations,
                "problems": _problems(report.problems),
                "bytes_total": report.bytes_total,
                "bytes_stored": report.bytes_stored,
                "bytes_saved": report.bytes_saved,
            }
        )
        return
    if not out.quiet:
        out.table(
            ("model", "id", "base", ">size", ">stored"),
            (
                (
                    model.ref,
                    short_id(model.model_id),
                    model.base or "-",
                    human_bytes(model.bytes_total),
                    human_bytes(model.bytes_stored),
                )
                for model in report.models
            ),
        )
    out.summary(
        f"Adopted {len(report.models)} models, {report.runs} runs and {report.evaluations} evaluations;"
        f" {len(report.problems)} left out."
    )
    grown = (
        f"grew by {human_bytes(report.bytes_stored)}"
        if report.bytes_stored
        else "had every byte of them already"
    )
    out.summary(
        f"Olive keeps {human_bytes(report.bytes_total)} for them, the store {grown}:"
        f" {human_bytes(report.bytes_saved)} ({human_percent(report.bytes_saved, report.bytes_total)}) saved"
        " once Olive's cache is deleted."
    )


def _problems(problems: "tuple[Problem, ...]") -> list[dict[str, Any]]:
    return [{"place": problem.path, "message": problem.message} for problem in problems]
