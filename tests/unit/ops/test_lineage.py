"""Lineage against a plain model of it, and the cases in which records could mislead."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore import RefNotFound, Store
from casstore.cache.run_cache import RunCacheManager
from casstore.digest import digest
from casstore.format.run import RunKey, RunManifest, RunStatus
from casstore.ops.lineage import ancestors, descendants, lineage, read_graph

_places = itertools.count()


def model_id(name: str) -> bytes:
    return digest(f"model {name}".encode())


def new_store() -> Store:
    return Store(f"memory://lineage-{next(_places)}", create=True)


def put_model(store: Store, name: str, target: bytes, *, base: bytes | None = None) -> None:
    store._refs.put(store._refs.draft(f"models/{name}", target=target, manifest=target, base=base))


def put_run(
    store: Store,
    name: str,
    *,
    output: bytes | None,
    source: bytes | None = None,
    status: RunStatus = RunStatus.DONE,
    input_name: str = "",
    started: int = 1,
) -> None:
    key = RunKey(
        input=source.hex() if source else "name:x", pass_name="quantise", pass_version="", config={"n": name}
    )
    run = RunManifest(
        name=name, key=key, status=status, input=source, output=output, input_name=input_name, started=started,
        duration=5, config={}, recorded={"alias": "0a1b2c3d", "workflow": "w"},
    )  # fmt: skip
    RunCacheManager(store).cache_run(run)


def ids(nodes) -> list[str]:
    return [node.model_id for node in nodes]


@pytest.fixture
def store():
    with new_store() as store:
        yield store


def closure(pairs: set[tuple[int, int]], start: int, *, up: bool) -> dict[int, int]:
    """Return the distance of everything that can be reached, without the start."""
    distance = {start: 0}
    edge = [start]
    while edge:
        reached = {a if up else b for a, b in pairs for node in edge if node == (b if up else a)}
        edge = [node for node in reached if node not in distance]
        distance.update((node, distance_of(distance, node, pairs, up=up)) for node in edge)
    del distance[start]
    return distance


def distance_of(distance: dict[int, int], node: int, pairs: set[tuple[int, int]], *, up: bool) -> int:
    before = [b if up else a for a, b in pairs if node == (a if up else b)]
    return 1 + min(distance[item] for item in before if item in distance)


@given(
    runs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=14),
    bases=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=6),
    kept=st.sets(st.integers(0, 7), min_size=1),
)
def test_any_graph_cycles_included_gives_what_a_plain_search_gives(runs, bases, kept):
    with new_store() as store:
        for number in kept:
            put_model(store, f"m{number}", model_id(str(number)))
        for at, (one, other) in enumerate(runs):
            put_run(store, f"r{at}", source=model_id(str(one)), output=model_id(str(other)), started=at + 1)
        for at, (one, other) in enumerate(bases):
            put_model(store, f"b{at}", model_id(str(other)), base=model_id(str(one)))
        pairs = {*runs, *bases}
        number_of = {model_id(str(number)).hex(): number for number in range(8)}
        for number in kept:
            found = lineage(store, f"models/m{number}")
            for nodes, up in ((found.ancestors, True), (found.descendants, False)):
                wanted = closure(pairs, number, up=up)
                got = [number_of[item] for item in ids(nodes)]
                assert sorted(got) == sorted(wanted)
                assert [wanted[item] for item in got] == sorted(wanted.values()), "nearest first"
            around = {number, *closure(pairs, number, up=True)}, {number, *closure(pairs, number, up=False)}
            expected = {(a, b) for a, b in pairs if b in around[0] or a in around[1]}
            assert {(number_of[link.input], number_of[link.output]) for link in found.links} == expected
            by_run = {link.run for link in found.links if link.run}
            assert by_run == {f"r{at}" for at, pair in enumerate(runs) if pair in expected}
            assert [link.time for link in found.links] == sorted(link.time for link in found.links)


def test_a_chain_with_its_passes_and_evaluations(store):
    one, two, three = (model_id(name) for name in "123")
    put_model(store, "one", one)
    put_model(store, "two", two, base=one)
    put_model(store, "three", three, base=two)
    put_run(store, "two", source=one, output=two, started=10)
    put_run(store, "three", source=two, output=three, started=20)
    runs = RunCacheManager(store)
    runs.cache_evaluation("three-cpu-cpu", {"accuracy": 0.5}, evaluator="e", model=three)
    runs.cache_evaluation("one-cpu-cpu", {"accuracy": 0.75})
    runs.cache_evaluation("other", {"accuracy": 1}, model=model_id("other"))
    found = lineage(store, "models/three")
    assert ids(found.ancestors) == [two.hex(), one.hex()]
    assert found.descendants == ()
    assert [(link.run, link.pass_name, link.status, link.duration) for link in found.links] == [
        ("two", "quantise", "done", 5),
        ("three", "quantise", "done", 5),
    ], "the base that a run tells of is no second link"
    assert (found.links[0].alias, found.links[0].workflow) == ("0a1b2c3d", "w")
    assert found.model.made_by == ("three",)
    assert found.model.refs == ("models/three",)
    assert {item.name: item.result for item in found.evaluations} == {
        "one-cpu-cpu": {"accuracy": 0.75},
        "three-cpu-cpu/e": {"accuracy": 0.5},
    }
    assert ids(ancestors(store, two.hex())) == [one.hex()]
    assert ids(descendants(store, "one")) == [two.hex(), three.hex()]


def test_a_base_of_a_plain_add_and_of_a_tag_is_one_link(store, tmp_path):
    for name in ("base", "made"):
        (tmp_path / name).write_text(name)
    store.add(tmp_path / "base", ref="models/base")
    store.add(tmp_path / "made", ref="models/made", base="models/base")
    store.tag("best", "models/made")
    found = lineage(store, "tags/best")
    assert [node.refs for node in found.ancestors] == [("models/base",)]
    assert found.model.refs == ("models/made", "tags/best")
    assert [(link.run, link.pass_name) for link in found.links] == [("", "")]


def test_a_pass_that_changes_nothing_is_a_link_and_no_ancestor(store):
    put_model(store, "same", model_id("same"))
    put_run(store, "same", source=model_id("same"), output=model_id("same"))
    found = lineage(store, "models/same")
    assert (found.ancestors, found.descendants) == ((), ())
    assert [link.run for link in found.links] == ["same"]


def test_failures_tie_nothing_together(store):
    """Every failed pass keeps the same model, one that says only that; it has as many inputs as there were failures."""
    failure = model_id("failure")
    for name in ("a", "b"):
        put_model(store, name, model_id(name))
        put_model(store, f"{name}-failed", failure, base=model_id(name))
        put_run(store, f"{name}-failed", source=model_id(name), output=failure, status=RunStatus.FAILED)
    assert descendants(store, "models/a") == []
    assert [link.run for link in lineage(store, "models/a").links] == ["a-failed"]
    found = lineage(store, "models/b-failed")
    assert [node.refs for node in found.ancestors] == [("models/b",)]
    assert [(link.run, link.status, link.output) for link in found.links] == [("b-failed", "failed", "")]


def test_models_that_are_gone_are_still_told_of_by_runs(store):
    put_model(store, "three", model_id("3"))
    put_run(store, "two", source=model_id("1"), output=model_id("2"))
    put_run(store, "three", source=model_id("2"), output=model_id("3"))
    found = lineage(store, "models/three")
    assert [(node.model_id, node.refs) for node in found.ancestors] == [
        (model_id("2").hex(), ()),
        (model_id("1").hex(), ()),
    ]


def test_an_input_that_was_never_in_the_store_is_known_by_its_name(store):
    put_model(store, "out", model_id("out"))
    put_run(store, "out", output=model_id("out"), input_name="09046b56")
    found = lineage(store, "models/out")
    assert found.ancestors == ()
    assert [(link.input, link.input_name) for link in found.links] == [("", "09046b56")]


@pytest.mark.parametrize(
    "facts", [{}, {"input": 5, "output": ["x"]}, {"input": "../x", "output": "ab", "started": "now"}]
)
def test_records_that_say_nothing_usable_are_no_error(store, facts):
    put_model(store, "m", model_id("m"))
    store.put_manifest("runs/odd", b"anything", metadata=facts)
    graph = read_graph(store)
    assert [(link.run, link.input, link.output) for link in graph.links] == [("odd", "", "")]
    assert lineage(store, "models/m", graph=graph).links == ()


def test_what_is_no_model_raises(store):
    with pytest.raises(RefNotFound):
        lineage(store, "models/none")


def test_links_are_ordered_by_when_they_happened_not_by_when_they_were_written(store):
    for at in (3, 1, 2):
        put_run(store, f"r{at}", source=model_id("a"), output=model_id("b"), started=at)
    graph = read_graph(store)
    assert [link.run for link in graph.links] == ["r1", "r2", "r3"]
    assert graph.node(model_id("b").hex()).made_by == ("r1", "r2", "r3")


def test_the_log_tells_every_model_and_every_run_once_newest_first(store):
    put_model(store, "one", model_id("1"))
    put_model(store, "two", model_id("2"), base=model_id("1"))
    put_run(store, "two", source=model_id("1"), output=model_id("2"), started=time.time_ns())
    put_run(store, "lost", source=model_id("1"), output=None, status=RunStatus.FAILED, started=time.time_ns())
    put_run(store, "gone", source=model_id("2"), output=model_id("3"), started=time.time_ns())
    graph = read_graph(store)
    told = [(entry.ref, [link.run for link in entry.links]) for entry in graph.log()]
    assert told == [("", ["gone"]), ("", ["lost"]), ("models/two", ["two"]), ("models/one", [])]
    only = [entry.ref for entry in graph.log([model_id("1").hex()])]
    assert only == ["models/one"]


def test_a_long_chain_and_a_wide_fan_take_time_by_their_size():
    """Quadratic work at this size would take minutes; the bound is generous."""
    with new_store() as store:
        put_model(store, "start", model_id("0"))
        records = []
        for at in range(1, 3001):
            facts = {
                "input": model_id(str(at - 1)).hex(),
                "output": model_id(str(at)).hex(),
                "status": "done",
            }
            records.append(
                store._refs.draft(f"runs/{at}", target=model_id(f"run{at}"), inline=b"", metadata=facts)
            )
        for at in range(3000):
            facts = {"input": model_id("0").hex(), "output": model_id(f"f{at}").hex(), "status": "done"}
            records.append(
                store._refs.draft(f"runs/f{at}", target=model_id(f"fan{at}"), inline=b"", metadata=facts)
            )
        for record in records:
            store._refs.put(record)
        started = time.perf_counter()
        assert len(descendants(store, "models/start")) == 6000
        assert time.perf_counter() - started < 10
