"""Plans the import of an Olive cache: each model with its files and its run, inputs first. Reads only.

Anything that cannot be imported (a missing file, invalid JSON, a path that leads out of the cache) is a
problem of that one model or evaluation, reported by name; the others are imported.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casstore.cache.directories import checked_id
from casstore.cache.olive.collect import collect
from casstore.cache.olive.folder import FileFinder, FoundModel, find_workflows, read_json
from casstore.cache.values import plain
from casstore.errors import BackendError, ConfigError
from casstore.store.adding.sources import place_sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casstore.cache.document import CollectedModel
    from casstore.cache.olive.folder import Workflow


@dataclass(frozen=True, slots=True)
class Problem:
    """An item that was not imported, and why: `path` is its folder or file."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model to adopt, with its run if there is one; `base` is the id of its input, "" if that is not adopted.

    `bytes_total` are those of its files.
    """

    name: str
    workflow: str
    path: str
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
    path: str
    of: str
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdoptPlan:
    """What adopting a cache would do, inputs first. `bytes_total` counts files that several models share once."""

    models: tuple[PlannedModel, ...]
    evaluations: tuple[PlannedEvaluation, ...]
    problems: tuple[Problem, ...]
    bytes_total: int


def plan_adopt(folder: str | os.PathLike[str], *, allow: Iterable[str | os.PathLike[str]] = ()) -> AdoptPlan:
    """Read an Olive cache, or one workflow's folder of it, and say what would be adopted. Writes nothing.

    Models whose configs name files outside of the cache are problems, unless these lie in a folder of
    `allow`. Raises ConfigError for a folder that is not an Olive cache.
    """
    workflows = find_workflows(os.fspath(folder))
    roots = tuple(os.path.realpath(item) for item in (os.fspath(folder), *allow))
    planning = _Planning(roots)
    for workflow in workflows:
        planning.add(workflow)
    return AdoptPlan(
        tuple(planning.models),
        tuple(planning.evaluations),
        tuple(planning.problems),
        sum(planning.sizes.values()),
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
            with self._reporting(found.config or found.run or found.folder):
                planned[found.name] = self._model(workflow, found)
        self.models += _inputs_first(planned)
        for name, path in workflow.evaluations():
            with self._reporting(path):
                FileFinder(FoundModel(checked_id(name), path, path, None), workflow, self.roots).check(path)
                result = plain(read_json(path), what="The evaluation")
                of = next((item for item in _prefixes(name) if item in planned), "")
                self.evaluations.append(PlannedEvaluation(name, workflow.name, path, of, result))

    @contextlib.contextmanager
    def _reporting(self, path: str) -> Iterator[None]:
        """Report an item that cannot be imported, and go on with the others (invariant 8)."""
        try:
            yield
        except (ConfigError, BackendError, OSError) as error:
            self.problems.append(Problem(path, str(error)))

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
                else "neither a run nor a config: its pass did not finish"
            )
            raise ConfigError(f"{found.folder} has {left}.")
        config = _downloaded(read_json(found.config), finder)
        collected = collect(config, locate=finder)
        sources = place_sources(collected.files)
        for file in sources.files:
            finder.check(file.location)
        self.sizes.update(
            ((file.identity.device, file.identity.inode), file.identity.size) for file in sources.files
        )
        return PlannedModel(
            name=found.name,
            workflow=workflow.name,
            path=found.folder,
            base=str(run.get("input_model_id") or "") if run is not None else "",
            pass_name=str(run["pass_name"]) if run is not None else "",
            files=len(sources.files),
            bytes_total=sum(file.identity.size for file in sources.files),
            collected=collected,
            run=run,
            ended=os.stat(found.run or found.config).st_mtime_ns,
        )


def _checked_run(found: FoundModel) -> dict[str, Any]:
    assert found.run is not None
    run = read_json(found.run)
    if not isinstance(run.get("pass_name"), str) or not isinstance(
        run.get("pass_config", {}), (dict, type(None))
    ):
        raise ConfigError(f"{found.run} is not a run: it has no pass_name, or its pass_config is not a map.")
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
    """Order models so that each comes after its input; in a cycle, the first one found goes first."""
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
    """Return the models that an evaluation may be of: its whole name, or the part before one of its hyphens, longest first."""
    parts = name.split("-")
    return ["-".join(parts[:count]) for count in range(len(parts), 0, -1)]
