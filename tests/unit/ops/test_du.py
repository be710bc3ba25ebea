"""du, stats and leftovers: what refs hold, against plain sets made from the packs' own footers."""

from __future__ import annotations

import itertools
import os
import shutil
import uuid

import hypothesis.strategies as st
import pytest
from fakes.collector import current_records, frames_of, packs_of, reachable
from fakes.counts import EXAMPLES
from fakes.far_stores import far_store
from fakes.holdings import Chunks, put_record, write_model, write_pack
from fakes.stores import model_of, noise
from fakes.stores import write_model as write_folder
from hypothesis import given, settings

from casstore import ConfigError, GcPolicy, RefNotFound, Store, execute_gc, plan_gc
from casstore.format.frame import header_size
from casstore.format.names import names_model
from casstore.format.rows import ROW, row_ids
from casstore.objects import pack_overhead
from casstore.objects.footers import read_footer
from casstore.objects.keys import PACK_PREFIX, pack_key
from casstore.ops.du import du
from casstore.ops.leftovers import find_leftovers

CHUNKS = Chunks([900 + 37 * number for number in range(9)])
NUMBERS = st.integers(0, len(CHUNKS.sizes) - 1)
_folders = itertools.count()


@st.composite
def layouts_of_stores(draw):
    """Packs as lists of (chunk, bases), and models as lists of chunks; every chunk is in a pack, some in two."""
    packs = [[] for _ in range(draw(st.integers(1, 4)))]
    for number in range(len(CHUNKS.sizes)):
        # Bases are chunks that decode alone: those of the first half.
        bases = draw(st.sets(st.integers(0, 3), max_size=2)) if number > 3 else ()
        draw(st.sampled_from(packs)).append((number, tuple(sorted(bases))))
    for number in draw(st.sets(st.integers(0, 3), max_size=3)):
        pack = draw(st.sampled_from(packs))
        if all(other != number for other, _ in pack):
            pack.append((number, ()))
    models = draw(st.lists(st.lists(NUMBERS, min_size=1, max_size=6), min_size=1, max_size=5))
    return [pack for pack in packs if pack], models


def frames_in(store):
    """Return object id → what one frame of it takes, and its bases; and the bytes of all frames."""
    frames, total = {}, 0
    for pack in packs_of(store.backend):
        footer = read_footer(store.backend, pack)
        for (object_id, _, bases), row in zip(frames_of(store.backend, pack), footer.rows, strict=True):
            cost = header_size(len(bases)) + int(row["stored"]) + ROW.itemsize
            assert frames.setdefault(object_id, (cost, bases)) == (cost, bases)
            total += cost
    return frames, total


def needs_in(store, frames):
    """Return ref → the objects that it needs, with bases of bases."""
    found = {}
    for name, record in current_records(store.backend).items():
        ids = reachable(store.backend, record) if names_model(name) else {record.manifest} - {None}
        while more := {base for item in ids for base in frames[item][1]} - ids:
            ids |= more
        found[name] = ids
    return found


def files_in(store):
    entries = [*store.backend.list(""), *store.backend.list_temporaries()]
    return sum(entry.size for entry in entries)


@settings(max_examples=EXAMPLES, deadline=None)
@given(layouts_of_stores(), st.sets(st.integers(0, 4), max_size=3), st.integers(0, 5))
def test_du_is_what_sets_say(layout, removed, tagged):
    packs, models = layout
    with Store(f"memory://{uuid.uuid4().hex}", create=True) as store:
        for pack in packs:
            write_pack(store, [CHUNKS.frame(number, bases) for number, bases in pack])
        for at, numbers in enumerate(models):
            record = write_model(store, f"models/{at % 2}/{at}", CHUNKS, numbers)
            if at == tagged:
                put_record(store, "tags/best", target=record.target, manifest=record.manifest)
        for at in removed & set(range(len(models))):
            store.rm(f"models/{at % 2}/{at}")
        frames, total = frames_in(store)
        needs = needs_in(store, frames)
        usage = store.du()
        assert {row.name for row in usage.rows} == needs.keys()

        def cost(ids):
            return sum(frames[item][0] for item in ids)

        def union(names):
            return set().union(*(needs[name] for name in names))

        def check(row, names):
            assert row.bytes_stored == cost(union(names))
            assert row.bytes_alone == cost(union(names) - union(needs.keys() - names))
            assert row.bytes_shared == row.bytes_stored - row.bytes_alone
            assert (row.refs, row.missing) == (len(names), 0)

        for row in usage.rows:
            check(row, {row.name})
        check(usage.together, set(needs))
        for row in store.du(depth=2).rows:
            check(row, {name for name in needs if name == row.name or name.startswith(f"{row.name}/")})
        below = {name for name in needs if name.startswith("models/0/")}
        if below:
            some = store.du("models/0/")
            assert {row.name for row in some.rows} == below
            check(some.together, below)
        assert usage.totals.referenced == cost(union(needs))
        assert usage.totals.unneeded == total - cost(union(needs))
        assert usage.totals.bytes_total == files_in(store)
        stats = store.stats()
        assert stats.bytes_unneeded == usage.totals.unneeded
        assert stats.bytes_logical == sum(
            {row.target: size for row in store.find() for size in [sum(store_size(store, row.name))]}.values()
        )
        left = store.leftovers()
        assert left == stats.leftovers
        assert left.complete
        live = union(needs)
        pointless = [
            pack
            for pack in packs_of(store.backend)
            if not live.intersection(row_ids(read_footer(store.backend, pack).rows))
        ]
        assert left.packs >= len(pointless), "and those of which another pack has everything"
        assert left.packs <= len(packs_of(store.backend)) - bool(live)


def store_size(store, name):
    return [item.size for item in store.files(name)]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def add(tmp_path):
    def adds(store, ref, content):
        return store.add(
            write_folder(content, tmp_path / f"model{next(_folders)}"), ref=ref, stat_cache=False
        )

    return adds


def fill(store, add):
    """Add models of which some share half, some nearly all, and some nothing."""
    base = {f"part{at}": noise(at, 30_000) for at in range(6)}
    add(store, "models/base", model_of(**base))
    add(store, "models/near", model_of(**base, own=noise(50, 5_000)))
    add(store, "models/half", model_of(**{f"part{at}": noise(at, 30_000) for at in range(3, 9)}))
    large = {f"part{at}": noise(20 + at, 30_000) for at in range(6)}
    add(store, "models/large", model_of(**large))
    add(store, "models/most", model_of(**{name: large[name] for name in list(large)[:4]}))
    add(store, "models/other", model_of(own=noise(99, 40_000)))
    store.tag("best", "models/other")


def freed_by_gc(store, names, folder):
    """Return what the next collection frees of packs, if these refs are removed, and the packs that it rewrites."""
    copy = folder / uuid.uuid4().hex
    shutil.copytree(store.backend.local_path("format").removesuffix("/format"), copy)
    with Store(copy) as opened:
        for name in names:
            opened.rm(name)
        items = {item.what: item for item in plan_gc(opened, GcPolicy(orphans_now=True)).items}
    freed = sum(items[what].bytes_freed for what in ("packs", "sparse packs") if what in items)
    return freed, "sparse packs" in items


def test_what_is_said_to_be_freed_is_what_gc_frees(store, add, tmp_path):
    fill(store, add)
    usage = store.du()
    frees = {row.name: row.bytes_freed for row in usage.rows}
    (large,) = (row for row in usage.rows if row.name == "models/large")
    assert large.bytes_alone > 60_000
    assert large.bytes_freed < 2_000, "two thirds of that pack are needed, so it stays as it is"
    assert frees["models/other"] == frees["tags/best"] == 0
    assert max(frees.values()) > 5_000
    for name, said in frees.items():
        freed, rewrites = freed_by_gc(store, [name], tmp_path)
        # All that is copied gets one new pack, whose own header and end cost something.
        assert said == freed + (pack_overhead(0) if rewrites else 0), name
    freed, _ = freed_by_gc(store, frees, tmp_path)
    assert usage.together.bytes_freed == freed
    both = store.du("models/other", "tags/").together
    assert both.bytes_freed == freed_by_gc(store, ["models/other", "tags/best"], tmp_path)[0] > 40_000


def test_who_holds_a_model_is_said(store, add):
    fill(store, add)
    rows = {row.name: row for row in store.du().rows}
    assert rows["models/other"].held_by == ("tags/best",)
    assert rows["tags/best"].held_by == ("models/other",)
    assert rows["models/other"].bytes_alone == 0
    assert rows["models/base"].held_by == ()
    grouped = {row.name: row for row in store.du(depth=1).rows}
    assert grouped["models"].held_by == ("tags/best",)
    assert (grouped["models"].refs, grouped["tags"].refs) == (6, 1)
    assert store.du("tags", "models").together.held_by == ()


def test_runs_have_rows_if_packs_hold_something_of_theirs(store, add):
    fill(store, add)
    store.put_manifest("runs/small", b"x" * 100)
    store.put_manifest("runs/large", noise(3, 20_000))
    rows = {row.name: row for row in store.du().rows}
    assert "runs/small" not in rows
    assert rows["runs/large"].bytes_alone == rows["runs/large"].bytes_stored > 20_000
    assert rows["runs/large"].bytes_logical == 0


def test_all_files_are_in_the_totals(store, add, tmp_path):
    fill(store, add)
    store.rm("models/near")
    store.gc(GcPolicy(orphans_now=True))
    writer = store.backend.open_writer()
    writer.write([b"alive" * 1000])
    usage = store.du()
    files = [os.path.join(place, name) for place, _, found in os.walk(tmp_path / "store") for name in found]
    assert usage.totals.bytes_total == sum(map(os.path.getsize, files))
    assert usage.totals.temporaries == 5000
    assert usage.totals.other > 0, "the tombstone"
    writer.discard()


def test_a_prefix_that_no_name_has(store, add):
    fill(store, add)
    with pytest.raises(RefNotFound, match="models/x"):
        store.du("models/base", "models/x")
    assert store.du().rows


def test_an_empty_store(store):
    usage = store.du()
    assert (usage.rows, usage.together.refs, usage.together.bytes_freed) == ((), 0, 0)
    assert usage.totals.bytes_total == files_in(store)
    assert store.stats().bytes_to_free == 0


def test_packs_that_no_segment_covers_are_opened(store, add):
    fill(store, add)
    whole = store.du()
    for entry in list(store.backend.list("index/")):
        store.backend.delete(entry.key)
    with Store(store.backend.local_path("format").removesuffix("/format")) as again:
        found = again.du()
    assert found.rows == whole.rows
    assert found.totals.index == 0


def test_what_is_missing_or_damaged_is_said_and_the_rest_measured(store, add):
    fill(store, add)
    told = []
    store.on_damage = told.append
    packs = {
        name: set(store.objects.packs_of(store.objects.find(store.objects_of(record))))
        for name, record in store.refs().items()
    }
    own = packs["models/other"] - packs["models/base"]
    before = {row.name: row for row in store.du().rows}
    place = store.backend.local_path("format").removesuffix("/format")
    for pack in own:
        os.chmod(path := os.path.join(place, pack_key(pack)), 0o600)
        with open(path, "r+b") as file:
            file.write(b"x" * 40_300)
    with Store(place) as again:
        again.on_damage = told.append
        found = again.du()
        stats = again.stats()
    assert {damage.name for damage in told} == {"models/other", "tags/best"}
    assert {damage.name for damage in found.damaged} == {"models/other", "tags/best"}
    rows = {row.name: row for row in found.rows}
    assert rows["models/base"] == before["models/base"]
    assert (stats.leftovers.complete, stats.leftovers.packs, stats.bytes_to_free) == (False, 0, None)
    for pack in own:
        os.unlink(os.path.join(place, pack_key(pack)))
    with Store(place) as again:
        again.on_damage = told.append
        gone = {row.name: row for row in again.du().rows}
    assert gone["models/other"].missing > 0
    assert gone["models/base"].missing == 0


def test_stats_say_what_gc_would_free(store, add):
    fill(store, add)
    assert store.stats().bytes_to_free == 0
    store.rm("models/other")
    store.rm("tags/best")
    stats = store.stats()
    assert stats.bytes_to_free == plan_gc(store).bytes_freed > 40_000
    assert stats.leftovers.packs == 1
    store.gc()
    stats = store.stats()
    assert (stats.bytes_to_free, stats.leftovers.packs, stats.bytes_unneeded) == (0, 0, 0)


def test_an_estimate_is_never_carried_out(store, add):
    fill(store, add)
    with pytest.raises(ConfigError, match="estimate only"):
        execute_gc(store, plan_gc(store, by_index=True))


def test_a_far_store_is_measured_by_its_index(store, add):
    fill(store, add)
    far, backend = far_store(store)
    usage = du(far)
    assert usage.rows == store.du().rows
    asked = [
        request
        for request in backend.take()
        if request.verb == "read" and request.key.startswith(PACK_PREFIX)
    ]
    assert len(asked) <= 3 * len(packs_of(store.backend)), "descriptions, and no footers"
    assert find_leftovers(far) == find_leftovers(store)
