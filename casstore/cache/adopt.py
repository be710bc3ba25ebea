"""Adopt: take what Olive's own cache holds into a store. The original is only ever read.

Plan first, then execute. What cannot be taken (a file that is missing, JSON that is none, a path that leads out
of the cache) is a problem of that one model or evaluation, told by name; everything else is adopted. Inputs
come before what was made from them, so that a base exists when it is named. Adopting again writes nothing new.

A run is known by the id that Olive gave it. Its key holds the settings as Olive wrote them; files that they name
are not read. Two workflows, or two caches, may have given one id to different models: the second one is then
called `<id>.<workflow>`, and so on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casstore._version import __version__
from casstore.cache.directories import checked_id
from casstore.cache.document import collect
from casstore.cache.model_cache import model_ref
from casstore.cache.olive_folder import FileFinder, FoundModel, find_workflows, modified, read_json
from casstore.cache.run_cache import RunCacheManager
from casstore.cache.transfer import ModelFileTransfer
from casstore.cache.values import plain
from casstore.errors import BackendError, ConfigError, ConflictError
from casstore.format import canonical
from casstore.format.run import RunKey, RunManifest, RunStatus
from casstore.store.sources import place_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from casstore.cache.document import CollectedModel
    from casstore.cache.olive_folder import Workflow
    from casstore.store.store import Store

_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """What was not adopted, and why: `place` is its folder or file."""

    place: str
    message: str


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model to adopt, with its run if there is one; `base` is the id of its input, "" if that is not adopted.

    `bytes_total` are those of its files.
    """

    name: str
    workflow: str
    place: str
    base: str
    pass_name: str
    files: int
    bytes_total: int
    collected: CollectedModel
    run: dict[str, Any] | None
    ended: int


@dataclass(frozen=True, slots=True)
class PlannedEvaluation:
    """An evaluation to adopt; `of` is the id of the model in the same workflow, "" if that is not adopted."""

    name: str
    workflow: str
    place: str
    of: str
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdoptPlan:
    """What adopting a cache would do, inputs first. `bytes_total` counts files that several models share once."""

    models: tuple[PlannedModel, ...]
    evaluations: tuple[PlannedEvaluation, ...]
    problems: tuple[Problem, ...]
    bytes_total: int


@dataclass(frozen=True, slots=True)
class AdoptedModel:
    """A model that is in the store now: Olive's id and workflow, the ref, the model id, and what keeping it added."""

    name: str
    workflow: str
    ref: str
    model_id: str
    base: str
    bytes_total: int
    bytes_stored: int


@dataclass(frozen=True, slots=True)
class AdoptReport:
    """What adopting did. `bytes_total` are those of the files in Olive's cache, `bytes_stored` what the store grew by."""

    models: tuple[AdoptedModel, ...]
    runs: int
    evaluations: int
    problems: tuple[Problem, ...]
    bytes_total: int
    bytes_stored: int

    @property
    def bytes_saved(self) -> int:
        """What would be free if Olive's cache were deleted, beyond what the store grew by."""
        return self.bytes_total - self.bytes_stored


def plan_adopt(place: str | os.PathLike[str], *, allow: Iterable[str | os.PathLike[str]] = ()) -> AdoptPlan:
    """Read an Olive cache, or one workflow's folder of it, and say what would be adopted. Writes nothing.

    Models whose configs name files outside of the cache are problems, unless these lie in a folder of
    `allow`. Raises ConfigError for what is no cache of Olive.
    """
    workflows = find_workflows(os.fspath(place))
    roots = tuple(os.path.realpath(item) for item in (os.fspath(place), *allow))
    planning = _Planning(roots)
    for workflow in workflows:
        planning.add(workflow)
    return AdoptPlan(
        tuple(planning.models),
        tuple(planning.evaluations),
        tuple(planning.problems),
        sum(planning.sizes.values()),
    )


def execute_adopt(
    store: Store, plan: AdoptPlan, *, status: Callable[[str], None] | None = None
) -> AdoptReport:
    """Adopt what was planned; what is in the store already is not written again.

    `status` is told what is being done. Raises BackendError if the store fails; what came before it stays.
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
class _Planning:
    roots: tuple[str, ...]
    models: list[PlannedModel] = field(default_factory=list)
    evaluations: list[PlannedEvaluation] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, workflow: Workflow) -> None:
        planned: dict[str, PlannedModel] = {}
        for found in workflow.models():
            with self._told(found.config or found.run or found.folder):
                planned[found.name] = self._model(workflow, found)
        self.models += _inputs_first(planned)
        for name, path in workflow.evaluations():
            with self._told(path):
                FileFinder(FoundModel(checked_id(name), path, path, None), workflow, self.roots).check(path)
                result = plain(read_json(path), what="The evaluation")
                of = next((item for item in _prefixes(name) if item in planned), "")
                self.evaluations.append(PlannedEvaluation(name, workflow.name, path, of, result))

    @contextlib.contextmanager
    def _told(self, place: str) -> Iterator[None]:
        """Tell of what cannot be adopted, and go on: it leaves out nothing else (invariant 8)."""
        try:
            yield
        except (ConfigError, BackendError, OSError, ValueError) as error:
            self.problems.append(Problem(place, str(error)))

    def _model(self, workflow: Workflow, found: FoundModel) -> PlannedModel:
        checked_id(found.name)
        finder = FileFinder(found, workflow, self.roots)
        for path in filter(None, (found.config, found.run)):
            finder.check(path)
        run = _checked_run(found) if found.run is not None else None
        if found.config is None:
            left = (
                "a run, but no config of its model"
                if run
                else "neither a run nor a config: its pass did not end"
            )
            raise ConfigError(f"{found.folder} has {left}.")
        config = _downloaded(read_json(found.config), finder)
        collected = collect(config, locate=finder)
        # What has no bytes is told now, before anything is written: text that is no Unicode, numbers without end.
        collected.document.encode()
        canonical.encode(plain(run or {}, what="The run"))
        sources = place_sources(collected.places)
        for file in sources.files:
            finder.check(file.location)
            if not os.access(file.location, os.R_OK):
                raise ConfigError(f"{file.location} cannot be read. Check its permissions.")
        self.sizes.update(
            ((file.identity.device, file.identity.inode), file.identity.size) for file in sources.files
        )
        return PlannedModel(
            name=found.name,
            workflow=workflow.name,
            place=found.folder,
            base=str(run.get("input_model_id") or "") if run is not None else "",
            pass_name=str(run["pass_name"]) if run is not None else "",
            files=len(sources.files),
            bytes_total=sum(file.identity.size for file in sources.files),
            collected=collected,
            run=run,
            ended=modified(found.run or found.config),
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
        base = self.done.get((model.workflow, model.base)) if model.base != model.name else None
        kind = str(model.collected.document.model.get("type", ""))
        try:
            name = self._name_for(model)
            added = self.transfer.upload_model(
                model.collected,
                model_ref(name),
                base=base.ref if base is not None else None,
                metadata={"workflow": model.workflow, "type": kind},
            )
        except (ConfigError, ConflictError, BackendError) as error:
            # Invariant 11: only what the cache's own files are to blame for is left out; else it is the store's.
            if isinstance(error, BackendError) and _all_readable(model.collected):
                raise
            self.problems.append(Problem(model.place, str(error)))
            return
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
        except ConfigError as error:
            self.problems.append(Problem(evaluation.place, str(error)))  # Told, and leaves out nothing else.
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


def _checked_run(found: FoundModel) -> dict[str, Any]:
    assert found.run is not None
    run = read_json(found.run)
    if not isinstance(run.get("pass_name"), str) or not isinstance(
        run.get("pass_config", {}), (dict, type(None))
    ):
        raise ConfigError(f"{found.run} is not a run: it has no pass_name, or a pass_config that is none.")
    if run.get("output_model_id", found.name) != found.name:
        raise ConfigError(f"{found.run} is the run of {run['output_model_id']!r}, not of {found.name}.")
    return run


def _downloaded(config: dict[str, Any], finder: FileFinder) -> dict[str, Any]:
    """Return a config whose files Olive fetched from its shared cache with the path that they were fetched to."""
    settings = config.get("config")
    if not isinstance(settings, dict) or not settings.get("shared_cache"):
        return config
    path = settings.get("model_path")
    if isinstance(path, str) and not os.path.isabs(path):
        there = os.path.join(finder.model.folder, "models", "model", path)
        if os.path.exists(there):
            return {**config, "config": {**settings, "model_path": there}}
        if str(config.get("type", "")).lower() == "hfmodel":
            return config  # The name of a model on a hub.
    raise ConfigError(
        f"{finder.model.folder} holds none of its files: they are in Olive's shared cache only."
    )


def _inputs_first(planned: dict[str, PlannedModel]) -> list[PlannedModel]:
    """Order models so that each comes behind its input; in a cycle, the first one met goes first."""
    ordered: dict[str, PlannedModel] = {}
    for model in planned.values():
        chain: dict[str, PlannedModel] = {}
        at: PlannedModel | None = model
        while at is not None and at.name not in ordered and at.name not in chain:
            chain[at.name] = at
            at = planned.get(at.base)
        for item in reversed(chain.values()):
            ordered[item.name] = item
    return list(ordered.values())


def _prefixes(name: str) -> list[str]:
    """Return what an evaluation may be of: its whole name, or what stands before one of its hyphens, longest first."""
    parts = name.split("-")
    return ["-".join(parts[:count]) for count in range(len(parts), 0, -1)]


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
    """Return seconds since 1970 as nanoseconds, 0 for what is no such time."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e11
    return int(value * 1e9) if usable else 0


def _all_readable(collected: CollectedModel) -> bool:
    """Say whether every file of a model can still be read to its end: if so, an add that failed did so elsewhere."""
    try:
        for file in place_sources(collected.places).files:
            with open(file.location, "rb") as opened:
                while opened.read(_READ):
                    pass
    except (OSError, ConfigError, BackendError):
        return False  # The caller reports the error that it has.
    return True
