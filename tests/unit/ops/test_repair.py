"""Repair: with a second copy everything is whole again, without one it says what is missing, and it deletes nothing."""

from __future__ import annotations

import os
import random
import shutil

import numpy as np
import pytest
from fakes.collector import collect_alone
from fakes.model_files import safetensors_bytes
from fakes.stores import model_of, noise, read_model, small_packs, write_model

from casstore import RefNotFound, Store
from casstore.digest import digest
from casstore.format import frame, marks, names
from casstore.machine.remotes import Remotes
from casstore.objects.footers import read_footer
from casstore.objects.keys import pack_id_of
from casstore.ops.repair import Health

TENSORS = {"w": np.random.default_rng(1).normal(0, 0.02, (100, 300)).astype(np.float32)}
MODELS = {
    "models/first": model_of(
        planes__safetensors=safetensors_bytes(TENSORS),
        text__txt=b"the same words again, " * 400,
        raw=noise(1, 60_000),
    ),
    "models/second": model_of(raw=noise(1, 60_000), other=noise(2, 90_000)),
}
LARGE = model_of(other=noise(3, 800_000))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A store of some packs, a tag and a run in it, and a second store with the same."""
    top = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch, Store(top / "store", create=True, durability="none") as store:
        small_packs(patch, 60_000)
        for number, (ref, model) in enumerate(MODELS.items()):
            store.add(write_model(model, top / f"m{number}"), ref=ref, metadata={"number": number})
        store.tag("best", "models/first")
        store.put_manifest("runs/small", b"small")
        store.put_manifest("runs/large", noise(4, 20_000))
        store.push(top / "hub", create=True)
    return top


class Place:
    def __init__(self, top):
        self.root, self.hub = top / "store", top / "hub"

    def files(self, part):
        return sorted(
            str(path.relative_to(self.root))
            for path in (self.root / part).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )

    def open(self):
        return Store(self.root, durability="none")

    def repair(self, *refs, source="hub", apply=True):
        with self.open() as store:
            return store.repair(
                refs or None, source=self.hub if source == "hub" else source, dry_run=not apply
            )

    def write(self, key, data):
        path = self.root / key
        path.chmod(0o600)
        path.write_bytes(data)

    def tree(self):
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }

    def assert_whole(self, models=MODELS):
        """Every model is bit-exact, and check finds nothing but what is set apart or replaced."""
        with self.open() as store:
            for ref, model in models.items():
                assert read_model(store, ref) == model
                assert store.lacks(store.record(ref)) == 0
            assert read_model(store, "tags/best") == MODELS["models/first"]
            assert store.manifest_of(store.record("runs/large")) == noise(4, 20_000)
            apart = {pack.hex() for pack in store.objects.quarantined()}
            newest = {store.record(name).key for name in store.refs()}
            for problem in store.check(read_data=True).problems:
                name = problem.key.rpartition("/")[2]
                replaced = (
                    problem.key.startswith("refs/") and "@" in problem.key and problem.key not in newest
                )
                assert name in apart or replaced, problem


@pytest.fixture
def place(built, tmp_path, monkeypatch):
    shutil.copytree(built / "store", tmp_path / "store")
    shutil.copytree(built / "hub", tmp_path / "hub")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh-cache"))
    return Place(tmp_path)


def flipped(data, at):
    return b"%b%c%b" % (data[:at], data[at] ^ 4, data[at + 1 :])


PACK_DAMAGE = {
    "flip in the first frame": lambda data: flipped(data, 32 + frame.HEADER_SIZE + 10),
    "flip in a frame header": lambda data: flipped(data, 40),
    "flip in the pack header": lambda data: flipped(data, 3),
    "flip in the nonce": lambda data: flipped(data, 20),
    "flip in the footer": lambda data: flipped(data, len(data) - 100),
    "flip in the trailer": lambda data: flipped(data, len(data) - 20),
    "flips all over": lambda data: bytes(b ^ 1 if at % 997 == 7 else b for at, b in enumerate(data)),
    "cut in half": lambda data: data[: len(data) // 2],
    "cut by a byte": lambda data: data[:-1],
    "emptied": lambda _: b"",
    "longer": lambda data: data + b"x",
    "zeros in the middle": lambda data: (
        data[: len(data) // 3] + bytes(len(data) // 3) + data[len(data) // 3 * 2 :]
    ),
}


@pytest.mark.parametrize(
    ("how", "segments"),
    [
        *((how, "with segments") for how in [*PACK_DAMAGE, "deleted"]),
        *((how, "without") for how in ("flip in the footer", "zeros in the middle", "deleted")),
    ],
)
def test_a_second_copy_restores_every_model(place, how, segments):
    packs = place.files("packs")
    assert len(packs) >= 5
    for key in packs:
        if how == "deleted":
            (place.root / key).unlink()
        else:
            place.write(key, PACK_DAMAGE[how]((place.root / key).read_bytes()))
    if segments == "without":
        shutil.rmtree(place.root / "index")
    report = place.repair()
    assert report.ok
    assert report.problems == ()
    assert {ref.health for ref in report.refs} <= {Health.WHOLE, Health.HEALED}
    assert len(report.packs) == (0 if how == "deleted" else len(packs))
    assert set(packs) - set(place.files("packs")) == (set(packs) if how == "deleted" else set())
    place.assert_whole()
    again = place.repair(source=place.root)
    assert again.ok
    assert (again.packs, again.sources, again.segments, again.uncovered) == ({}, {}, {}, 0)


SALVAGED = ["flip in a frame header", "flip in the pack header", "flip in the nonce", "flip in the footer",
            "flip in the trailer", "cut by a byte", "longer"]  # fmt: skip


@pytest.mark.parametrize(
    ("how", "segments"),
    [
        *((how, "with segments") for how in SALVAGED),
        *((how, "without") for how in ("flip in the footer", "cut by a byte")),
    ],
)
def test_what_is_whole_in_damaged_packs_needs_no_second_copy(place, how, segments):
    """Frames are found by their own headers, or where one of those is damaged, by the footer."""
    for key in place.files("packs"):
        place.write(key, PACK_DAMAGE[how]((place.root / key).read_bytes()))
    if segments == "without":
        shutil.rmtree(place.root / "index")
    shutil.rmtree(place.hub)
    report = place.repair(source=None)
    assert report.ok
    assert all(source.startswith("packs/") for source in report.sources)
    place.assert_whole()


def test_without_a_source_only_quarantine_changes(place):
    """And it says what is missing: the model, the objects, the files."""
    with place.open() as store:
        [chunk, *_] = store.model("models/second").layout("other").chunk_ids()
        located = store.objects.locate([chunk])
        [pack] = store.objects.packs_of(located)
        offset = int(located.rows["offset"][0])
    key = next(key for key in place.files("packs") if key.endswith(pack.hex()))
    place.write(key, flipped((place.root / key).read_bytes(), offset + frame.HEADER_SIZE + 5))
    good = read_footer(place.open().backend, pack)
    before = place.tree()
    report = place.repair(source=None)
    assert not report.ok
    health = {ref.name: ref for ref in report.refs}
    assert health["models/second"].health is Health.MISSING
    assert health["models/second"].missing == 1
    assert health["models/second"].files == ("other",)
    assert {ref.health for name, ref in health.items() if name != "models/second"} <= {
        Health.WHOLE,
        Health.HEALED,
    }
    after = place.tree()
    new = {name: data for name, data in after.items() if name not in before}
    assert {name: after[name] for name in before} == before
    assert marks.quarantine_key(pack) in new
    copied = len(good.rows) - 1
    assert report.sources == ({key: copied} if copied else {})
    again = place.repair(source=None)
    assert (again.packs, again.sources) == ({}, {})
    assert not again.ok


@pytest.mark.parametrize("how", ["flips all over", "cut in half", "emptied", "flip in the footer"])
def test_a_dry_run_says_the_same_and_writes_nothing(place, how):
    for key in place.files("packs")[::2]:
        place.write(key, PACK_DAMAGE[how]((place.root / key).read_bytes()))
    (place.root / place.files("index")[0]).unlink()
    before = place.tree()
    planned = place.repair(apply=False)
    assert planned.dry_run
    assert place.tree() == before
    done = place.repair()
    assert (planned.refs, planned.packs, planned.sources) == (done.refs, done.packs, done.sources)
    assert planned.bytes_written == 0 < done.bytes_written
    place.assert_whole()


def test_flips_anywhere_are_healed(place):
    chance = random.Random(5)
    pristine = place.tree()
    for _ in range(6):
        for key in place.files("packs") + place.files("index"):
            if key in pristine and chance.random() < 0.5:
                data = pristine[key]
                place.write(key, flipped(data, chance.randrange(len(data))))
        assert place.repair().ok
        place.assert_whole()
        for name in place.tree().keys() - pristine.keys():
            (place.root / name).unlink()
        for key, data in pristine.items():
            (place.root / key).parent.mkdir(exist_ok=True)
            if (place.root / key).exists():
                (place.root / key).chmod(0o600)
            (place.root / key).write_bytes(data)


@pytest.mark.parametrize("what", ["flipped", "cut", "gone", "all gone", "lying"])
def test_the_index_is_written_anew(place, what):
    keys = place.files("index")
    for key in keys if what == "all gone" else keys[:1]:
        data = (place.root / key).read_bytes()
        if what in ("gone", "all gone"):
            (place.root / key).unlink()
        elif what == "lying":
            (place.root / key).rename(place.root / "index" / ("0" * 64))
        else:
            place.write(key, flipped(data, len(data) // 2) if what == "flipped" else data[:-7])
    shutil.rmtree(place.hub)
    report = place.repair(source=None)
    assert report.ok
    assert report.sources == {}
    if "gone" in what:
        assert report.uncovered > 0
    else:
        assert len(report.segments) == 1
    place.assert_whole()
    with place.open() as store:
        assert store.check(read_data=True).ok
        assert store.objects.uncovered([pack_id_of(key) for key in place.files("packs")]) == []


def test_a_damaged_segment_beside_a_damaged_pack(place):
    """The segment may be the only list of what the pack held, so a publish keeps it; repair has read the pack itself."""
    key = place.files("packs")[0]
    place.write(key, PACK_DAMAGE["flip in the trailer"]((place.root / key).read_bytes()))
    for name in place.files("index"):
        data = (place.root / name).read_bytes()
        place.write(name, flipped(data, len(data) // 2))
    assert place.repair().ok
    place.assert_whole()
    with place.open() as store:
        report = store.check()
        assert (report.ok, [problem.key for problem in report.apart]) == (True, [key])


def test_only_what_a_ref_needs_is_read_and_healed(place):
    with place.open() as store:
        first, second = (
            set(store.objects.packs_of(store.objects.find(store.objects_of(store.record(ref)))))
            for ref in MODELS
        )
    pack = min(second - first)
    key = next(key for key in place.files("packs") if key.endswith(pack.hex()))
    place.write(key, PACK_DAMAGE["flips all over"]((place.root / key).read_bytes()))
    report = place.repair("first", "tags/")
    assert [ref.name for ref in report.refs] == ["models/first", "tags/best"]
    assert report.ok
    assert report.packs == {}
    report = place.repair("second")
    assert [ref.health for ref in report.refs] == [Health.HEALED]
    assert set(report.packs) == {pack.hex()}
    place.assert_whole()
    with pytest.raises(RefNotFound):
        place.repair("nothing/")
    with pytest.raises(RefNotFound):
        place.repair("nothing")


def test_a_pack_that_others_need_loses_nothing_when_it_is_set_apart(place, monkeypatch):
    """Repairing one model sets a pack apart; what another one has in it is copied as well, and a collection loses nothing."""
    monkeypatch.undo()
    with place.open() as store:
        first = model_of(raw=noise(31, 90_000), extra=noise(32, 90_000))
        before = set(place.files("packs"))
        store.add(write_model(first, place.root.parent / "one"), ref="models/one")
        [pack] = set(place.files("packs")) - before
        # The one needs only `raw` of that pack now, the other only `extra`.
        for name, part in (("one", "raw"), ("other", "extra")):
            data = first.files[part][0]
            store.add(write_model(model_of(f=data), place.root.parent / part), ref=f"models/{name}")
        located = store.objects.locate(store.model("models/one").layout("f").chunk_ids()[:1])
        at = int(located.rows["offset"][0]) + frame.HEADER_SIZE + 3
        store.push(place.hub)
    place.write(pack, flipped((place.root / pack).read_bytes(), at))
    report = place.repair("one")
    assert report.ok
    assert report.sources[pack] > 0
    with place.open() as store:
        os.unlink(place.root / pack)
        assert read_model(store, "models/other") == model_of(f=noise(32, 90_000))
        assert store.lacks(store.record("models/other")) == 0


def test_where_nobody_knows_what_is_needed_everything_readable_is_kept(place):
    """The manifest of a model is lost; its chunks are in a pack whose footer is torn, and no segment names them."""
    with place.open() as store:
        record = store.record("models/second")
        chunks = store.model("models/second").layout("other").chunk_ids()
        located = store.objects.locate([record.manifest, chunks[0]])
        described, held = (
            store.objects.packs_of(store.objects.locate([item])) for item in located.ids([0, 1])
        )
        begin = int(located.rows["offset"][0])
        length = frame.HEADER_SIZE + int(located.rows["stored"][0])
    [described], [held] = described, held
    keys = {
        pack: next(key for key in place.files("packs") if key.endswith(pack.hex()))
        for pack in (described, held)
    }
    data = (place.root / keys[described]).read_bytes()
    place.write(keys[described], data[:begin] + bytes(length) + data[begin + length :])
    place.write(keys[held], (place.root / keys[held]).read_bytes()[:-9])
    shutil.rmtree(place.root / "index")
    report = place.repair(source=None)
    assert [ref.name for ref in report.refs if ref.health is Health.MISSING] == ["models/second"]
    (place.root / keys[held]).unlink()
    with place.open() as store:
        assert [digest(item) for item in store.objects.read_many(chunks)] == chunks


def test_configured_remotes_are_asked(place, tmp_path):
    with place.open() as store:
        Remotes(store.store_id).add("away", str(tmp_path / "nothing"))
        Remotes(store.store_id).add("hub", str(place.hub))
    for key in place.files("packs"):
        (place.root / key).unlink()
    report = place.repair(source=None)
    assert report.ok
    assert [name.split()[0] for name in report.unreachable] == ["away"]
    assert {name.split()[0] for name in report.sources} == {"hub"}
    place.assert_whole()


def test_a_source_that_is_damaged_itself_gives_what_is_whole(place):
    for key in place.files("packs"):
        (place.root / key).unlink()
    packs = sorted(path for path in (place.hub / "packs").rglob("*/*"))
    worst = max(packs, key=lambda path: path.stat().st_size)
    worst.chmod(0o600)
    data = worst.read_bytes()
    worst.write_bytes(flipped(data, len(data) // 3))
    report = place.repair()
    assert not report.ok
    lost = [ref for ref in report.refs if ref.health is Health.MISSING]
    assert sum(ref.missing for ref in lost) >= 1
    assert report.sources
    worst.write_bytes(data)
    assert place.repair().ok
    place.assert_whole()


# ---- records


def test_a_record_that_this_machine_remembers_is_written_anew(place):
    with place.open() as store:
        key = store.record("models/first").key
        assert list(store.refs())
    place.write(key, (place.root / key).read_bytes()[:50])
    planned = place.repair(source=None, apply=False)
    [lost] = planned.records
    assert (lost.name, lost.source) == ("models/first", "this machine's catalogue")
    assert place.repair(source=None).ok
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    place.assert_whole()
    with place.open() as store:
        assert store.record("models/first").metadata == {"number": 0}


def test_a_record_that_another_store_copied_is_written_anew(place):
    (key,) = (key for key in place.files("refs/models") if "/first@" in key)
    place.write(key, flipped((place.root / key).read_bytes(), 60))
    report = place.repair(apply=False)
    assert report.records[0].source == f"file://{place.hub}"
    assert report.ok
    assert place.repair().ok
    place.assert_whole()


def test_no_older_value_is_used_instead(place, tmp_path):
    """Nobody knows what the newest record said: the candidates are named, and nothing is written."""
    with place.open() as store:
        old = store.record("models/first").target.hex()
        new = store.add(write_model(LARGE, tmp_path / "new"), ref="models/first")
        key = store.record("models/first").key
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    place.write(key, (place.root / key).read_bytes()[:50])
    before = place.tree()
    report = place.repair()
    assert not report.ok
    assert place.tree() == before
    [lost] = report.records
    assert lost.source is None
    assert {item.split()[0] for item in lost.candidates} == {old}
    assert [ref.name for ref in report.refs if ref.health is Health.UNREADABLE] == ["models/first"]
    assert new.model_id != old


def test_a_ref_that_its_model_names_has_one_value(place, tmp_path):
    with place.open() as store:
        added = store.add({"a": str(write_model(LARGE, tmp_path / "new"))})
        store.push(place.hub)
        store._refs.put(store._refs.draft(added.ref, target=bytes.fromhex(added.model_id),
                                          manifest=store.record(added.ref).manifest, metadata={"n": 1}))  # fmt: skip
        key = store.record(added.ref).key
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    place.write(key, b"")
    assert added.ref == f"models/{added.model_id}"
    assert place.repair().ok
    with place.open() as store:
        assert store.record(added.ref).target.hex() == added.model_id


def test_a_newest_record_of_a_newer_version_is_no_damage_to_mend(place):
    (key,) = (key for key in place.files("refs/models") if "/first@" in key)
    assert names.parse_key(key).name == "models/first"
    place.write(key, b"casstore of the future")
    report = place.repair(apply=False)
    assert report.records[0].source == f"file://{place.hub}"


# ---- with what happens to a store besides


@pytest.mark.parametrize("how", ["flips all over", "cut in half", "emptied", "flip in the footer"])
def test_afterwards_check_is_clean_and_a_collection_removes_the_damaged_packs(place, how):
    damaged = place.files("packs")
    for key in damaged:
        place.write(key, PACK_DAMAGE[how]((place.root / key).read_bytes()))
    with place.open() as store:
        before = store.check(read_data=True)
        assert {problem.key for problem in before.problems} >= set(damaged)
        assert before.apart == ()
    # Set apart, but not healed: they stay problems.
    if not place.repair(source=None).ok:
        with place.open() as store:
            assert {problem.key for problem in store.check(read_data=True).problems} >= set(damaged)
    assert place.repair().ok
    with place.open() as store:
        report = store.check(read_data=True)
        assert report.problems == ()
        assert [problem.key for problem in report.apart] == damaged
        assert store.check().ok
        collect_alone(store.backend)
    assert not set(damaged) & set(place.files("packs"))
    place.assert_whole()
    with place.open() as store:
        assert store.check(read_data=True).apart == ()


def test_a_flip_is_still_there_after_a_collection_and_is_healed(place):
    """A repack copies verified frames only, so damage stays visible until repair heals it."""
    with place.open() as store:
        store.rm("models/second")
        store.rm("runs/small")
    key = max(place.files("packs"), key=lambda key: (place.root / key).stat().st_size)
    data = (place.root / key).read_bytes()
    with place.open() as store:
        chunk = store.model("models/first").layout("raw").chunk_ids()[0]
        located = store.objects.locate([chunk])
        [pack] = store.objects.packs_of(located)
        at = int(located.rows["offset"][0]) + frame.HEADER_SIZE + 9
    key = next(key for key in place.files("packs") if key.endswith(pack.hex()))
    data = (place.root / key).read_bytes()
    place.write(key, flipped(data, at))
    with place.open() as store:
        collect_alone(store.backend)
    with place.open() as store:
        assert not store.check(read_data=True).ok
    report = place.repair()
    assert report.ok
    place.assert_whole({"models/first": MODELS["models/first"]})
    with place.open() as store:
        collect_alone(store.backend)
    place.assert_whole({"models/first": MODELS["models/first"]})


def test_a_restored_pack_needs_no_repair(place):
    key = place.files("packs")[0]
    data = (place.root / key).read_bytes()
    (place.root / key).unlink()
    assert not place.repair(source=None, apply=False).ok
    (place.root / key).write_bytes(data)
    report = place.repair(source=None, apply=False)
    assert report.ok
    assert report.sources == {}


def test_a_damaged_note_sets_its_pack_apart_all_the_same(place):
    key = place.files("packs")[0]
    place.write(key, PACK_DAMAGE["flips all over"]((place.root / key).read_bytes()))
    assert place.repair(source=None).packs
    [note] = place.files("quarantine")
    place.write(note, b"")
    assert place.repair().ok
    place.assert_whole()
