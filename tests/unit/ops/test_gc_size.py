"""A private store is made to fit a size: what goes, in which order, and what never does."""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from fakes.cache_entries import STAMP, add_entry, bytes_of
from fakes.collector import delta_frame
from fakes.counts import POLICY_REFS
from fakes.stores import Content, assert_clean, model_of, noise, read_model, small_packs, write_model

from casstore import GcPolicy, OliveCache, Store, execute_gc, plan_gc
from casstore.errors import ConfigError, MissingObject
from casstore.format.rows import Kind
from casstore.machine.this_machine import store_folder
from casstore.machine.uses.leases import Leases
from casstore.objects.publishing.pack_writer import encode_object
from casstore.ops.gc.policies.eviction import Holders, victims
from casstore.ops.gc.policy import DAY

SIZE = 100_000
_log = logging.getLogger(__name__)
_folders = itertools.count()


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as opened:
        opened.mark_private()
        yield opened


@pytest.fixture
def entry(tmp_path):
    """Add a cache entry of noise of its own, or of several such parts."""

    def add(store, name, *seeds, **options):
        content = model_of(**{f"f{seed}": noise(seed, SIZE) for seed in seeds})
        return add_entry(store, tmp_path / f"e{next(_folders)}", name, content, **options)

    return add


@pytest.fixture
def by_hand(tmp_path):
    def add(store, name, seed):
        folder = write_model(model_of(own=noise(seed, SIZE)), tmp_path / f"h{next(_folders)}")
        return store.add(folder, ref=f"models/{name}", stat_cache=False).model_id

    return add


def shrink(store, size, **options):
    """Collect to fit a size, as planned; return the refs that went."""
    plan = plan_gc(store, GcPolicy(max_size=size, **options))
    report = execute_gc(store, plan, wait=0)
    assert report.refs_deleted == list(plan.refs)
    assert_clean(store)
    assert bool(plan.notes) == (bytes_of(store.backend) > size)
    return [name.removeprefix("models/") for name in plan.refs]


def use(store, model_id, when):
    """Let a model have been used at some time."""
    path = os.path.join(store_folder(store.store_id), "used", model_id)
    open(path, "wb").close()
    os.utime(path, (when, when))


def test_a_store_that_fits_loses_nothing(store, entry):
    entry(store, "a", 1)
    assert shrink(store, 1 << 30) == []
    assert shrink(store, bytes_of(store.backend)) == []


def test_what_nothing_reaches_goes_first(store, entry, by_hand):
    by_hand(store, "gone", 1)
    entry(store, "a", 2)
    store.rm("models/gone")
    assert shrink(store, bytes_of(store.backend) - SIZE // 2) == []
    assert bytes_of(store.backend) < 2 * SIZE


def test_the_cheapest_for_its_bytes_goes_first(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    entry(store, "dear", 2, made_of=base, seconds=100)
    entry(store, "cheap", 3, made_of=base, seconds=5)
    entry(store, "large", 4, 5, 6, made_of=base, seconds=12)  # 4 seconds for each of three parts
    gone = []
    while found := shrink(store, bytes_of(store.backend) - 1):
        gone += found
    assert gone == ["large", "cheap", "dear"]
    assert sorted(row.name for row in store.ls("models/")) == ["models/base"]


def test_the_whole_chain_counts(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    first = entry(store, "first", 2, made_of=base, seconds=50)
    entry(store, "second", 3, made_of=first, seconds=1)
    entry(store, "third", 4, made_of=base, seconds=20)
    assert shrink(store, bytes_of(store.backend) - 1) == ["third"]
    assert shrink(store, bytes_of(store.backend) - 1) == ["first"]
    assert shrink(store, bytes_of(store.backend) - 1) == ["second"], "still made from the base, by two runs"


def test_shared_parts_count_for_the_last_one_that_holds_them(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    entry(store, "one", 2, 3, 4, made_of=base, seconds=10)
    entry(store, "two", 3, 4, made_of=base, seconds=10)  # frees nothing alone
    entry(store, "other", 5, 6, made_of=base, seconds=15)
    plan = plan_gc(store, GcPolicy(max_size=bytes_of(store.backend) - 1))
    assert plan.refs == ("models/other",), "7.5 seconds for a part, and `one` 10"
    limit = bytes_of(store.backend) - 2 * SIZE - SIZE // 2
    assert set(shrink(store, limit)) == {"other", "one"}
    assert read_model(store, "models/two") == model_of(f3=noise(3, SIZE), f4=noise(4, SIZE))


def test_bases_count_with_the_last_model_that_needs_them(store, by_hand, tmp_path):
    """Nothing else needs the base of a delta, so it goes with the model: 6 seconds for 80 kB, and not for 20."""
    base, delta, bases = by_hand(store, "base", 1), noise(70, 20_000), noise(71, 60_000)
    with store.publication() as publication:
        publication.write(encode_object(Kind.CHUNK, bases))
        publication.commit_all([], lambda _: iter(()))
    with store.publication() as publication:
        publication.write(delta_frame(delta, 4, [bases]))
        publication.commit_all([], lambda _: iter(()))
    for name, content, seconds in (
        ("delta", model_of(d=delta), 6),
        ("plain", model_of(p=noise(72, 30_000)), 3),
    ):
        add_entry(store, tmp_path / name, name, content, made_of=base, seconds=seconds)
    assert shrink(store, bytes_of(store.backend) - 1) == ["delta"]
    assert bytes_of(store.backend) < SIZE + 40_000


def test_two_refs_of_one_model_go_together(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    entry(store, "one", 2, made_of=base)
    entry(store, "same", 2, made_of=base)
    assert shrink(store, bytes_of(store.backend) - SIZE // 2) == ["one", "same"]


def test_a_model_that_somebody_added_too_stays(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    entry(store, "one", 2, made_of=base)
    store.add(write_model(model_of(f2=noise(2, SIZE)), store.backend.url[7:] + "-f"), ref="models/mine")
    assert shrink(store, 0) == []
    assert len(store.ls("models/")) == 3


def test_what_no_run_makes_again_goes_last_by_use(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    old = entry(store, "old", 2)
    unknown = entry(store, "unknown", 3, made_of="5" * 64)  # of a model that was never here
    entry(store, "again", 4, made_of=base, seconds=10_000)
    entry(store, "of-an-entry", 5, made_of=unknown, seconds=20_000)
    use(store, unknown, time.time() + 10)
    use(store, old, time.time() + 20)
    gone = []
    while found := shrink(store, bytes_of(store.backend) - 1):
        gone += found
    assert gone == ["again", "of-an-entry", "unknown", "old"]
    assert store.last_use.time(bytes.fromhex(old)) == 0.0, "notes on models that are gone go, too"


def test_runs_in_a_circle_make_nothing_again(store, entry, by_hand):
    one = entry(store, "one", 1, made_of="0" * 64)
    two = entry(store, "two", 2, made_of=one, seconds=1)
    entry(store, "one", 1, made_of=two, seconds=1)
    base = by_hand(store, "base", 3)
    entry(store, "three", 4, made_of=base, seconds=1000)
    assert shrink(store, bytes_of(store.backend) - 1) == ["three"]


def test_tags_pins_and_what_people_added_stay(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    for number, name in enumerate(("tagged", "pinned", "free"), start=2):
        entry(store, name, number, made_of=base)
    store.tag("best", "models/tagged")
    store.pin("models/pinned")
    plan = plan_gc(store, GcPolicy(max_size=SIZE))
    (note,) = plan.notes
    assert "cannot be as small as 0.1 MB" in note
    report = execute_gc(store, plan)
    assert (report.refs_deleted, report.notes, report.ok) == (["models/free"], [note], True)
    assert len(store.ls("models/")) == 3
    store.unpin("models/pinned")
    assert shrink(store, SIZE) == ["pinned"]


def test_what_a_running_pipeline_uses_stays(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    entry(store, "used", 2, made_of=base)
    entry(store, "free", 3, made_of=base)
    running = Leases(store_folder(store.store_id))
    running.take("models/used")
    assert shrink(store, 0) == ["free"]
    running.close()
    assert shrink(store, 0) == ["used"]


def test_what_is_hit_or_used_or_written_after_the_plan_stays(store, entry, by_hand, monkeypatch):
    small_packs(monkeypatch, 1000)  # what describes a model is not where its chunks are
    base = by_hand(store, "base", 1)
    for number, name in enumerate(("hit", "used", "written", "tagged", "free"), start=2):
        entry(store, name, number, made_of=base)
    plan = plan_gc(store, GcPolicy(max_size=SIZE))
    assert len(plan.refs) == 5
    running = Leases(store_folder(store.store_id))
    running.take("models/hit")
    store.cat("models/used", "f3")
    store.add(
        write_model(model_of(f4=noise(4, SIZE)), store.backend.url[7:] + "-f"),
        ref="models/written",
        metadata={**STAMP, "again": True},
    )
    store.tag("best", "models/tagged")
    report = execute_gc(store, plan)
    running.close()
    assert report.refs_deleted == ["models/free"]
    for number, name in enumerate(("hit", "used", "written", "tagged"), start=2):
        assert read_model(store, f"models/{name}") == model_of(**{f"f{number}": noise(number, SIZE)})
    assert_clean(store)


def test_an_outdated_entry_goes_before_others(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    store.pin("models/base")
    entry(store, "old", 2, made_of=base, seconds=1000)
    new = entry(store, "new", 3, made_of=base, seconds=1)
    entry(store, "older", 4, made_of=base, seconds=2000)
    use(store, new, time.time() + 1.5 * DAY)
    limit = bytes_of(store.backend) - 1
    assert plan_gc(store, GcPolicy(max_size=limit)).refs == ("models/new",)
    policy = GcPolicy(max_size=limit, unused_for=DAY)
    plan = plan_gc(store, policy, now=time.time() + 2 * DAY)
    assert [(item.name, item.at_once, item.why) for item in plan.deletions] == [
        ("models/old", True, "not used for 1 day"),
        ("models/older", False, "not used for 1 day"),
    ]
    execute_gc(store, plan)
    assert bytes_of(store.backend) <= limit
    store.undelete("models/older")


def test_packs_are_rewritten_as_far_as_the_size_needs(store, entry, by_hand, tmp_path):
    """Three quarters of a pack are needed: by the share alone it would stay."""
    content = {f"f{seed}": noise(seed, SIZE) for seed in range(4)}
    store.add(write_model(model_of(**content), tmp_path / "all"), ref="models/all", stat_cache=False)
    content.pop("f0")
    store.add(write_model(model_of(**content), tmp_path / "most"), ref="models/most", stat_cache=False)
    store.rm("models/all")
    assert store.gc().packs_deleted == 0
    assert shrink(store, bytes_of(store.backend) - SIZE // 2) == []
    assert bytes_of(store.backend) < 3.2 * SIZE
    assert read_model(store, "models/most") == model_of(**content)


def test_leftovers_go_before_entries_however_young_they_are(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    entry(store, "a", 2, made_of=base)
    with store.publication() as publication:
        publication.write(encode_object(Kind.CHUNK, noise(3, SIZE)))
        publication.commit_all([], lambda _: iter(()))
    assert store.gc().packs_deleted == 0, "an add may be tried again"
    assert shrink(store, bytes_of(store.backend)) == []
    assert bytes_of(store.backend) > 3 * SIZE
    assert shrink(store, bytes_of(store.backend) - SIZE // 2) == []
    assert bytes_of(store.backend) < 2.2 * SIZE


def test_it_frees_at_once_and_cannot_be_undone(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    entry(store, "a", 2, made_of=base)
    assert shrink(store, 0) == ["a"]
    with pytest.raises(MissingObject, match="gc has freed"):
        store.undelete("models/a")
    entry(store, "a", 2, made_of=base)
    assert read_model(store, "models/a") == model_of(f2=noise(2, SIZE))


def test_values_that_are_kept_of_an_entry_go_with_it(store, entry, by_hand):
    base = by_hand(store, "base", 1)
    entry(store, "a", 2, made_of=base)
    entry(store, "a", 3, made_of=base)
    assert shrink(store, 1 << 30, keep_last=2) == []
    assert bytes_of(store.backend) > 3 * SIZE
    assert shrink(store, bytes_of(store.backend) - 1, keep_last=2) == ["a"]
    assert bytes_of(store.backend) < 1.2 * SIZE


def test_where_values_stay_for_a_while_no_more_goes_than_needed(entry, by_hand):
    """Elsewhere than on a local disk, what was deleted goes later: until then it must not make others go."""
    with Store("memory://bounded", create=True) as store:
        store.mark_private()
        base = by_hand(store, "base", 1)
        entry(store, "cheap", 2, made_of=base, seconds=1)
        entry(store, "dear", 3, made_of=base, seconds=100)
        limit = bytes_of(store.backend) - SIZE // 2
        for gone in (["models/cheap"], []):
            plan = plan_gc(store, GcPolicy(max_size=limit))
            assert list(plan.refs) == gone
            execute_gc(store, plan)
        store.undelete("models/cheap")
        assert read_model(store, "models/cheap") == model_of(f2=noise(2, SIZE))


def test_a_store_that_is_not_private_is_refused(tmp_path, entry):
    with Store(tmp_path / "shared", create=True) as store:
        entry(store, "a", 2)
        for policy in (GcPolicy(max_size=0), GcPolicy(unused_for=0)):
            with pytest.raises(ConfigError, match="casstore init --private"):
                plan_gc(store, policy)
        assert len(store.ls()) == 1


@pytest.mark.parametrize("policy", [{"max_size": -1}, {"unused_for": -1.0}])
def test_policies_that_make_no_sense(policy):
    with pytest.raises(ConfigError):
        GcPolicy(**policy)


def test_the_caches_own_entries(tmp_path):
    """What OliveCache itself writes: made again after it went, by the runs on the way."""
    model = tmp_path / "model.bin"
    model.write_bytes(noise(1, SIZE))
    made = []

    def grow(source, output, seed):
        made.append(seed)
        (output / "m.bin").write_bytes(noise(seed, SIZE))

    def work(cache):
        first = cache.run_pass("grow", grow, model, {"seed": 2}, version="1")
        cache.run_pass("grow", grow, first, {"seed": 3}, version="1")

    with OliveCache(tmp_path / "cache") as cache:
        assert cache.local.is_private
        work(cache)
        assert plan_gc(cache.local, GcPolicy(max_size=0)).refs == ()
    with Store(tmp_path / "cache" / "store") as store:
        assert len(shrink(store, bytes_of(store.backend) - 1)) == 1
        assert len(shrink(store, 0)) == 1
    with OliveCache(tmp_path / "cache") as cache:
        work(cache)
        assert made == [2, 3, 2, 3]
        assert not cache.problems


PIPELINE = """
import sys, time
from casstore import OliveCache

with OliveCache(sys.argv[1]) as cache:
    hits = []
    for number in range(int(sys.argv[2])):
        if cache.load_run(f"e{number}") is not None:
            hits.append(f"e{number}")
        if number == 9:
            print("begun", flush=True)
        time.sleep(0.005)
    for name in hits:
        record = cache.models.record(name)
        assert record is not None and cache.local.lacks(record) == 0, f"{name} was a hit, and is gone"
        assert cache.load_model(name) is not None
    assert not cache.problems, list(cache.problems)
    print(len(hits))
"""


def test_what_a_pipeline_hits_stays_beside_collections(tmp_path, entry, by_hand):
    """A pipeline looks for one entry after another while collections delete all that they may."""
    count = 30
    with OliveCache(tmp_path / "cache") as cache:
        base = by_hand(cache.local, "base", 1)
        for number in range(count):
            document = json.dumps({"version": 1, "model": {"n": number}, "paths": []}).encode()
            content = Content({"model.json": (document, False)})
            add_entry(cache.local, tmp_path / f"p{number}", f"e{number}", content, made_of=base)
    process = subprocess.Popen(
        [sys.executable, "-c", PIPELINE, str(tmp_path / "cache"), str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    gone = 0
    with Store(tmp_path / "cache" / "store") as store:
        while process.poll() is None:
            size = bytes_of(store.backend) - 1
            gone += len(store.gc(GcPolicy(max_size=size)).refs_deleted)
        hits = int(process.communicate()[0])
        assert process.returncode == 0
        # What it had not looked for yet may have gone.
        assert hits >= 10
        assert hits + gone >= count
        assert_clean(store)


def test_scale(tmp_path, entry, by_hand):
    """Many small entries that share parts; nothing may grow with the square of their number."""
    with Store(tmp_path / "scale", create=True, durability="none") as store:
        store.mark_private()
        base = by_hand(store, "base", 1)
        shared = {f"s{part}": noise(900_000 + part, 300) for part in range(8)}
        for number in range(POLICY_REFS):
            content = {"own": noise(1000 + number, 2000)}
            content |= {f"s{part}": shared[f"s{part}"] for part in range(8) if number >> part & 1}
            folder = tmp_path / f"m{number}"
            add_entry(store, folder, f"{number:05}", model_of(**content), made_of=base, seconds=1 + number)
        limit = bytes_of(store.backend) // 2
        started = time.perf_counter()
        plan = plan_gc(store, GcPolicy(max_size=limit))
        planned = time.perf_counter() - started
        report = execute_gc(store, plan)
        assert bytes_of(store.backend) <= limit
        assert len(store.ls("models/")) == POLICY_REFS + 1 - len(report.refs_deleted)
        assert_clean(store)
    _log.info("%d entries: planned in %.2f s, carried out in %.2f s", POLICY_REFS, planned, report.seconds)


def test_scale_of_the_order_alone():
    """A hundred times as many chunks as models, each of which is in three of them."""
    chunks = 100 * POLICY_REFS
    random = np.random.default_rng(7)
    held = [np.unique(random.integers(0, chunks, 300)) for _ in range(POLICY_REFS)]
    started = time.process_time()
    holders = Holders(held, sizes=np.full(chunks, 1 << 18), kept=np.zeros(chunks, np.bool_))
    order = victims(holders, costs=random.random(POLICY_REFS) * 100, used=np.zeros(POLICY_REFS))
    freed = sum(size for _, size in order)
    assert freed == len(np.unique(np.concatenate(held))) << 18
    _log.info("%d models, %d chunks: ordered in %.2f s", POLICY_REFS, chunks, time.process_time() - started)
