"""`casstore adopt`: import an existing Olive cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casstore.cache.olive.adopt import execute_adopt, plan_adopt
from casstore.cli.support.command import DRY_RUN, Command
from casstore.cli.support.exits import ERROR, say
from casstore.cli.support.text import human_bytes, human_percent, short_id
from casstore.machine.user_folders import expand_home

if TYPE_CHECKING:
    from casstore.cache.olive.adopt import AdoptPlan, AdoptReport
    from casstore.cli.support.session import Session


@click.command(cls=Command)
@click.argument(
    "folder",
    metavar="OLIVE_CACHE_DIR",
    help="What a workflow's cache_dir names, or one workflow's folder in it.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="FOLDER",
    help="Also take files of models that lie in this folder, outside of the cache; may be given several times.",
)
@DRY_RUN
def run(out: Session, *, folder: str, allow: tuple[str, ...], dry_run: bool) -> None:
    """Import an existing Olive cache (read-only).

    Models, runs and evaluations; the exit code is 1 if any was left out.
    """
    with out.status() as status:
        status("Reading the cache")
        plan = plan_adopt(folder, allow=[expand_home(path) for path in allow])
        problems = plan.problems
        if dry_run:
            _show_plan(out, plan)
        else:
            with out.open_to_fill() as store:
                report = execute_adopt(store, plan, status=status)
            problems = report.problems
            _show_report(out, report)
    for problem in problems:
        say(f"left out {problem.path}: {problem.message}")
    if problems:
        raise click.exceptions.Exit(ERROR)


def _show_plan(out: Session, plan: AdoptPlan) -> None:
    if out.as_json:
        out.print_json(
            {
                "dry_run": True,
                "models": [
                    {
                        "id": model.name,
                        "workflow": model.workflow,
                        "path": model.path,
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
                "problems": plan.problems,
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


def _show_report(out: Session, report: AdoptReport) -> None:
    if out.as_json:
        out.print_json(
            {
                "dry_run": False,
                "models": report.models,
                "runs": report.runs,
                "evaluations": report.evaluations,
                "problems": report.problems,
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
