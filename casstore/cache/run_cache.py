"""Runs of passes and evaluations: their keys, their records, and look-ups."""

from __future__ import annotations

import logging
import platform
import re
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from casstore._version import __version__
from casstore.cache.directories import checked_id
from casstore.cache.values import by_content, plain
from casstore.errors import IntegrityError, RefNotFound
from casstore.format import canonical
from casstore.format.run import (
    EvaluationManifest,
    RunKey,
    RunManifest,
    RunStatus,
    decode_evaluation,
    decode_run,
    encode_evaluation,
    encode_run,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from casstore.api.store import Store
    from casstore.format.record import Record
    from casstore.refs.rows import RefRow

_log = logging.getLogger("casstore.cache")

_ALIAS = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as listings show it: models by their ids, "" for none; times in nanoseconds."""

    name: str
    pass_name: str
    status: str
    input: str
    input_name: str
    output: str
    started: int
    duration: int
    alias: str


class RunCacheManager:
    """Records and finds the runs and evaluations of one store. Every failure raises; safe in threads."""

    def __init__(self, store: Store, *, environment: Mapping[str, Any] | None = None) -> None:
        self._store = store
        self._environment = plain(dict(environment or {}), what="The keyed environment")

    def key(
        self,
        pass_name: str,
        config: Mapping[str, Any] | None,
        *,
        input_model: str,
        pass_version: str = "",
        accelerator: object = None,
    ) -> RunKey:
        """Return what decides the output of a pass (invariant 12).

        `input_model` identifies the input by content. Settings that name files or folders count by what these
        hold: those that are absolute paths, and those whose name ends in path, file, dir, folder or script.
        Raises ConfigError for a config that cannot be distinguished from others.
        """
        settings = plain(dict(config or {}), what=f"The config of the pass {pass_name}")
        return RunKey(
            input=input_model,
            pass_name=pass_name.lower(),
            pass_version=pass_version,
            config=by_content(settings, partial(self._store.content_id, ignore_file=False)),
            accelerator=str(accelerator) if accelerator else None,
            environment=self._environment,
        )

    def cache_run(self, run: RunManifest) -> Record:
        """Record a run under its name; the same result again writes nothing.

        Another result under the same name is kept beside the first, with a warning: the newest one counts.
        """

        def is_same(record: Record) -> bool:
            try:
                earlier = decode_run(self._store.manifest_of(record))
            except IntegrityError as error:
                # Invariant 13: a damaged record is superseded; otherwise the run could never be recorded again.
                _log.error("The run %s is damaged and is recorded again: %s", run.name, error)  # for people
                return False
            if earlier.status in (RunStatus.RUNNING, RunStatus.FAILED) and earlier.status is not run.status:
                return False
            if earlier.same_result(run):
                return True
            if earlier.key.digest() == run.key.digest() and run.status is not RunStatus.RUNNING:
                _log.warning(
                    "The run %s of %s has a different result this time: %s, now %s. Both are kept; the new one counts.",
                    run.name, run.key.pass_name, _outcome(earlier), _outcome(run),
                )  # fmt: skip
            return False

        return self._store.put_manifest(
            run_ref(run.name), encode_run(run), metadata=_shown(run), unless=is_same
        )

    def load_run(self, name: str) -> RunManifest | None:
        """Return the newest run under a name, or under the short id that Olive would give it; None if there is none.

        A short id that two runs share means neither.
        """
        run = self._read(run_ref(name))
        if run is not None or not _ALIAS.fullmatch(name):
            return run
        rows = self.list_runs(alias=name)
        if len(rows) > 1:
            _log.warning("The short id %s is shared by %d runs: use a whole name.", name, len(rows))
            return None
        return self._read(run_ref(rows[0].name)) if rows else None

    def list_runs(
        self,
        *,
        pass_name: str | None = None,
        status: RunStatus | None = None,
        input_model: str | None = None,
        output_model: str | None = None,
        alias: str | None = None,
        limit: int | None = None,
    ) -> list[RunSummary]:
        """Return runs, the newest first, that fit every filter given. Models are given by their ids."""
        wanted = {
            "pass": pass_name.lower() if pass_name else None,
            "status": status.value if status else None,
            "input": input_model,
            "output": output_model,
            "alias": alias,
        }
        where = {name: value for name, value in wanted.items() if value is not None}
        return [_summary(row) for row in self._store.find("runs/", where=where, limit=limit)]

    def delete(self, name: str) -> None:
        """Forget a run; the model that it made stays. Raises RefNotFound if there is none."""
        if self._store.record(run_ref(name)) is None:
            raise RefNotFound(f"No run named {name!r}.")
        self._store.rm(run_ref(name))

    def add_artifact(self, name: str, label: str, path: str | os.PathLike[str]) -> RunManifest:
        """Keep a file or folder that a run left (a log, a report) and link it to the run."""
        run = self._read(run_ref(name))
        if run is None:
            raise RefNotFound(f"No run named {name!r}.")
        added = self._store.add(
            path, ref=f"models/artifacts/{checked_id(name)}/{checked_id(label)}", ignore_file=False
        )
        run = replace(run, artifacts={**run.artifacts, label: bytes.fromhex(added.model_id)})
        self._store.put_manifest(run_ref(name), encode_run(run), metadata=_shown(run))
        return run

    def cache_evaluation(
        self,
        name: str,
        result: dict[str, Any],
        *,
        evaluator: str = "",
        model: bytes | None = None,
        workflow: str = "",
    ) -> Record:
        """Record a model's evaluation by one evaluator."""
        value = EvaluationManifest(
            name=name,
            model=model,
            evaluator=evaluator,
            result=plain(result, what=f"The evaluation of {name}"),
            recorded=recorded_environment(),
        )
        shown = {
            "model": model.hex() if model else "",
            "evaluator": evaluator,
            "name": name,
            "workflow": workflow,
        }
        ref = evaluation_ref(name, evaluator)
        try:
            earlier = self.load_evaluation(name, evaluator=evaluator)
        except IntegrityError as error:
            # Invariant 13, as for runs.
            _log.error("The evaluation %s is damaged and is recorded again: %s", name, error)  # for people
            earlier = None
        record = self._store.record(ref) if earlier is not None and _alike(earlier, value) else None
        return record or self._store.put_manifest(ref, encode_evaluation(value), metadata=shown)

    def load_evaluation(self, name: str, *, evaluator: str = "") -> EvaluationManifest | None:
        """Return a model's evaluation by one evaluator, None if there is none."""
        record = self._store.record(evaluation_ref(name, evaluator))
        return decode_evaluation(self._store.manifest_of(record)) if record is not None else None

    def list_evaluations(self, *, model: str | None = None) -> list[EvaluationManifest]:
        """Return evaluations, the newest first; of the model with this id, if one is given.

        One that is damaged is left out, with an error in the log that names it.
        """
        found: list[EvaluationManifest] = []
        for row in self._store.find("evaluations/", where={"model": model} if model else None):
            try:
                record = self._store.record(row.name)
                if record is not None:
                    found.append(decode_evaluation(self._store.manifest_of(record)))
            except IntegrityError as error:  # noqa: PERF203  # one of many
                # Invariant 13: one bad record does not hide the rest; `check` reports it as well.
                _log.error("%s is damaged and was left out: %s", row.name, error)  # for people
        return found

    def _read(self, ref: str) -> RunManifest | None:
        record = self._store.record(ref)
        return decode_run(self._store.manifest_of(record)) if record is not None else None


def run_ref(name: str) -> str:
    """Return the ref of a run; raise ConfigError for an id that is not one safe name."""
    return f"runs/{checked_id(name)}"


def evaluation_ref(name: str, evaluator: str = "") -> str:
    """Return the ref of an evaluation: each evaluator has its own."""
    return f"evaluations/{checked_id(name)}" + (f"/{checked_id(evaluator)}" if evaluator else "")


def recorded_environment() -> dict[str, Any]:
    """Return the environment of a run: recorded, never part of a key (invariant 12)."""
    return {
        "casstore": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "time": time.time_ns(),
    }


def _shown(run: RunManifest) -> dict[str, Any]:
    """Return what listings of runs show and filter by."""
    shown: dict[str, Any] = {
        "pass": run.key.pass_name,
        "status": run.status.value,
        "input": run.input.hex() if run.input else "",
        "input_name": run.input_name,
        "output": run.output.hex() if run.output else "",
        "started": run.started,
        "duration": run.duration,
    }
    return {**shown, **{name: run.recorded[name] for name in ("alias", "workflow") if name in run.recorded}}


def _summary(row: RefRow) -> RunSummary:
    shown = row.metadata
    texts = {
        name: str(shown.get(name) or "") for name in ("status", "input", "input_name", "output", "alias")
    }
    times = {name: value for name in ("started", "duration") if isinstance(value := shown.get(name), int)}
    return RunSummary(
        name=row.name.removeprefix("runs/"),
        pass_name=str(shown.get("pass") or ""),
        **texts,
        started=times.get("started", 0),
        duration=times.get("duration", 0),
    )


def _outcome(run: RunManifest) -> str:
    return run.output.hex()[:16] if run.output else run.status.value


def _alike(one: EvaluationManifest, other: EvaluationManifest) -> bool:
    # Compare bytes: a NaN in a metric is not even equal to itself, and keys have no order.
    return (one.model, canonical.encode(one.result)) == (other.model, canonical.encode(other.result))
