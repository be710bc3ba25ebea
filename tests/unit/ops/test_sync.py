"""plan_sync and execute between healthy stores: what moves, what is written, what is left alone."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest
from fakes.collector import condemn, delete_packs, delta_frame, objects_by_pack, packs_of, unsafe_objects
from fakes.stores import assert_clean, model_of, noise, read_model, write_model
from fakes.sync_stores import Side, shown
from fsspec.callbacks import Callback

import casstore
from casstore.backend.wrapper import ReadonlyBackend
from casstore.concurrency.bandwidth import TokenBucket
from casstore.digest import digest
from casstore.errors import AccessDenied, ConfigError, MissingObject, RefNotFound
from casstore.format import marks, names
from casstore.format.rows import Kind
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX
from casstore.objects.publishing import pack_writer
from casstore.objects.publishing import publication as publish
from casstore.objects.publishing.pack_writer import encode_object
from casstore.ops.sync import execute, execution, plan_sync

SHARED = noise(1, 300_000)
BASE = model_of(shared=SHARED, own=noise(2, 200_000), config=b'{"a": 1}')
TUNED = model_of(shared=SHARED, own=noise(3, 150_000), config=b'{"a": 1}')


@pytest.fixture(params=["memory", "local", "objects"])
def kind(request):
    return request.param


@pytest.fixture(autouse=True)
def weather(request, monkeypatch):
    monkeypatch.setattr(Side, "rain", getattr(request, "param", None))


in_any_weather = pytest.mark.parametrize("weather", [None, 3], ids=["calm", "rain"], indirect=True)
"""Once as it is, and once over a network on which every third request to either side fails."""


@pytest.fixture
def here(tmp_path):
    return Side("memory", tmp_path)


@pytest.fixture
def there(tmp_path):
    return Side("memory", tmp_path)


def sync(src, dst, refs=None, **options):
    return execute(plan_sync(src, dst, refs, **options))


def assert_same(one, other):
    assert shown(one) == shown(other)
    assert_clean(other)


@in_any_weather
class TestCopies:
    @pytest.mark.parametrize("other", ["memory", "local", "objects"])
    def test_everything_between_any_two_places(self, tmp_path, kind, other):
        here, there = Side(kind, tmp_path), Side(other, tmp_path)
        base = here.add("models/base", BASE, metadata={"accuracy": 0.5})
        here.add("models/tuned", TUNED, base="models/base", metadata={"note": "x"})
        here.plain.tag("best", "models/tuned")
        here.plain.put_manifest("runs/small", b"a run", metadata={"pass": "quantise"})
        here.plain.put_manifest("runs/large", noise(5, 50_000))
        here.plain.put_manifest("evaluations/one", b"0.9")
        report = sync(here.plain, there.plain)
        assert set(report.refs) == set(here.plain.refs())
        assert_same(here.plain, there.plain)
        assert there.plain.record("models/tuned").base.hex() == base.model_id

    def test_what_the_other_side_has_is_not_sent(self, here, there):
        here.add("models/base", BASE)
        sync(here.plain, there.plain)
        here.add("models/tuned", TUNED)
        plan = plan_sync(here.plain, there.plain)
        assert plan.bytes_plain < 160_000
        report = execute(plan)
        assert report.refs == ("models/tuned",)
        assert report.bytes_missing < 160_000
        assert_same(here.plain, there.plain)

    def test_also_when_it_came_from_elsewhere(self, here, there):
        """Chunks are named by their bytes, so it does not matter who brought them."""
        here.add("models/tuned", TUNED)
        there.add("models/base", BASE)
        assert sync(here.plain, there.plain).bytes_missing < 160_000
        assert read_model(there.plain, "models/tuned") == TUNED

    def test_frames_are_copied_as_they_are_stored(self, here, there):
        here.add("models/base", BASE)
        sync(here.plain, there.plain)

        def stored(store):
            return {
                (row["id"].tobytes(), int(row["encoding"]), int(row["stored"]))
                for rows in store.objects._index.all_rows()
                for row in rows
            }

        assert stored(here.plain) == stored(there.plain)

    def test_packs_have_their_own_ids_and_records_their_own_hints(self, here, there):
        here.add("models/base", BASE)
        sync(here.plain, there.plain)
        assert not set(packs_of(here.backend)) & set(packs_of(there.backend))
        record, original = there.plain.record("models/base"), here.plain.record("models/base")
        assert set(record.packs) == set(packs_of(there.backend))
        assert record.write_id != original.write_id

    def test_a_readonly_source_is_enough_and_a_readonly_destination_is_not(self, here, there):
        here.add("models/base", BASE)
        readonly = here.open(ReadonlyBackend(here.backend))
        with pytest.raises(AccessDenied, match="read_only"):
            sync(here.plain, there.open(ReadonlyBackend(there.backend)))
        sync(readonly, there.plain)
        assert_same(here.plain, there.plain)

    def test_an_empty_model_and_an_empty_store(self, here, there):
        assert sync(here.plain, there.plain).refs == ()
        here.add("models/empty", model_of(nothing=b""))
        sync(here.plain, there.plain)
        assert_same(here.plain, there.plain)

    def test_by_the_public_names(self, here, there):
        here.add("models/base", BASE)
        plan = casstore.plan_sync(here.plain, there.plain, ["models/base"])
        assert isinstance(plan, casstore.SyncPlan)
        assert isinstance(casstore.execute_sync(plan), casstore.SyncReport)

    def test_one_store_is_not_two(self, here):
        with pytest.raises(ConfigError, match="both sides"):
            plan_sync(here.plain, here.open(here.backend))


class TestChoosing:
    @pytest.fixture(autouse=True)
    def models(self, here):
        self.base = here.add("models/base", BASE)
        here.add("models/deep/tuned", TUNED)
        here.plain.tag("best", "models/base")
        here.plain.put_manifest("runs/one", b"a run")

    @pytest.mark.parametrize(
        ("refs", "found"),
        [
            (["models/base"], {"models/base"}),
            (["base"], {"models/base"}),
            (["best"], {"tags/best"}),
            (["models/deep/"], {"models/deep/tuned"}),
            (["models/"], {"models/base", "models/deep/tuned"}),
            (["runs/one", "tags/best"], {"runs/one", "tags/best"}),
            ([], set()),
            (["evaluations/"], set()),
            (None, {"models/base", "models/deep/tuned", "tags/best", "runs/one"}),
        ],
    )
    def test_by_name_and_prefix(self, here, there, refs, found):
        assert set(sync(here.plain, there.plain, refs).refs) == found
        assert set(there.plain.refs()) == found

    def test_by_id(self, here, there):
        assert sync(here.plain, there.plain, [self.base.model_id]).refs == ("models/base",)

    @pytest.mark.parametrize("ref", ["models/none", "none", "models/none/", "runs/none", "abcd", "nonsense/"])
    def test_what_is_not_there_is_an_error(self, here, there, ref):
        with pytest.raises(RefNotFound, match=ref.strip("/")):
            plan_sync(here.plain, there.plain, [ref])


class TestPlan:
    def test_says_what_execute_then_does(self, here, there, tmp_path):
        here.add("models/base", BASE)
        here.add("models/tuned", TUNED)
        here.plain.put_manifest("runs/one", b"a run")
        plan = plan_sync(here.plain, there.plain)
        # Two models share a file, which is two chunks, and a config: everything is counted once.
        assert [ref.name for ref in plan.refs] == ["models/base", "models/tuned", "runs/one"]
        total = len(SHARED) + 200_000 + 150_000 + len(b'{"a": 1}')
        assert total <= plan.bytes_plain < total + 5_000
        assert plan.bytes_stored == sum(ref.bytes_stored for ref in plan.refs)
        assert plan.refs[1].bytes_stored < 160_000 < plan.refs[0].bytes_stored
        report = execute(plan)
        assert (report.objects, report.bytes_missing) == (plan.objects, plan.bytes_stored)
        assert report.requests == plan.requests
        assert plan.objects - plan.chunks == 2 * 3 + 2  # tree, manifest and layouts, two of which are shared
        assert not plan.conflicts
        again = plan_sync(here.plain, there.plain)
        assert (again.refs, again.objects, again.bytes_stored, again.requests) == ((), 0, 0, 0)
        assert set(again.equal) == {"models/base", "models/tuned", "runs/one"}
        assert again.empty

    def test_estimates_time(self, here, there):
        here.add("models/base", BASE)
        plan = plan_sync(here.plain, there.plain)
        assert plan.seconds(1e6) == pytest.approx(plan.bytes_stored / 1e6)
        slow = plan.seconds(1e6, 1.0, max_concurrency=1)
        assert slow == pytest.approx(plan.bytes_stored / 1e6 + plan.requests)

    def test_is_frozen_and_its_repr_is_short_of_ids(self, here, there):
        here.add("models/base", BASE)
        plan = plan_sync(here.plain, there.plain)
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.objects = 0
        assert "ids=" not in repr(plan)

    def test_changes_nothing(self, here, there):
        here.add("models/base", BASE)
        plan_sync(here.open(ReadonlyBackend(here.backend)), there.open(ReadonlyBackend(there.backend)))


class TestRequests:
    """Counted on a backend; a wide area network makes each of them a round trip."""

    def test_none_per_chunk(self, here, there):
        here.add("models/big", model_of(big=noise(7, 12 << 20)))
        src, dst = here.broken(), there.broken()
        plan = plan_sync(src, dst)
        assert plan.chunks > 30
        report = execute(plan)
        reads = [key for op, key in here.faulty.calls if op == "read_into" and key.startswith(PACK_PREFIX)]
        assert len(reads) <= plan.reads + 3 <= 8
        assert report.bytes_moved == report.bytes_missing
        assert len(there.faulty.calls) < 40

    def test_the_other_sides_index_costs_no_more_for_more_objects(self, here, there, tmp_path):
        counts = []
        for number, size in enumerate((100_000, 8 << 20)):
            there.add(f"models/old{number}", model_of(old=noise(number, size)))
            here.add(f"models/new{number}", model_of(new=noise(number, size) + b"x"))
            there.faulty.calls.clear()
            plan_sync(here.plain, there.broken(), [f"models/new{number}"])
            counts.append(sum(1 for _, key in there.faulty.calls if key.startswith(INDEX_PREFIX)))
        assert counts[1] == counts[0] + 1  # one more segment

    def test_equal_refs_cost_nothing_but_the_listing_of_records(self, here, there):
        for number in range(20):
            here.plain.put_manifest(f"runs/{number}", b"%d" % number)
            here.add(f"models/{number}", model_of(config=b"%d" % number))
        sync(here.plain, there.plain)
        src, dst = here.broken(), there.broken()
        plan_sync(src, dst)
        there.faulty.calls.clear()
        plan = plan_sync(src, dst)
        execute(plan)
        assert len(plan.equal) == 40
        # This store has no machine state: with one, the records themselves are not read again either.
        assert {(op, key.partition("/")[0]) for op, key in there.faulty.calls} == {
            ("list", "refs"),
            ("read", "refs"),
            ("make_durable", "refs"),  # asks nobody: only a local folder has something to sync
        }
        assert [op for op, _ in there.faulty.calls].count("list") == 2  # models, runs

    def test_a_single_ref_looks_at_no_other(self, here, there):
        for number in range(20):
            here.add(f"models/{number}", model_of(config=b"%d" % number))
        sync(here.plain, there.plain)
        here.add("models/new", BASE)
        src, dst = here.broken(), there.broken()
        plan_sync(src, dst, ["models/7"])
        for side in (here, there):
            assert len(side.faulty.calls) <= 2, side.faulty.calls
        sync(src, dst, ["models/new"])
        assert read_model(there.plain, "models/new") == BASE
        records = [key for op, key in there.faulty.calls if op == "read" and key.startswith(names.PREFIX)]
        assert {names.parse_key(key).name for key in records} <= {"models/7", "models/new"}

    def test_gaps_stay_within_the_budget_on_the_wire(self, here, there):
        """The worst case: every other chunk of a pack is missing."""
        size = 40_000
        parts = [noise(100 + at, size) for at in range(60)]
        here.add("models/all", model_of(**{f"f{at:02}": part for at, part in enumerate(parts)}))
        there.add("models/odd", model_of(**{f"f{at:02}": part for at, part in enumerate(parts) if at % 2}))
        report = sync(here.plain, there.plain)
        assert report.bytes_missing > 30 * size
        assert report.bytes_moved <= 1.02 * report.bytes_missing
        assert_clean(there.plain)


@in_any_weather
class TestStandings:
    def test_a_newer_value_replaces_one_that_the_source_has_seen(self, here, there):
        here.add("models/m", BASE)
        sync(here.plain, there.plain)
        here.add("models/m", TUNED)
        plan = plan_sync(here.plain, there.plain)
        assert [ref.state.value for ref in plan.refs] == ["behind"]
        execute(plan)
        assert read_model(there.plain, "models/m") == TUNED
        assert there.plain.record("models/m").seq == 2

    @pytest.mark.parametrize("name", ["models/m", "tags/t", "runs/r", "evaluations/e"])
    def test_an_older_value_does_not_replace_a_newer_one(self, here, there, name):
        self._set(here, name, 1)
        sync(here.plain, there.plain)
        self._set(there, name, 2)
        plan = plan_sync(here.plain, there.plain)
        assert (plan.ahead, plan.refs, plan.conflicts) == ((name,), (), ())
        assert sync(there.plain, here.plain).refs[-1] == name
        assert_same(there.plain, here.plain)

    @pytest.mark.parametrize("name", ["models/m", "tags/t", "runs/r", "evaluations/e"])
    def test_two_values_that_do_not_follow_from_one_another_are_a_conflict(self, here, there, name):
        self._set(here, name, 1)
        self._set(there, name, 2)
        here.add("models/other", BASE)
        before = shown(there.plain)[name]
        report = sync(here.plain, there.plain)
        (found,) = report.conflicts
        assert found.name == name
        assert found.src_target == here.plain.record(name).target.hex()
        assert found.dst_target == there.plain.record(name).target.hex()
        assert shown(there.plain)[name] == before
        assert "models/other" in report.refs
        report = sync(here.plain, there.plain, [name], overwrite=True)
        assert report.refs == (name,)
        assert shown(there.plain)[name] == shown(here.plain)[name]
        assert_clean(there.plain)

    def _set(self, side, name, number):
        if name.startswith("models/"):
            side.add(name, model_of(config=b"%d" % number))
        elif name.startswith("tags/"):
            side.add(f"models/{number}", model_of(config=b"%d" % number))
            side.plain.tag(name, f"models/{number}")
        else:
            side.plain.put_manifest(name, b"manifest %d" % number)

    def test_a_ref_that_was_deleted_over_there_comes_back(self, here, there):
        here.add("models/m", BASE)
        sync(here.plain, there.plain)
        there.plain.rm("models/m")
        assert sync(here.plain, there.plain).refs == ("models/m",)
        assert_same(here.plain, there.plain)

    def test_a_deleted_ref_deletes_nothing_over_there(self, here, there):
        here.add("models/m", BASE)
        sync(here.plain, there.plain)
        here.plain.rm("models/m")
        assert sync(here.plain, there.plain).refs == ()
        assert read_model(there.plain, "models/m") == BASE

    def test_other_metadata_of_the_same_model_is_taken_once(self, here, there):
        here.add("models/m", BASE, metadata={"by": "here"})
        there.add("models/m", BASE, metadata={"by": "there"})
        report = sync(here.plain, there.plain)
        assert (report.refs, report.objects) == (("models/m",), 0)
        assert there.plain.record("models/m").metadata == {"by": "here"}
        assert sync(there.plain, here.plain).refs == ()

    def test_a_loss_that_is_no_number_equals_itself(self, here, there):
        here.add("models/m", BASE, metadata={"loss": float("nan")})
        here.plain.put_manifest("runs/r", b"run", metadata={"loss": float("nan")})
        sync(here.plain, there.plain)
        assert sync(here.plain, there.plain).refs == sync(there.plain, here.plain).refs == ()

    def test_someone_writes_between_plan_and_execute(self, here, there):
        here.add("models/m", BASE)
        here.add("models/other", TUNED)
        plan = plan_sync(here.plain, there.plain)
        there.add("models/m", model_of(config=b"mine"))
        report = execute(plan)
        assert report.refs == ("models/other",)
        assert [found.name for found in report.conflicts] == ["models/m"]
        assert read_model(there.plain, "models/m") == model_of(config=b"mine")

    def test_someone_writes_the_same_between_plan_and_execute(self, here, there):
        here.add("models/m", BASE)
        plan = plan_sync(here.plain, there.plain)
        sync(here.plain, there.plain)
        assert execute(plan).refs == ("models/m",)
        assert there.plain.record("models/m").seq == 1

    def test_someone_takes_a_tags_place_at_the_last_moment(self, here, there):
        here.add("models/m", BASE)
        here.plain.tag("t", "models/m")
        there.add("models/mine", TUNED)
        dst = there.broken()
        plan = plan_sync(here.plain, dst)
        rival = there.open(there.backend)
        strike(there.faulty, "create", names.PREFIX, lambda: rival.tag("t", "models/mine"))
        report = execute(plan)
        assert report.refs == ("models/m",)
        (found,) = report.conflicts
        assert found.name == "tags/t"
        assert "someone else" in found.reason
        assert read_model(there.plain, "tags/t") == TUNED


def strike(faulty, operation, prefix, action, *, skip=0):
    """Do something right before the first call of this kind, or the one after `skip` of them."""
    inner, left = faulty.call, [skip]

    def call(op, key, work):
        if op == operation and key.startswith(prefix):
            left[0] -= 1
            if left[0] == -1:
                action()
        return inner(op, key, work)

    faulty.call = call


class TestOrder:
    def test_packs_then_index_then_records_and_models_before_runs(self, here, there):
        here.add("models/m", BASE)
        here.plain.tag("t", "models/m")
        here.plain.put_manifest("runs/r", b"a run of models/m")
        here.plain.put_manifest("evaluations/e", noise(1, 20_000))
        sync(here.plain, there.broken())
        writes = [key for op, key in there.faulty.calls if op in ("put", "create", "commit")]
        kinds = [
            names.parse_key(key).name if key.startswith("refs/") else key.split("/")[0] for key in writes
        ]
        assert kinds[:2] == ["packs", "index"]
        assert set(kinds[2:4]) == {"models/m", "tags/t"}
        assert kinds[4:6] == ["packs", "index"]
        assert set(kinds[6:]) == {"runs/r", "evaluations/e"}

    def test_groups_are_bounded_and_each_has_its_own_records(self, here, there, monkeypatch):
        monkeypatch.setattr(execution, "GROUP_BYTES", 100_000)
        for number in range(4):
            here.add(f"models/{number}", model_of(own=noise(number, 120_000)))
        sync(here.plain, there.broken())
        writes = [key.split("/")[0] for op, key in there.faulty.calls if op in ("put", "create", "commit")]
        assert writes == ["packs", "index", "refs"] * 4
        assert_same(here.plain, there.plain)

    def test_packs_are_bounded_and_published_one_by_one(self, here, there, monkeypatch):
        monkeypatch.setattr(pack_writer, "PACK_TARGET", 1 << 20)
        here.add("models/m", model_of(big=noise(4, 20 << 20)))
        report = sync(here.plain, there.broken())
        assert report.packs >= 4
        writes = [key.split("/")[0] for op, key in there.faulty.calls if op in ("put", "commit")]
        assert writes.index("index") < len(writes) - 1 - writes[::-1].index("packs")
        assert writes[-1] == "refs"

    def test_a_slow_link_holds_back_what_is_spooled_for_it(self, here, tmp_path, monkeypatch):
        monkeypatch.setattr(pack_writer, "REMOTE_PACK_TARGET", 128 << 10)
        monkeypatch.setattr(pack_writer, "UPLOADS", 2)
        monkeypatch.setattr("casstore.ops.sync.frames.BLOCK", 128 << 10)
        there = Side("objects", tmp_path)
        here.add("models/m", model_of(big=noise(4, 4 << 20)))
        inner, spooled, most = there.faulty.call, [0], [0]

        def call(op, key, work):
            if op == "open_writer":
                spooled[0] += 1
                most[0] = max(most[0], spooled[0])
            elif op == "commit":
                time.sleep(0.02)
                spooled[0] -= 1
            return inner(op, key, work)

        there.faulty.call = call
        report = sync(here.plain, there.broken())
        assert report.packs > 10
        assert most[0] <= 2 + 2  # on their way, the one that waits, and the one that is filled

    def test_a_slow_link_does_not_wait_for_a_full_pack(self, here, tmp_path, monkeypatch):
        monkeypatch.setattr(pack_writer, "REMOTE_PACK_TARGET", 1 << 20)
        monkeypatch.setattr("casstore.objects.publishing.pack_writer._FIRST_UPLOAD", 64 << 10)
        monkeypatch.setattr("casstore.ops.sync.frames.BLOCK", 128 << 10)
        there = Side("objects", tmp_path)
        here.add("models/m", model_of(big=noise(4, 3 << 20)))
        sync(here.plain, there.plain)
        sizes = sorted(entry.size for entry in there.plain.backend.list(PACK_PREFIX))
        assert sizes[0] < 256 << 10
        assert sizes[-2] >= 1 << 20
        assert len(sizes) <= 5

    def test_names_in_a_far_store_are_looked_up_together(self, here, tmp_path):
        far = Side("objects", tmp_path)
        wanted = [f"models/{number}" for number in range(8)]
        for number, name in enumerate(wanted):
            far.add(name, model_of(own=noise(number, 1_000)))
        meeting = threading.Barrier(len(wanted), timeout=10)
        inner = far.faulty.call

        def call(op, key, work):
            if op == "list" and key.startswith("refs/models/"):
                meeting.wait()  # broken unless all of them are asked for at the same time
            return inner(op, key, work)

        far.faulty.call = call
        plan = plan_sync(far.broken(), here.plain, wanted)
        assert sorted(ref.name for ref in plan.refs) == wanted


@in_any_weather
class TestCollectors:
    """A collector strikes at the destination while it is written to, or at the source while it is read."""

    @pytest.fixture(autouse=True)
    def models(self, here, there):
        here.add("models/base", BASE)
        here.add("models/tuned", TUNED)
        there.add("models/base", BASE)
        self.old = packs_of(there.backend)

    @pytest.mark.parametrize("act", [condemn, delete_packs])
    @pytest.mark.parametrize("lists", range(3))
    @pytest.mark.parametrize("whose", ["old", "all"])
    def test_at_the_destination(self, here, there, act, lists, whose):
        def collect():
            act(there.backend, self.old if whose == "old" else packs_of(there.backend))

        dst = there.broken()
        plan = plan_sync(here.plain, dst, ["models/tuned"])
        strike(there.faulty, "list", marks.TOMBSTONE_PREFIX, collect, skip=lists)
        execute(plan)
        assert unsafe_objects(there.backend, "models/tuned") == set()
        assert read_model(there.open(there.backend), "models/tuned") == TUNED

    def test_at_the_source_which_has_another_copy(self, here, there, tmp_path):
        src = here.broken()
        plan = plan_sync(src, there.plain, ["models/tuned"])
        old = packs_of(here.backend)

        def collect():
            writer = here.open(here.backend)
            tombstone = condemn(here.backend, old)
            writer.add(write_model(BASE, tmp_path / "again"), ref="models/base", stat_cache=False)
            writer.add(write_model(TUNED, tmp_path / "again2"), ref="models/tuned", stat_cache=False)
            here.backend.delete(tombstone)
            delete_packs(here.backend, old)

        strike(here.faulty, "read_into", PACK_PREFIX, collect)
        execute(plan)
        assert read_model(there.plain, "models/tuned") == TUNED

    def test_at_the_source_which_then_has_none(self, here, there):
        src = here.broken()
        plan = plan_sync(src, there.plain, ["models/tuned"])
        strike(
            here.faulty, "read_into", PACK_PREFIX, lambda: delete_packs(here.backend, packs_of(here.backend))
        )
        with pytest.raises(MissingObject):
            execute(plan)
        assert "models/tuned" not in there.plain.refs()
        assert_clean(there.plain)

    def test_packs_that_no_segment_covers_are_found_on_a_restart(self, here, there, monkeypatch):
        monkeypatch.setattr(publish, "_WORTH_LOOKING", 1000)
        sync(here.plain, there.plain, ["models/tuned"])
        there.plain.rm("models/tuned")
        for entry in [*there.backend.list(INDEX_PREFIX)]:
            there.backend.delete(entry.key)
        packs = packs_of(there.backend)
        report = sync(here.plain, there.open(there.backend), ["models/tuned"])
        assert (report.objects, report.packs) == (0, 0)
        assert packs_of(there.backend) == packs


@in_any_weather
class TestDeltas:
    """Chunks that are made of other ones."""

    BOTTOM = noise(30, 65_000)
    GROUND = noise(31, 70_000)
    DERIVED = noise(32, 80_000)

    def make(self, side, *, rank=1, bases=None):
        """Put GROUND into a store alone, DERIVED on top of it, and a model of each."""
        self.delta(side, self.GROUND, rank - 1, [self.BOTTOM])
        self.delta(side, self.DERIVED, rank, bases or [self.GROUND])
        side.add("models/ground", model_of(f=self.GROUND))
        side.add("models/derived", model_of(f=self.DERIVED))
        assert self.rank_in(side, self.DERIVED) == rank

    def delta(self, side, plain, rank, bases):
        with side.plain.publication() as publication:
            publication.write_objects(Kind.CHUNK, {digest(self.BOTTOM): self.BOTTOM})
            publication.write(delta_frame(plain, rank, bases) if rank else encode_object(Kind.CHUNK, plain))
            publication.commit_all([], lambda _: iter(()))

    def rank_in(self, side, plain):
        located = side.open(side.backend).objects._index.locate([digest(plain)])
        return int(located.rows["rank"][0]) if located.found[0] else None

    def test_alone_where_its_base_is_not_wanted(self, here, there):
        self.make(here)
        report = sync(here.plain, there.plain, ["models/derived"])
        assert report.reencoded == 1
        assert self.rank_in(there, self.DERIVED) == 0
        assert self.rank_in(there, self.GROUND) is None
        assert_same_ref(here, there, "models/derived")

    def test_as_it_is_beside_its_base(self, here, there):
        self.make(here)
        report = sync(here.plain, there.plain)
        assert report.reencoded == 0
        assert self.rank_in(there, self.DERIVED) == 1
        located = there.plain.objects._index.locate([digest(self.DERIVED)])
        assert located.bases(0) == (digest(self.GROUND),)
        assert_same(here.plain, there.plain)

    def test_as_it_is_where_its_base_is_there(self, here, there):
        self.make(here)
        there.add("models/other", model_of(other=self.GROUND))
        report = sync(here.plain, there.plain, ["models/derived"])
        assert (report.reencoded, self.rank_in(there, self.DERIVED)) == (0, 1)

    def test_alone_where_the_base_over_there_has_no_lower_rank(self, here, there):
        self.make(here)
        self.delta(there, self.GROUND, 1, [self.BOTTOM])
        report = sync(here.plain, there.plain, ["models/derived"])
        assert (report.reencoded, self.rank_in(there, self.DERIVED)) == (1, 0)

    def test_the_base_it_relies_on_is_condemned_meanwhile(self, here, there):
        self.make(here)
        there.add("models/other", model_of(other=self.GROUND))
        dst = there.broken()
        plan = plan_sync(here.plain, dst, ["models/derived"])
        old = packs_of(there.backend)
        strike(there.faulty, "list", marks.TOMBSTONE_PREFIX, lambda: condemn(there.backend, old), skip=1)
        execute(plan)
        held = objects_by_pack(there.backend)
        safe = set().union(*(ids for pack, ids in held.items() if pack not in old))
        assert {digest(self.GROUND), digest(self.DERIVED)} <= safe


def assert_same_ref(here, there, name):
    assert read_model(there.plain, name) == read_model(here.plain, name)
    assert_clean(there.plain)


class TestProgress:
    def test_the_callback_counts_stored_bytes(self, here, there):
        here.add("models/m", model_of(big=noise(4, 5 << 20)))
        callback = Callback()
        plan = plan_sync(here.plain, there.plain)
        execute(plan, callback=callback)
        assert callback.size == callback.value == plan.bytes_stored

    def test_bandwidth_is_limited(self, here, there):
        here.add("models/m", model_of(big=noise(4, 1 << 20)))
        report = execute(plan_sync(here.plain, there.plain), bandwidth_limit=2e6)
        assert report.seconds >= report.bytes_moved / 2e6 - 0.3

    def test_the_bucket_keeps_the_rate_and_saves_up_little(self):
        now, slept = [0.0], []

        def sleep(seconds):
            slept.append(seconds)
            now[0] += seconds

        bucket = TokenBucket(1000, clock=lambda: now[0], sleep=sleep)
        for _ in range(10):
            bucket.take(500)
        assert now[0] == pytest.approx(5.0)
        now[0] += 100
        slept.clear()
        for _ in range(10):
            bucket.take(500)
        assert sum(slept) == pytest.approx(5.0 - 0.25)

    @pytest.mark.parametrize("limit", [0, -1, 0.5])
    def test_a_limit_that_lets_nothing_through_is_refused(self, here, there, limit):
        with pytest.raises(ConfigError, match="bandwidth"):
            execute(plan_sync(here.plain, there.plain), bandwidth_limit=limit)

    def test_no_concurrency_is_refused(self, here, there):
        with pytest.raises(ConfigError, match="max_concurrency"):
            execute(plan_sync(here.plain, there.plain), max_concurrency=0)

    @pytest.mark.parametrize("concurrency", [1, 3])
    def test_with_other_concurrency(self, here, there, concurrency):
        here.add("models/m", model_of(big=noise(4, 9 << 20)))
        execute(plan_sync(here.plain, there.plain), max_concurrency=concurrency)
        assert_same(here.plain, there.plain)
