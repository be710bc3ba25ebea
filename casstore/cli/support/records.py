"""What `casstore show` prints of a run or an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore.cache.run_cache import RunCacheManager
from casstore.cli.support.lineage import metrics_text, plain, value_text
from casstore.cli.support.text import human_duration, local_time, utc_time
from casstore.errors import RefNotFound
from casstore.format.run import decode_evaluation

if TYPE_CHECKING:
    from casstore import Store
    from casstore.cli.support.session import Session
    from casstore.format.record import Record
    from casstore.format.run import EvaluationManifest, RunManifest


def show_run(out: Session, store: Store, ref: str) -> None:
    """Print the run of a ref, or of the short id behind `runs/`. Raises RefNotFound."""
    run = RunCacheManager(store).load_run(ref.removeprefix("runs/"))
    if run is None:
        raise RefNotFound(f"No run named {ref!r}. `casstore runs` lists them.")
    if out.as_json:
        out.print_json(_run_as_json(run))
        return
    out.table(
        ("run", f"runs/{run.name}"),
        [
            ("pass", f"{run.key.pass_name} {run.key.pass_version}".rstrip()),
            ("status", f"{run.status.value}: {run.error}" if run.error else run.status.value),
            ("input", run.input.hex() if run.input else run.input_name or "-"),
            ("output", run.output.hex() if run.output else "-"),
            ("accelerator", run.key.accelerator or "-"),
            ("started", local_time(run.started)),
            ("took", human_duration(run.duration / 1e9)),
            ("key", run.key.digest().hex()),
            *((f"config {name}", value_text(value)) for name, value in sorted(run.config.items())),
            *(
                (f"environment {name}", value_text(value))
                for name, value in sorted(run.key.environment.items())
            ),
            *((f"recorded {name}", value_text(value)) for name, value in sorted(run.recorded.items())),
            *((f"metric {name}", value_text(value)) for name, value in sorted(run.metrics.items())),
            *((f"artifact {name}", value.hex()) for name, value in sorted(run.artifacts.items())),
        ],
    )


def show_evaluation(out: Session, store: Store, ref: str) -> None:
    """Print the evaluation of a ref. Raises RefNotFound."""
    record = store.record(ref)
    if record is None:
        raise RefNotFound(f"No evaluation named {ref!r}. `casstore ls evaluations/` lists them.")
    found = decode_evaluation(store.manifest_of(record))
    if out.as_json:
        out.print_json(_evaluation_as_json(ref, record, found))
        return
    out.table(
        ("evaluation", ref),
        [
            ("model", found.model.hex() if found.model else found.name),
            ("evaluator", found.evaluator or "-"),
            ("written", f"{local_time(record.time)} on {record.writer}"),
            ("metrics", metrics_text(found.result) or "-"),
            ("result", value_text(found.result)),
        ],
    )


def _run_as_json(run: RunManifest) -> dict[str, Any]:
    return {
        "ref": f"runs/{run.name}",
        "pass": run.key.pass_name,
        "status": run.status.value,
        "error": run.error or None,
        "input": run.input,
        "input_name": run.input_name or None,
        "output": run.output,
        "started": utc_time(run.started),
        "started_ns": run.started,
        "duration_seconds": run.duration / 1e9,
        "key_id": run.key.digest(),
        "key": plain(run.key.document()),
        "config": plain(run.config),
        "recorded": plain(run.recorded),
        "metrics": plain(run.metrics),
        "artifacts": run.artifacts,
    }


def _evaluation_as_json(ref: str, record: Record, found: EvaluationManifest) -> dict[str, Any]:
    return {
        "ref": ref,
        "name": found.name,
        "model_id": found.model,
        "evaluator": found.evaluator or None,
        "time": utc_time(record.time),
        "time_ns": record.time,
        "writer": record.writer,
        "result": plain(found.result),
        "recorded": plain(found.recorded),
    }
