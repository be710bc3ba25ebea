"""Sync when either side, or the way to it, fails: a clear error or a whole copy, never a record of what is not there."""

from __future__ import annotations

import pytest
from fakes.collector import packs_of
from fakes.stores import assert_clean, model_of, noise, read_model, write_model
from fakes.sync_stores import FlakyFileSystem, Side, shown, source_files

from casstore.backend.base import Throttled
from casstore.errors import (
    BackendError,
    BackendUnavailable,
    CasstoreError,
    DigestMismatch,
    FormatError,
    IntegrityError,
)
from casstore.format import names
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX, pack_key
from casstore.objects.publishing import pack_writer
from casstore.objects.publishing import publication as publish
from casstore.ops.quarantine import quarantine_damaged
from casstore.ops.sync import execute, execution, plan_sync
from casstore.ops.sync.ref_state import RefState

TRIES = 12
SHARED = noise(1, 300_000)
MODELS = {
    "models/a": model_of(shared=SHARED, own=noise(2, 700_000)),
    "models/b": model_of(shared=SHARED, own=noise(3, 500_000)),
}


@pytest.fixture(params=[("memory", "objects"), ("objects", "local"), ("local", "memory")], ids="-".join)
def kinds(request):
    return request.param


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the source holds, by the keys of its files."""
    return source_files(tmp_path_factory.mktemp("source"), MODELS, best="models/b")


@pytest.fixture
def here(tmp_path, kinds, files):
    return Side(kinds[0], tmp_path).hold(files)


@pytest.fixture
def there(tmp_path, kinds):
    return Side(kinds[1], tmp_path)


@pytest.fixture
def calls(tmp_path, kinds, files):
    """How many calls an undisturbed sync makes on either side; counted once for each kind."""
    if kinds not in _calls:
        here, there = Side(kinds[0], tmp_path).hold(files), Side(kinds[1], tmp_path)
        sync(here.broken(), there.broken())
        _calls[kinds] = {"src": len(here.faulty.calls), "dst": len(there.faulty.calls)}
    return _calls[kinds]


_calls = {}


@pytest.fixture(autouse=True)
def several_packs(monkeypatch):
    """So that a sync has a middle."""
    monkeypatch.setattr(pack_writer, "PACK_TARGET", 256 << 10)
    monkeypatch.setattr(pack_writer, "REMOTE_PACK_TARGET", 256 << 10)
    monkeypatch.setattr("casstore.ops.sync.frames.BLOCK", 128 << 10)


def sync(src, dst, refs=None):
    return execute(plan_sync(src, dst, refs))


def assert_recovers(here, there):
    """Whatever happened: the destination is clean, and a second run brings the rest."""
    for side in (here, there):
        side.faulty.heal()
    assert_clean(there.open(there.backend))
    report = sync(here.open(here.backend), there.open(there.backend))
    assert shown(there.open(there.backend)) == shown(here.open(here.backend))
    assert_clean(there.open(there.backend))
    return report


STORM = [Throttled("503 slow down", retry_after=1.0)] * 4 + [BackendUnavailable("504")] * 3


OVER_THE_NETWORK = ("read", "read_into", "stat", "list", "put", "create", "commit")


class TestWhatRetriesMend:
    @pytest.mark.parametrize("side", ["src", "dst"])
    @pytest.mark.parametrize("operation", OVER_THE_NETWORK)
    def test_a_storm(self, here, there, side, operation):
        hit = here if side == "src" else there
        for error in STORM:
            hit.faulty.fail_next(operation, error)
        sync(here.broken(tries=TRIES), there.broken(tries=TRIES))
        assert_recovers(here, there)

    def test_bodies_that_break_off(self, here, there):
        here.faulty.drop_bodies(6)
        there.faulty.drop_bodies(6)
        sync(here.broken(tries=TRIES), there.broken(tries=TRIES))
        assert assert_recovers(here, there).refs == ()

    def test_reads_that_stop_early_without_an_error(self, here, there):
        src = here.broken()
        here.faulty.shorten_reads(100)
        with pytest.raises(FormatError, match="truncated"):
            # The reader of manifests takes a short answer for a short file: it is not asked twice.
            sync(src, there.plain)
        here.faulty.heal()
        plan = plan_sync(src, there.plain)
        here.faulty.shorten_reads(10_000)
        assert execute(plan).refs
        assert assert_recovers(here, there).refs == ()

    @pytest.mark.parametrize("every", [3, 5, 7])
    def test_acknowledgements_that_get_lost(self, here, there, every):
        """Each operation works, and every third answer does not come back."""
        for side in (here, there):
            # A writer keeps what it wrote until it hears that it arrived: the next test loses those answers.
            side.faulty.lose_answers(every, [name for name in OVER_THE_NETWORK if name != "commit"])
        sync(here.broken(tries=TRIES), there.broken(tries=TRIES))
        assert shown(there.open(there.backend)) == shown(here.plain)
        assert assert_recovers(here, there).refs == ()

    @pytest.mark.parametrize("every", [2, 3])
    def test_answers_to_uploads_that_get_lost(self, here, tmp_path, every):
        place = Side("flaky", tmp_path)
        FlakyFileSystem.lose_every = every
        try:
            sync(here.plain, place.retrying())
        finally:
            FlakyFileSystem.lose_every = 0
        assert FlakyFileSystem.lost > 3
        assert shown(place.open(place.backend)) == shown(here.plain)
        assert assert_recovers(here, place).refs == ()


class TestWhatNothingMends:
    @pytest.mark.parametrize("side", ["src", "dst"])
    @pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.95])
    def test_the_network_goes_in_the_middle(self, here, there, calls, side, share):
        hit = here if side == "src" else there
        hit.faulty.unplug_at(int(share * calls[side]))
        with pytest.raises(BackendUnavailable, match="network is gone"):
            sync(here.broken(), there.broken())
        assert_recovers(here, there)

    def test_finished_packs_are_kept(self, here, there, monkeypatch):
        """A second run reads from the source only what no finished pack holds."""
        monkeypatch.setattr(publish, "_WORTH_LOOKING", 0)
        plan = plan_sync(here.plain, there.broken())
        commits = [0]
        inner = there.faulty.call

        def call(op, key, work):
            if op == "commit" and key.startswith(PACK_PREFIX):
                commits[0] += 1
                if commits[0] == 4:
                    raise BackendUnavailable("The network is gone.")
            return inner(op, key, work)

        there.faulty.call = call
        with pytest.raises(BackendUnavailable):
            execute(plan)
        del there.faulty.call
        assert len(packs_of(there.backend)) >= 3
        report = sync(here.open(here.backend), there.open(there.backend))
        assert report.bytes_moved <= plan.bytes_stored - 3 * (256 << 10)
        assert_recovers(here, there)

    def test_a_disk_that_is_full(self, here, there):
        full = BackendError("Cannot write: no space left on device.")
        plan = plan_sync(here.plain, there.broken())
        there.faulty.fail_next("write", full, times=10**6)
        with pytest.raises(BackendError, match="no space left"):
            execute(plan)
        assert there.open(there.backend).refs() == {}
        there.faulty.heal()
        assert not list(there.backend.list_temporaries())
        assert_recovers(here, there)

    def test_a_listing_that_fails(self, here, there):
        for side in (here, there):
            side.faulty.fail_next("list", BackendError("Cannot list."), times=10**6)
            with pytest.raises(BackendError, match="Cannot list"):
                plan_sync(here.broken(), there.broken())
            side.faulty.heal()
        assert_recovers(here, there)

    def test_errors_of_every_single_call(self, here, there):
        """One call after the other fails for good; nothing is lost by any of them."""
        calls = 0
        for index in range(0, 400, 7):
            target = Side("memory", there.tmp_path)
            for side in (here, target):
                side.faulty.calls.clear()
            target.faulty.fail_at(index, AssertedError("Cannot."))
            try:
                sync(here.plain, target.broken())
            except AssertedError:
                assert_clean(target.open(target.backend))
                calls += 1
            else:
                break
        assert calls >= 5


class AssertedError(CasstoreError):
    pass


class TestStaleListings:
    """What was written a moment ago may not be listed for up to two minutes."""

    def test_of_the_source(self, here, there):
        here.faulty.freeze_listings()
        src = here.broken()
        here.add("models/late", model_of(late=noise(11, 100_000)))
        sync(src, there.plain)
        assert "models/late" not in there.plain.refs()
        assert read_model(there.plain, "models/a") == MODELS["models/a"]
        assert_clean(there.plain)
        assert assert_recovers(here, there).refs == ("models/late",)

    def test_of_the_sources_index_while_its_packs_are_listed(self, here, there):
        here.faulty.hide({entry.key for entry in here.backend.list(INDEX_PREFIX)})
        sync(here.broken(), there.plain)
        assert assert_recovers(here, there).refs == ()

    def test_of_the_destination(self, here, there):
        there.faulty.freeze_listings()
        dst = there.broken()
        sync(here.plain, there.plain)
        before = {name: record.target for name, record in there.plain.refs().items()}
        # It does not see what is there, writes some of it again, and loses nothing by that.
        report = sync(here.plain, dst)
        assert {name: record.target for name, record in there.open(there.backend).refs().items()} == before
        assert not report.conflicts or {found.name for found in report.conflicts} == {"tags/best"}
        assert_recovers(here, there)

    def test_of_the_destinations_index(self, here, there):
        sync(here.plain, there.plain)
        there.plain.rm("models/a")
        there.faulty.hide({entry.key for entry in there.backend.list(INDEX_PREFIX)})
        sync(here.plain, there.broken())
        assert_recovers(here, there)


class TestWrongBytes:
    def damaged(self, side):
        """Return the key of the pack with the source's largest model, and where some frames lie in it."""
        located = side.plain.objects._index.locate(list(side.plain.objects_of(side.plain.record("models/a"))))
        chunks = [at for at in range(len(located.rows)) if located.rows["raw"][at] > 50_000]
        at = chunks[len(chunks) // 2]
        return pack_key(side.plain.objects._index.pack_id(int(located.rows["pack"][at]))), int(
            located.rows["offset"][at]
        )

    @pytest.mark.parametrize(("into", "kind"), [(60, DigestMismatch), (2, FormatError), (20, FormatError)])
    def test_of_a_chunk(self, here, there, into, kind):
        key, offset = self.damaged(here)
        here.faulty.corrupt(key, offset + into)
        with pytest.raises(IntegrityError, match=key) as caught:
            sync(here.broken(), there.plain)
        assert isinstance(caught.value, kind)
        assert there.plain.refs() == {}
        assert_clean(there.plain)
        assert_recovers(here, there)

    def test_of_a_chunk_that_another_pack_holds_whole(self, here, there, tmp_path):
        """Set apart and stored anew: who comes later reads past the damage, and asks nobody."""
        key, offset = self.damaged(here)
        here.faulty.corrupt(key, offset + 60)
        owner = here.broken()
        assert [
            pack_key(bytes.fromhex(pack)) for pack in quarantine_damaged(owner, owner.record("models/a"))
        ] == [key]
        owner.add(write_model(MODELS["models/a"], tmp_path / "again"), ref="models/a")
        sync(here.broken(), there.plain)
        assert read_model(there.plain, "models/a") == MODELS["models/a"]
        assert assert_recovers(here, there).refs == ()

    def test_at_the_destination_is_mended_by_overwriting(self, here, there):
        sync(here.plain, there.plain)
        key, offset = self.damaged(there)
        there.faulty.corrupt(key, offset + 60)
        dst = there.broken()
        assert quarantine_damaged(dst, dst.record("models/a"))
        assert plan_sync(here.plain, there.broken()).empty
        plan = plan_sync(here.plain, there.broken(), overwrite=True)
        assert {ref.state for ref in plan.refs} == {RefState.EQUAL}
        before = {name: record.key for name, record in there.plain.refs().items()}
        report = execute(plan)
        assert "models/a" in report.refs
        assert report.bytes_missing == plan.bytes_stored > 0
        assert {name: record.key for name, record in there.plain.refs().items()} == before
        assert plan_sync(here.plain, there.broken(), overwrite=True).empty
        taker = Side("memory", there.tmp_path)
        sync(there.broken(), taker.plain)
        assert shown(taker.plain) == shown(here.plain)

    def test_other_models_can_still_be_copied(self, here, there):
        key, offset = self.damaged(here)
        here.faulty.corrupt(key, offset + 60)
        report = execute(plan_sync(here.broken(), there.plain, ["runs/"]))
        assert set(report.refs) == {"runs/small", "runs/large"}

    def test_of_a_manifest(self, here, there):
        row = here.plain.objects._index.locate([here.plain.record("models/a").manifest]).rows[0]
        key = pack_key(here.plain.objects._index.pack_id(int(row["pack"])))
        here.faulty.corrupt(key, int(row["offset"]) + 60)
        with pytest.raises(IntegrityError, match=key):
            plan_sync(here.broken(), there.plain)

    def test_of_a_record(self, here, there):
        record = here.plain.record("models/a")
        here.faulty.corrupt(record.key, 30)
        with pytest.raises(IntegrityError, match="models"):
            plan_sync(here.broken(), there.plain)

    def test_of_an_index_segment(self, here, there, caplog):
        key = max(here.backend.list(INDEX_PREFIX), key=lambda entry: entry.size).key
        here.faulty.corrupt(key, 5)
        sync(here.broken(), there.plain)
        assert shown(there.plain) == shown(here.plain)
        assert key in caplog.text

    def test_index_segments_without_bytes(self, here, there):
        for entry in here.backend.list(INDEX_PREFIX):
            here.faulty.empty(entry.key)
        sync(here.broken(), there.plain)
        assert shown(there.plain) == shown(here.plain)

    @pytest.mark.parametrize("prefix", [PACK_PREFIX, names.PREFIX])
    def test_objects_without_bytes(self, here, there, prefix):
        for entry in here.backend.list(prefix):
            here.faulty.empty(entry.key)
        with pytest.raises(IntegrityError):
            sync(here.broken(), there.plain)
        assert there.plain.refs() == {}
        assert_recovers(here, there)

    @pytest.mark.parametrize("prefix", [PACK_PREFIX, INDEX_PREFIX, names.PREFIX])
    def test_objects_without_bytes_at_the_destination(self, here, there, prefix):
        """What is empty there counts as absent, or is an error: no record relies on it."""
        sync(here.plain, there.plain)
        here.add("models/late", model_of(shared=SHARED, own=noise(11, 100_000)))
        emptied = [entry.key for entry in there.backend.list(prefix)]
        for key in emptied:
            there.faulty.empty(key)
        try:
            sync(here.plain, there.broken(), ["models/late"])
        except IntegrityError:
            assert "models/late" not in there.plain.refs()
        else:
            # Read without those objects, as they never come back.
            assert read_model(there.broken(), "models/late") == read_model(here.plain, "models/late")
        assert_recovers(here, there)


def test_the_group_that_fails_does_not_take_back_those_before_it(here, there, monkeypatch):
    monkeypatch.setattr(execution, "GROUP_REFS", 1)
    located = here.plain.objects._index.locate(list(here.plain.objects_of(here.plain.record("models/b"))))
    own = int(located.rows["raw"].argmax())
    key = pack_key(here.plain.objects._index.pack_id(int(located.rows["pack"][own])))
    here.faulty.corrupt(key, int(located.rows["offset"][own]) + 60)
    with pytest.raises(IntegrityError, match=key):
        sync(here.broken(), there.plain)
    assert set(there.plain.refs()) == {"models/a"}
    assert read_model(there.plain, "models/a") == MODELS["models/a"]
    assert_recovers(here, there)
