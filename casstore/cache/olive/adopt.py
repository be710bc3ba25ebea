"""Adopt: import an existing Olive cache into a store. The original is only read.

Plan first, then execute. Inputs come before the models made from them, so that a base exists when it is named.
Adopting again writes nothing new.

A run is known by the id that Olive gave it. Its key holds the settings as Olive wrote them; files that they name
are not read. Two workflows, or two caches, may have given one id to different models: the second one is then
called `<id>.<workflow>`, and so on.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casstore._version import __version__
from casstore.cache.directories import checked_id
from casstore.cache.model_cache import model_ref
from casstore.cache.olive.adopt_plan import AdoptPlan, Problem, plan_adopt
from casstore.cache.run_cache import RunCacheManager
from casstore.cache.transfer import ModelFileTransfer
from casstore.cache.values import plain
from casstore.errors import BackendError, ConfigError, ConflictError, IntegrityError
from casstore.format import canonical
from casstore.format.run import RunKey, RunManifest, RunStatus
from casstore.store.adding.sources import place_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casstore.api.store import Store
    from casstore.cache.document import CollectedModel
    from casstore.cache.olive.adopt_plan import PlannedEvaluation, PlannedModel

__all__ = ["AdoptPlan", "AdoptReport", "AdoptedModel", "Problem", "execute_adopt", "plan_adopt"]

_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class AdoptedModel:
    """An imported model: Olive's id and workflow, the ref, the model id, and the bytes that storing it added."""

    name: str
    workflow: str
    ref: str
    model_id: str
    base: str
    bytes_total: int
    bytes_stored: int


@dataclass(frozen=True, slots=True)
class AdoptReport:
    """The result of adopting. `bytes_total` is the size of the files in Olive's cache, `bytes_stored` what the store grew by."""

    models: tuple[AdoptedModel, ...]
    runs: int
    evaluations: int
    problems: tuple[Problem, ...]
    bytes_total: int
    bytes_stored: int

    @property
    def bytes_saved(self) -> int:
        """Bytes that deleting Olive's cache would free, less what the store grew by."""
        return self.bytes_total - self.bytes_stored


def execute_adopt(
    store: Store, plan: AdoptPlan, *, status: Callable[[str], None] | None = None
) -> AdoptReport:
    """Carry out a plan; what is in the store already is not written again.

    `status` is called with each step. Raises BackendError if the store fails; what was imported before stays.
    """
    execution = _Execution(
        store, ModelFileTransfer(store), RunCacheManager(store), problems=list(plan.problems)
    )
    for number, model in enumerate(plan.models, start=1):
        if status is not None:
            status(f"Adopting {model.name} ({number} of {len(plan.models)})")
        execution.adopt_model(model)
    for evaluation in plan.evaluations:
        execution.adopt_evaluation(evaluation)
    return AdoptReport(
        models=tuple(execution.models),
        runs=execution.runs_recorded,
        evaluations=execution.evaluations,
        problems=tuple(execution.problems),
        bytes_total=plan.bytes_total,
        bytes_stored=sum(model.bytes_stored for model in execution.models),
    )


@dataclass(slots=True)
class _Execution:
    store: Store
    transfer: ModelFileTransfer
    runs: RunCacheManager
    models: list[AdoptedModel] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    runs_recorded: int = 0
    evaluations: int = 0
    done: dict[tuple[str, str], AdoptedModel] = field(default_factory=dict)
    """What was adopted, by workflow and Olive's id."""

    def adopt_model(self, model: PlannedModel) -> None:
        base = self.done.get((model.workflow, model.base))
        try:
            name = self._name_for(model)
            added = self.transfer.upload_model(
                model.collected,
                model_ref(name),
                base=base.ref if base is not None else None,
                metadata={"workflow": model.workflow},
            )
            adopted = AdoptedModel(
                name=model.name,
                workflow=model.workflow,
                ref=model_ref(name),
                model_id=added.model_id,
                base=base.ref if base is not None else "",
                bytes_total=added.bytes_total,
                bytes_stored=added.bytes_stored,
            )
            self.models.append(adopted)
            self.done[model.workflow, model.name] = adopted
            if model.run is not None:
                self.runs.cache_run(_manifest(name, model, adopted, base))
                self.runs_recorded += 1
        except (ConfigError, ConflictError, BackendError, IntegrityError) as error:
            # Invariant 11: only damage in the cache's own files is left out; failures of the store are raised.
            if isinstance(error, BackendError) and _all_readable(model.collected):
                raise
            self.problems.append(Problem(model.path, str(error)))

    def adopt_evaluation(self, evaluation: PlannedEvaluation) -> None:
        model = self.done.get((evaluation.workflow, evaluation.of))
        target = bytes.fromhex(model.model_id) if model is not None else None
        try:
            for name in _names(evaluation.name, evaluation.workflow):
                there = self.runs.load_evaluation(name)
                if there is None or (
                    canonical.encode(there.result) == canonical.encode(evaluation.result)
                    and there.model in (None, target)
                ):
                    break
            self.runs.cache_evaluation(name, evaluation.result, model=target, workflow=evaluation.workflow)
        except (ConfigError, IntegrityError) as error:
            # Invariant 8: reported; the other items are still imported.
            self.problems.append(Problem(evaluation.path, str(error)))
            return
        self.evaluations += 1

    def _name_for(self, model: PlannedModel) -> str:
        """Return the name to use: the first that is free, or names the same model already."""
        content = ""
        for name in _names(model.name, model.workflow):
            record = self.store.record(model_ref(name))
            if record is None or record.target is None:
                return name
            content = content or self.transfer.model_id(model.collected)
            if record.target.hex() == content:
                return name
        raise AssertionError(model.name)


def _names(name: str, workflow: str) -> Iterator[str]:
    """Yield the names under which a model or evaluation may be kept, Olive's own first."""
    yield checked_id(name)
    yield checked_id(f"{name}.{workflow}")
    for number in itertools.count(2):
        yield checked_id(f"{name}.{workflow}.{number}")


def _manifest(
    name: str, model: PlannedModel, adopted: AdoptedModel, base: AdoptedModel | None
) -> RunManifest:
    run = model.run
    assert run is not None
    config = plain(dict(run.get("pass_config") or {}), what=f"The run {model.name}")
    accelerator = run.get("accelerator_spec")
    began, ended = (_nanoseconds(run.get(key)) for key in ("run_start_time", "run_end_time"))
    return RunManifest(
        name=name,
        key=RunKey(
            input=base.model_id if base is not None else f"name:{model.base}",
            pass_name=model.pass_name.lower(),
            pass_version="",
            config=config,
            accelerator=str(accelerator) if accelerator else None,
        ),
        status=RunStatus.DONE if model.collected.document.model else RunStatus.FAILED,
        input=bytes.fromhex(base.model_id) if base is not None else None,
        output=bytes.fromhex(adopted.model_id),
        input_name=model.base,
        started=began or model.ended,
        duration=max(0, ended - began) if began else 0,
        config=config,
        recorded={
            "alias": model.name,
            "workflow": model.workflow,
            "pass_name": model.pass_name,
            "adopted_by": f"casstore {__version__}",
        },
    )


def _nanoseconds(value: Any) -> int:
    """Return seconds since 1970 as nanoseconds, 0 for anything else."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e11
    return int(value * 1e9) if usable else 0


def _all_readable(collected: CollectedModel) -> bool:
    """Say whether every file of a model can be read to its end: if so, a failed add is not the fault of these files."""
    try:
        for file in place_sources(collected.files).files:
            with open(file.location, "rb") as opened:
                while opened.read(_READ):
                    pass
    except (OSError, ConfigError, BackendError):
        return False  # The caller reports its own error.
    return True
