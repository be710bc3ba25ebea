"""Which model was made from which, by which run: read from the records of models, runs and evaluations alone.

One listing gives everything, so the work grows with the number of refs and not with its square: a listing
for each step of a long ancestry would read all names each time.

A failed run made nothing, whatever the pipeline keeps under its name: the model that means "failed" is
the same one for every pass, and would connect unrelated models.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from casstore.digest import is_hex
from casstore.errors import IntegrityError
from casstore.format.names import names_model
from casstore.format.run import RunStatus, decode_evaluation
from casstore.objects import Damage
from casstore.store.times import utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from casstore.refs.rows import RefRow
    from casstore.store.model_store import ModelStore

__all__ = [
    "Lineage",
    "LineageGraph",
    "Link",
    "LogEntry",
    "ModelEvaluation",
    "ModelNode",
    "ancestors",
    "descendants",
    "lineage",
    "read_graph",
]

_RUNS, _MODELS = "runs/", "models/"
_FAILED = RunStatus.FAILED.value
_ORDER = attrgetter("time_ns", "run", "input", "output")


@dataclass(frozen=True, slots=True)
class ModelNode:
    """A model: `refs` name it, none if only runs still mention it; `time_ns` is when the first of these was written.

    `made_by` are the names of the runs that made it, oldest first. Times are nanoseconds since 1970.
    """

    model_id: str
    refs: tuple[str, ...]
    time_ns: int
    made_by: tuple[str, ...]

    @property
    def time(self) -> datetime:
        """`time_ns` as a time in UTC."""
        return utc(self.time_ns)


@dataclass(frozen=True, slots=True)
class Link:
    """One step from an input to an output: a run, or, with `run` empty, the base that an add named.

    Models are given by their ids. `input` is "" if the input was never in the store, and `input_name` is
    the pipeline's name of it; `output` is "" if there is none. `duration` is in nanoseconds.
    """

    input: str
    output: str
    run: str = ""
    pass_name: str = ""
    status: str = ""
    input_name: str = ""
    workflow: str = ""
    alias: str = ""
    time_ns: int = 0
    duration: int = 0

    @property
    def time(self) -> datetime:
        """`time_ns` as a time in UTC."""
        return utc(self.time_ns)


@dataclass(frozen=True, slots=True)
class ModelEvaluation:
    """An evaluation of a model; `name` is the ref's name without its namespace, `model` the model id."""

    name: str
    model: str
    evaluator: str
    time_ns: int
    result: dict[str, Any]

    @property
    def time(self) -> datetime:
        """`time_ns` as a time in UTC."""
        return utc(self.time_ns)


@dataclass(frozen=True, slots=True)
class Lineage:
    """One model's lineage: `ancestors` and `descendants` nearest first, `links` between all of them oldest first."""

    model: ModelNode
    ancestors: tuple[ModelNode, ...]
    descendants: tuple[ModelNode, ...]
    links: tuple[Link, ...]
    evaluations: tuple[ModelEvaluation, ...]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A model that was kept under `ref`, with the links that made it; or a run of which no model is kept, `ref` is ""."""

    time_ns: int
    ref: str
    model_id: str
    links: tuple[Link, ...]

    @property
    def time(self) -> datetime:
        """`time_ns` as a time in UTC."""
        return utc(self.time_ns)


@dataclass(slots=True)
class LineageGraph:
    """The lineage of everything in a store, as it was when it was read."""

    named: dict[str, list[RefRow]] = field(default_factory=dict)
    """The refs that name each model, by its id."""
    made_by: dict[str, list[Link]] = field(default_factory=dict)
    """By the output's id, oldest first."""
    used_by: dict[str, list[Link]] = field(default_factory=dict)
    """By the input's id, oldest first."""
    links: list[Link] = field(default_factory=list)
    runs: dict[str, Link] = field(default_factory=dict)
    """By the run's name."""
    rows: list[RefRow] = field(default_factory=list)
    """The refs below `models/`, oldest first."""
    evaluations: dict[str, list[RefRow]] = field(default_factory=dict)
    """By the id of the model that was measured."""

    def model_ids(self) -> list[str]:
        """Return the ids of all models that refs name or runs mention."""
        return list({**self.named, **self.made_by, **self.used_by})

    def node(self, model_id: str) -> ModelNode:
        """Return what is known of a model. Raises KeyError for one that nothing mentions."""
        rows, made = self.named.get(model_id, []), self.made_by.get(model_id, [])
        times = [row.time for row in rows] or [link.time_ns for link in made or self.used_by[model_id]]
        runs = tuple(link.run for link in made if link.run)
        return ModelNode(model_id, tuple(sorted(row.name for row in rows)), min(times), runs)

    def ancestors(self, model_id: str, *, start: Iterable[Link] = ()) -> list[ModelNode]:
        """Return every model that this one was made from, nearest first; itself never, even in a cycle.

        `start` are links to follow beside those that made it.
        """
        above = [link.input for link in start if link.input]
        return self._reach(
            model_id, above, lambda node: (link.input for link in self.made_by.get(node, ()) if link.input)
        )

    def descendants(self, model_id: str) -> list[ModelNode]:
        """Return every model that was made from this one, nearest first; itself never, even in a cycle."""
        return self._reach(
            model_id, [], lambda node: (link.output for link in self.used_by.get(node, ()) if link.output)
        )

    def log(self, models: Iterable[str] | None = None, *, ref: str = "") -> list[LogEntry]:
        """Return the models that were kept and the runs of which none is, the newest first.

        `models` are the ids to include, by default all. Of failed runs, which all keep the same model,
        only the one of `ref` is then included.
        """
        wanted = None if models is None else set(models)
        listed = set()
        entries = []
        for row in self.rows:
            if not row.name.startswith(_MODELS) or (wanted is not None and row.target.hex() not in wanted):
                continue
            name = row.name.removeprefix(_MODELS)
            run = self.runs.get(name)
            if wanted is not None and run is not None and not run.output and row.name != ref:
                continue
            listed.add(name)
            links = (run,) if run is not None else tuple(self.made_by.get(row.target.hex(), ()))
            entries.append(LogEntry(row.time, row.name, row.target.hex(), links))
        for name, link in self.runs.items():
            if name not in listed and (wanted is None or link.output in wanted):
                entries.append(LogEntry(link.time_ns, "", link.output, (link,)))
        # Each ref occurs once, so names decide between equal times, and the order is always the same.
        return sorted(entries, key=lambda entry: (entry.time_ns, entry.ref), reverse=True)

    def _reach(
        self, start: str, first: Iterable[str], step: Callable[[str], Iterable[str]]
    ) -> list[ModelNode]:
        seen = {start}
        found: list[ModelNode] = []
        waiting = deque([*first, *step(start)])
        while waiting:
            node = waiting.popleft()
            if node in seen:
                continue
            seen.add(node)
            found.append(self.node(node))
            waiting.extend(step(node))
        return found


def ancestors(store: ModelStore, ref_or_id: str) -> list[ModelNode]:
    """Return every model that one was made from, nearest first. Raises RefNotFound for no such model."""
    return list(lineage(store, ref_or_id).ancestors)


def descendants(store: ModelStore, ref_or_id: str) -> list[ModelNode]:
    """Return every model that was made from one, nearest first. Raises RefNotFound for no such model."""
    return list(lineage(store, ref_or_id).descendants)


def lineage(store: ModelStore, ref_or_id: str, *, graph: LineageGraph | None = None) -> Lineage:
    """Return where a model comes from, what was made from it, and the evaluations of all of these.

    `graph` is used instead of reading the records again. A damaged evaluation is left out, and the
    store's `on_damage` called. Raises RefNotFound for no such model.
    """
    resolved = store.resolve(ref_or_id)
    graph = graph or read_graph(store)
    own = resolved.model_id
    try:
        node = graph.node(own)
    except KeyError:
        # The model of a failed run, or one that was added since the graph was read.
        node = ModelNode(own, (resolved.ref,), resolved.record.time, ())
    start: list[Link] = []
    if resolved.ref.startswith(_MODELS):
        # The model of a failed run is no run's output, yet it has a run and an input.
        run = graph.runs.get(resolved.ref.removeprefix(_MODELS))
        start = [run] if run is not None and not run.output else []
    above, below = graph.ancestors(own, start=start), graph.descendants(own)
    links = {id(link): link for link in start}
    for item in (node, *above):
        links.update((id(link), link) for link in graph.made_by.get(item.model_id, ()))
    for item in (node, *below):
        links.update((id(link), link) for link in graph.used_by.get(item.model_id, ()))
    rows = {
        row.name: row for item in (node, *above, *below) for row in graph.evaluations.get(item.model_id, ())
    }
    return Lineage(
        model=node,
        ancestors=tuple(above),
        descendants=tuple(below),
        links=tuple(sorted(links.values(), key=_ORDER)),
        evaluations=tuple(_evaluations(store, rows.values())),
    )


def read_graph(store: ModelStore) -> LineageGraph:
    """Read the lineage of everything in a store: one listing, no manifest and no object."""
    rows = store.find(newest_first=False)
    links = [_link_of(row) for row in rows if row.name.startswith(_RUNS)]
    known = {(link.input, link.output) for link in links if link.output}
    failed = {f"{_MODELS}{link.run}" for link in links if not link.output}
    graph = LineageGraph(links=links, rows=[row for row in rows if row.name.startswith(_MODELS)])
    for row in rows:
        if not names_model(row.name) or row.name in failed:
            continue
        output = row.target.hex()
        graph.named.setdefault(output, []).append(row)
        pair = (row.base.hex() if row.base else "", output)
        if pair[0] and pair not in known:
            known.add(pair)
            links.append(Link(*pair, time_ns=row.time))
    links.sort(key=_ORDER)
    for link in links:
        if link.run:
            graph.runs[link.run] = link
        if link.output:
            graph.made_by.setdefault(link.output, []).append(link)
        if link.input:
            graph.used_by.setdefault(link.input, []).append(link)
    by_name = {row.name: row.target.hex() for row in graph.rows}
    for row in rows:
        if row.name.startswith("evaluations/"):
            model_id = _evaluated(row, by_name)
            graph.evaluations.setdefault(model_id, []).append(row)
    return graph


def _link_of(row: RefRow) -> Link:
    metadata = row.metadata
    texts = {name: value for name, value in metadata.items() if type(value) is str}
    source, made, status = texts.get("input", ""), texts.get("output", ""), texts.get("status", "")
    started, duration = metadata.get("started"), metadata.get("duration")
    return Link(
        input=source if is_hex(source) else "",
        output=made if status != _FAILED and is_hex(made) else "",
        run=row.name[len(_RUNS) :],
        pass_name=texts.get("pass", ""),
        status=status,
        input_name=texts.get("input_name", ""),
        workflow=texts.get("workflow", ""),
        alias=texts.get("alias", ""),
        time_ns=started if type(started) is int and started > 0 else row.time,
        duration=duration if type(duration) is int and duration > 0 else 0,
    )


def _evaluated(row: RefRow, by_name: dict[str, str]) -> str:
    """Return the id of the evaluated model: as recorded, else the model of that name."""
    model_id = row.metadata.get("model")
    if isinstance(model_id, str) and is_hex(model_id):
        return model_id
    # Pipelines name an evaluation after the model, often followed by the accelerator.
    name = str(row.metadata.get("name") or row.name.removeprefix("evaluations/"))
    return by_name.get(f"{_MODELS}{name}") or by_name.get(f"{_MODELS}{name.partition('-')[0]}", "")


def _evaluations(store: ModelStore, rows: Iterable[RefRow]) -> Iterator[ModelEvaluation]:
    for row in sorted(rows, key=lambda row: row.order):
        try:
            record = store.record(row.name)
            if record is None:
                continue  # Deleted since the listing.
            found = decode_evaluation(store.manifest_of(record))
        except IntegrityError as error:
            # Invariant 8: it is reported, and the others are shown.
            store.on_damage(Damage(row.name, row.target.hex(), str(error)))
            continue
        yield ModelEvaluation(
            name=row.name.removeprefix("evaluations/"),
            model=found.model.hex() if found.model else "",
            evaluator=found.evaluator,
            time_ns=record.time,
            result=found.result,
        )
