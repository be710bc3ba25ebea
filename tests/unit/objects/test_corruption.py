"""Damage anywhere in a store: `check` reports every flipped byte, and no reader gets a wrong one.

The small store is flipped at every byte, the larger one at some of them (fakes/counts.py: FLIPS).
"""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from fakes.counts import FLIPS
from fakes.model_files import gguf_bytes, safetensors_bytes
from fakes.predicting import predicting, relative
from fakes.stores import (
    assert_clean,
    model_of,
    noise,
    read_folder,
    read_model,
    small_packs,
    write_model,
)

from casstore import ConfigError, IntegrityError, Store
from casstore.backend import LocalBackend, MemoryBackend
from casstore.errors import DigestMismatch, FormatError, MissingObject, UnsupportedVersion
from casstore.format import canonical, envelope, index, marks, names, pack
from casstore.format import record as record_format
from casstore.machine.state import MachineState
from casstore.objects.footers import read_footer
from casstore.objects.keys import pack_id_of
from casstore.ops.check import check
from casstore.store.model_store import ModelStore

FOLDERS = ("packs", "index", "refs", "gc")


def weights(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(dtype)


TENSORS = {"w": weights(1, (6, 20)), "b": weights(2, (9,), np.float16)}
SMALL = {
    "models/first": model_of(
        planes__safetensors=safetensors_bytes(TENSORS),
        text__txt=b"the same words again, " * 40,
        raw=noise(1, 60),
    ),
    "models/second": model_of(raw=noise(1, 60), other=noise(2, 40)),
}


def large_models():
    tensors = {f"layer.{n}": weights(n, (300, 500)) for n in range(3)}
    tensors["half"] = weights(9, (400, 600), np.float16)
    quantised = ("Q8_0", (512, 256), np.random.default_rng(0).bytes(512 * 256 // 32 * 34))
    return {
        "models/base": model_of(model__safetensors=safetensors_bytes(tensors), config=b'{"a": 1}\n' * 2000),
        "models/tuned": model_of(
            model__safetensors=safetensors_bytes({**tensors, "half": weights(10, (400, 600), np.float16)}),
            model__gguf=gguf_bytes({"q": quantised}),
        ),
        "models/noise": model_of(noise=noise(5, 700_000)),
        "models/near": model_of(near=relative(0)),
        "models/nearer": model_of(near=relative(1)),
    }


def build(root, models, folder, *, more=True):
    with Store(root, create=True, durability="none") as store:
        for number, (ref, model) in enumerate(models.items()):
            path = write_model(model, folder / f"m{number}")
            with predicting():
                store.add(path, ref=ref, metadata={"number": number})
        if more:
            store.tag("kept", next(iter(models)))
            store.rm(store.add(folder / "m0", ref="models/deleted").ref)
        doomed = marks.Tombstone((bytes(32),), 1)
        store.backend.put(f"{marks.TOMBSTONE_PREFIX}{uuid.UUID(int=1)}", [marks.encode_tombstone(doomed)])
        assert_clean(store)
        return {item.encoding for item in store.stats().frames}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    top = tmp_path_factory.mktemp("small")
    assert build(top / "store", SMALL, top, more=False) == {"raw", "zstd", "planes"}
    return top / "store"


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """A store of one model, in which every kind of file and every encoding is."""
    top = tmp_path_factory.mktemp("smallest")
    models = {"models/first": SMALL["models/first"]}
    assert build(top / "store", models, top, more=False) == {"raw", "zstd", "planes"}
    return top / "store"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    top = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        small_packs(patch, 900_000)
        assert build(top / "store", large_models(), top) == {"raw", "zstd", "planes", "delta"}
    assert len(files_of(top / "store", "packs")) >= 4
    return top / "store"


def files_of(root, *folders):
    """The keys of a store's files; the format file is one unless folders are given."""
    found = [
        str(path.relative_to(root))
        for folder in folders or FOLDERS
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and path.name not in (".lock", "lockless")
    ]
    return found if folders else ["format", *found]


def in_memory(root):
    """A store's files as a dict, and a store on it: changing the dict is damage that costs nothing."""
    backend = MemoryBackend(f"copy-{random.getrandbits(64):x}")
    for key in files_of(root):
        backend.put(key, [(root / key).read_bytes()])
    return backend


def opened(backend):
    """A store that remembers nothing."""
    identity = marks.decode_format(backend.read(marks.FORMAT_KEY))
    return ModelStore(backend, store_id=identity.store_id, machine=MachineState(None))


@contextmanager
def damaged(backend, key, data):
    before = backend._objects[key]
    backend._objects[key] = (bytes(data), before[1])
    try:
        yield
    finally:
        backend._objects[key] = before


def flipped(data, at, mask):
    return b"%b%c%b" % (data[:at], data[at] ^ mask, data[at + 1 :])


def masks(count, seed):
    chosen = random.Random(seed)
    return [chosen.choice((1, 2, 4, 8, 16, 32, 64, 128, 255, chosen.randrange(1, 256))) for _ in range(count)]


def read_all(store, models):
    """Read every file and tensor; return how many came back, after checking that they are right."""
    right = 0
    for ref, model in models.items():
        for path, (expected, _) in model.files.items():
            with suppress(IntegrityError), store.open_file(ref, path) as file:
                assert file.read() == expected, (ref, path)
                right += 1
    return right


def read_tensors(store, expected):
    right = 0
    for (ref, path, name), array in expected.items():
        with suppress(IntegrityError):
            assert store.read_tensor(ref, name, file=path).tobytes() == array.tobytes(), (ref, path, name)
            right += 1
    return right


SMALL_TENSORS = {("models/first", "planes/safetensors", name): array for name, array in TENSORS.items()}


# ---- one byte flipped


@pytest.mark.parametrize("part", ["format", "packs", "index", "refs", "gc"])
def test_check_reports_every_flipped_byte_of_a_small_store(smallest, part):
    """Every byte of every file, one at a time."""
    backend = in_memory(smallest)
    store = opened(backend)
    tried, missed = 0, []
    for key in files_of(smallest, part) if part != "format" else ["format"]:
        data = backend.read(key)
        for at, mask in enumerate(masks(len(data), seed=key[-8:])):
            with damaged(backend, key, flipped(data, at, mask)):
                report = check(store, read_data=True)
            tried += 1
            if key not in {problem.key for problem in report.problems}:
                missed.append((key, at, mask))
    assert tried >= 100
    assert not missed
    assert_clean(opened(backend))


def test_readers_of_a_small_store_get_right_bytes_or_an_error(small):
    """A fresh store for every flip, so that nothing is remembered: every sixteenth byte of every file."""
    backend = in_memory(small)
    files = sum(len(model.files) for model in SMALL.values())
    assert read_all(opened(backend), SMALL) == files
    assert read_tensors(opened(backend), SMALL_TENSORS) == len(SMALL_TENSORS)
    harmless = 0
    harmful = 0
    for key in files_of(small):
        data = backend.read(key)
        chosen = masks(len(data), seed=key)
        for at in range(len(key) % 16, len(data), 16):
            with damaged(backend, key, flipped(data, at, chosen[at])):
                try:
                    store = opened(backend)
                except IntegrityError:
                    harmful += 1
                    continue
                whole = read_all(store, SMALL) == files
                whole &= read_tensors(store, SMALL_TENSORS) == len(SMALL_TENSORS)
            harmless += whole
            harmful += not whole
    assert harmful > harmless / 4
    assert harmful + harmless > 250


def flips_of(root, count):
    """Positions to flip: the ends of every file and random ones, more in larger files."""
    chosen = random.Random(20)
    sizes = {key: (root / key).stat().st_size for key in files_of(root)}
    edges = [
        (key, at) for key, size in sizes.items() for at in (0, 31, 32, 40, size - 1, size - 70) if at < size
    ]
    flips = chosen.sample(edges, min(len(edges), count // 2))
    while len(flips) < count:
        key = chosen.choices(list(sizes), weights=[size + 20_000 for size in sizes.values()])[0]
        flips.append((key, chosen.randrange(sizes[key])))
    return list(zip(flips, masks(count, seed=21), strict=True))


def test_flips_in_a_larger_store(large, tmp_path, monkeypatch):
    """On the disk, through everything that reads: check, checkout, open_file and read_tensor."""
    models = large_models()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    missed, harmful = [], 0
    for (key, at), mask in flips_of(large, FLIPS):
        path = large / key
        before = path.read_bytes()
        replace(path, flipped(before, at, mask))
        try:
            if not finds_damage(large, key):
                missed.append((key, at, mask))
            harmful += not reads_right_or_fails(large, models, tmp_path / "out")
        finally:
            replace(path, before)
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert not missed
    assert harmful > FLIPS // 10
    with Store(large) as store:
        assert_clean(store)


def test_a_checkout_tells_which_pack_is_damaged_or_reads_another(tmp_path):
    """A bit of noise decodes wherever it is flipped: nothing but a hash can tell."""
    model = model_of(first=noise(6, 3_000_000), second=noise(5, 700_000))
    folder = write_model(model, tmp_path / "model")
    for name in ("store", "twin"):
        with Store(tmp_path / name, create=True, durability="none") as store:
            store.add(folder, ref="models/noise")
    root = tmp_path / "store"
    ours, theirs = (
        max(files_of(tmp_path / name, "packs"), key=lambda key: (tmp_path / name / key).stat().st_size)
        for name in ("store", "twin")
    )
    intact = (root / ours).read_bytes()
    replace(root / ours, flipped(intact, len(intact) // 2, 16))
    with Store(root) as store, pytest.raises(DigestMismatch, match=ours):
        store.get("models/noise", tmp_path / "out")
    assert not (tmp_path / "out").exists()

    for key in files_of(tmp_path / "twin", "packs", "index"):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "twin" / key, root / key)
    for key in (ours, theirs):
        replace(root / ours, intact)
        data = (root / key).read_bytes()
        replace(root / key, flipped(data, len(data) // 2, 16))
        with Store(root) as store:
            store.get("models/noise", tmp_path / "out")
        assert read_folder(tmp_path / "out") == model
        shutil.rmtree(tmp_path / "out")


def replace(path, data):
    path.unlink()
    path.write_bytes(data)


def finds_damage(root, key):
    if key == "format":
        with pytest.raises(IntegrityError, match="format"):
            Store(root)
        return True
    with Store(root) as store:
        return key in {problem.key for problem in check(store, read_data=True).problems}


def reads_right_or_fails(root, models, out):
    """Check out every model; say whether all came. A wrong byte fails the test."""
    try:
        store = Store(root)
    except IntegrityError:
        return False
    with store:
        came = [checks_out(store, ref, model, out) for ref, model in models.items()]
    return all(came)


def checks_out(store, ref, model, out):
    try:
        store.get(ref, out)
    except IntegrityError as caught:
        error = caught
    else:
        assert read_folder(out) == model
        shutil.rmtree(out)
        return True
    assert re.search(r"packs/|index/|refs/|object", str(error))
    assert not out.exists()
    return False


# ---- files cut short


def cuts_of(size):
    return sorted({0, 1, size // 3, size // 2, size - 65, size - 64, size - 32, size - 1} & set(range(size)))


def test_every_kind_of_file_cut_short(small):
    backend = in_memory(small)
    files = sum(len(model.files) for model in SMALL.values())
    for key in files_of(small):
        data = backend.read(key)
        for size in sorted({*cuts_of(len(data)), *range(0, len(data), 37)}):
            with damaged(backend, key, data[:size]):
                try:
                    store = opened(backend)
                except IntegrityError:
                    continue
                assert read_all(store, SMALL) <= files
                problems = check(store, read_data=True).problems
                assert key in {problem.key for problem in problems}, (key, size)


def test_files_with_bytes_added(small):
    backend = in_memory(small)
    for key in files_of(small):
        with damaged(backend, key, backend.read(key) + b"\0"):
            if key == "format":
                with pytest.raises(IntegrityError):
                    opened(backend)
                continue
            store = opened(backend)
            read_all(store, SMALL)
            assert key in {problem.key for problem in check(store, read_data=True).problems}


def test_a_segment_cut_short_on_the_disk_stops_nobody(copied, caplog):
    for key in files_of(copied, "index"):
        path = copied / key
        path.chmod(0o600)
        before = path.read_bytes()
        for size in (0, 10, 63, 64, len(before) - 1):
            path.write_bytes(before[:size])
            caplog.clear()
            with Store(copied) as store:
                assert read_all(store, SMALL) == sum(len(model.files) for model in SMALL.values())
                assert key in {problem.key for problem in check(store).problems}
            [warning] = caplog.records
            assert key in warning.getMessage()
        path.write_bytes(before)


# ---- files that are gone, foreign or in the wrong place


@pytest.fixture
def copied(small, tmp_path, monkeypatch):
    """A copy of the small store on the disk, and a machine that knows nothing."""
    shutil.copytree(small, tmp_path / "copy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh-cache"))
    return tmp_path / "copy"


def problems_of(root):
    with Store(root) as store:
        return {problem.key: problem.message for problem in check(store, read_data=True).problems}


def foreign_in(root):
    with Store(root) as store:
        return {found.key: found.message for found in check(store).foreign}


def test_without_segments_the_packs_are_read(copied):
    shutil.rmtree(copied / "index")
    with Store(copied) as store:
        assert read_all(store, SMALL) == sum(len(model.files) for model in SMALL.values())
        assert read_tensors(store, SMALL_TENSORS) == len(SMALL_TENSORS)
        assert_clean(store)
    with Store(copied, read_only=True) as store:
        assert store.stats().models == 2


def test_without_one_segment_the_rest_is_found_too(copied):
    for key in files_of(copied, "index"):
        data = (copied / key).read_bytes()
        (copied / key).unlink()
        with Store(copied) as store:
            assert read_all(store, SMALL) == sum(len(model.files) for model in SMALL.values())
            assert_clean(store)
        (copied / key).write_bytes(data)


def test_without_segments_a_damaged_pack_is_no_one_elses_trouble(copied):
    """Only who needs something from it is told, and told which pack it is."""
    shutil.rmtree(copied / "index")
    for key in files_of(copied, "packs"):
        path = copied / key
        data = path.read_bytes()
        replace(path, data[:-5])
        with Store(copied) as store:
            right = {ref: read_all(store, {ref: model}) == len(model.files) for ref, model in SMALL.items()}
            assert sum(right.values()) <= 1
            for ref in [ref for ref, whole in right.items() if not whole]:
                with pytest.raises(FormatError, match=key):
                    read_model(store, ref)
            with pytest.raises(FormatError, match=key):
                store.stats()
            seen = {problem.key for problem in check(store, read_data=True).problems}
            assert key in seen
        replace(path, data)
        whole_once = any(right.values())
        if whole_once:
            return
    raise AssertionError("the models need all packs: nothing was shown")


def test_a_pack_that_is_gone_is_missed_and_adding_again_mends_it(copied, tmp_path):
    for number, key in enumerate(files_of(copied, "packs")):
        data = (copied / key).read_bytes()
        (copied / key).unlink()
        with Store(copied) as store:
            files = sum(len(model.files) for model in SMALL.values())
            assert read_all(store, SMALL) < files
            problems = check(store, read_data=True).problems
            assert problems
            assert any("Add the model again" in problem.message for problem in problems)
            broken = [ref for ref, model in SMALL.items() if read_all(store, {ref: model}) < len(model.files)]
            with pytest.raises(MissingObject, match="Add the model again"):
                store.get(broken[0], tmp_path / "out")
            for at, ref in enumerate(broken):
                store.add(write_model(SMALL[ref], tmp_path / f"again-{number}-{at}"), ref=ref)
            assert read_all(store, SMALL) == files
            assert_clean(store)
        (copied / key).write_bytes(data)


def test_a_damaged_pack_can_be_moved_away_and_its_models_added_again(copied, tmp_path):
    """What the report of `check` advises works."""
    key = max(files_of(copied, "packs"), key=lambda key: (copied / key).stat().st_size)
    data = (copied / key).read_bytes()
    replace(copied / key, flipped(data, len(data) // 3, 4))
    message = problems_of(copied)[key]
    assert "Restore it from another copy" in message
    (copied / key).rename(tmp_path / "moved-away")
    with Store(copied) as store:
        for number, (ref, model) in enumerate(SMALL.items()):
            store.add(write_model(model, tmp_path / f"again-{number}"), ref=ref)
        assert read_all(store, SMALL) == sum(len(model.files) for model in SMALL.values())
        assert_clean(store)


def test_a_store_without_its_format_file(copied):
    with Store(copied) as store:
        (copied / "format").unlink()
        assert {"format"} <= {problem.key for problem in check(store).problems}
    with pytest.raises(ConfigError, match="not a casstore store"):
        Store(copied)
    with pytest.raises(ConfigError, match="holds what looks like a store without its `format` file"):
        Store(copied, create=True)
    assert not (copied / "format").exists()


GARBAGE = [
    "packs/ab/notes.txt",
    "packs/readme",
    "packs/ab/" + "a" * 64,
    "packs/ab/" + "ab" * 31,
    "index/notes.txt",
    "index/" + "0" * 64,
    "refs/models/notes.txt",
    "refs/readme",
    "refs/models/aa/x@1",
    "refs/models/aa/x@0000000000000001." + "a" * 32,
    "gc/tombstones/what",
    "stray",
    "folder/stray",
]


@pytest.mark.parametrize("key", GARBAGE)
@pytest.mark.parametrize("data", [b"", b"not what belongs here" * 20])
def test_foreign_files_are_reported_and_harm_no_reader(copied, key, data):
    (copied / key).parent.mkdir(parents=True, exist_ok=True)
    (copied / key).write_bytes(data)
    told = {**problems_of(copied), **foreign_in(copied)}
    assert key in told
    assert all(key in message for message in told.values())
    with Store(copied) as store:
        right = read_all(store, SMALL)
    assert right == sum(len(model.files) for model in SMALL.values())


def test_names_that_no_store_writes_are_ignored(copied):
    for name in ("Thumbs.db", ".DS_Store", "packs/.hidden", "index/LOST", "refs/models/Desktop.ini"):
        (copied / name).write_bytes(b"x")
    assert problems_of(copied) == {}
    assert set(foreign_in(copied)) == {"Thumbs.db", "index/LOST", "refs/models/Desktop.ini"}


def test_many_foreign_files_are_counted_and_the_first_ones_shown(copied):
    for number in range(250):
        (copied / f"stray-{number:03}").write_bytes(b"x")
    with Store(copied) as store:
        report = check(store)
    assert report.ok
    assert report.foreign_files == 250
    assert [found.key for found in report.foreign] == [f"stray-{number:03}" for number in range(100)]


def test_a_copy_of_a_record_is_foreign_and_a_moved_one_is_damage(copied):
    key = record_of(copied, "models/first")
    copies = [f"{key}.orig", "refs/models/00/copy@" + key.partition("@")[2]]
    for copy in copies:
        (copied / copy).parent.mkdir(exist_ok=True)
        shutil.copy(copied / key, copied / copy)
    assert problems_of(copied) == {}
    assert set(foreign_in(copied)) == set(copies)
    (copied / key).unlink()
    problems = problems_of(copied)
    assert set(problems) == set(copies)
    assert all(f"move it to {key}" in message for message in problems.values())


@pytest.mark.parametrize("damaged", [0, 1])
def test_every_head_of_a_forked_ref_is_checked(copied, damaged):
    """Whichever of them counts: all of them are roots (design §9)."""
    with Store(copied) as store:
        record = store.record("models/first")
        number = record.seq + 1
        for at in range(2):
            fork = dataclasses.replace(record, seq=number, write_id=bytes([at + 1]) * 16)
            if at == damaged:
                fork = dataclasses.replace(fork, manifest=b"\7" * 32)
            store.backend.put(fork.key, [record_format.encode(fork)])
        report = check(store)
    assert [problem.key for problem in report.problems] == [names.directory("models/first").rstrip("@")]


def test_two_packs_that_swapped_names(copied):
    first, second = files_of(copied, "packs")[:2]
    (copied / first).rename(copied / "aside")
    (copied / second).rename(copied / first)
    (copied / "aside").rename(copied / second)
    for part in (False, True):
        with Store(copied) as store:
            report = check(store, read_data=part)
            assert not report.ok
            assert not part or {first, second} <= {problem.key for problem in report.problems}
            read_all(store, SMALL)
    shutil.rmtree(copied / "index")
    with Store(copied) as store:
        read_all(store, SMALL)
        assert {first, second} <= {problem.key for problem in check(store, read_data=True).problems}


def test_a_pack_that_took_anothers_place(copied):
    first, second = files_of(copied, "packs")[:2]
    replace(copied / first, (copied / second).read_bytes())
    assert first in problems_of(copied)
    with Store(copied) as store:
        assert read_all(store, SMALL) < sum(len(model.files) for model in SMALL.values())


def test_a_segment_under_another_name(copied):
    first, second = files_of(copied, "index")[:2]
    replace(copied / first, (copied / second).read_bytes())
    assert first in problems_of(copied)
    with Store(copied) as store:
        read_all(store, SMALL)


# ---- records


def record_of(root, ref):
    [key] = [key for key in files_of(root, "refs") if key.startswith(names.directory(ref))]
    return key


def test_a_record_under_the_key_of_another_ref(copied):
    source = record_of(copied, "models/second")
    seq, write = source.split("@")[1].split(".")
    for ref, number in (
        ("models/first", int(seq, 16) + 1),
        ("models/second", int(seq, 16) + 1),
        ("models/new", 1),
    ):
        key = f"{names.directory(ref)}{number:016x}.{write}"
        (copied / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(copied / source, copied / key)
        assert "record of another ref" in problems_of(copied)[key]
        with Store(copied) as store:
            with pytest.raises(FormatError, match="record of another ref"):
                store.model(ref)
            told = []
            store.on_damage = told.append
            assert ref not in store.refs()
            assert ref not in {row.name for row in store.find()}
            store.stats()
            assert {(damage.name, damage.key) for damage in told} == {(ref, key)}
            with pytest.raises(FormatError, match="record of another ref"):
                store.refs(strict=True)
        (copied / key).unlink()
    assert problems_of(copied) == {}


def body_of(path, magic=b"cass-ref"):
    return canonical.decode(envelope.unseal(magic, path.read_bytes(), key="record"), what="record")


@pytest.mark.parametrize("change", [{"version": 2}, {"requires": ["signature"]}])
def test_a_record_from_the_future_is_not_damage(copied, change):
    key = record_of(copied, "models/first")
    body = body_of(copied / key)
    replace(copied / key, envelope.seal(b"cass-ref", canonical.encode({**body, **change})))
    with Store(copied) as store:
        with pytest.raises(UnsupportedVersion, match="upgrade casstore") as caught:
            store.model("models/first")
        assert key in str(caught.value)
        assert set(store.refs()) == {"models/second"}
        with pytest.raises(UnsupportedVersion, match="upgrade casstore"):
            store.refs(strict=True)
        assert read_all(store, {"models/second": SMALL["models/second"]}) == 2
    assert "upgrade casstore" in problems_of(copied)[key]


def test_a_record_with_keys_from_the_future_is_read_and_kept(copied):
    key = record_of(copied, "models/first")
    body = body_of(copied / key)
    replace(copied / key, envelope.seal(b"cass-ref", canonical.encode({**body, "mood": "good"})))
    with Store(copied) as store:
        assert store.refs()["models/first"].extra == {"mood": "good"}
        assert read_all(store, SMALL) == sum(len(model.files) for model in SMALL.values())
    assert problems_of(copied) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"type": "model"},
        {"version": 0},
        {"version": -1},
        {"seq": "1"},
        {"seq": 7},
        {"write": b"short"},
        {"write": bytes(16)},
        {"name": "models/second"},
        {"target": b"short"},
        {"target": 5},
        {"manifest": "text"},
        {"metadata": []},
        {"packs": b"odd"},
        {"exclusive": 1},
        {"inline": 4},
        {"requires": "signature"},
    ],
)
def test_a_record_that_says_impossible_things(copied, change):
    key = record_of(copied, "models/first")
    body = body_of(copied / key)
    replace(copied / key, envelope.seal(b"cass-ref", canonical.encode({**body, **change})))
    with Store(copied) as store:
        with pytest.raises(FormatError) as caught:
            store.model("models/first")
        assert not isinstance(caught.value, UnsupportedVersion)
        assert key in str(caught.value)
        assert read_all(store, {"models/second": SMALL["models/second"]}) == 2
    assert key in problems_of(copied)


def test_a_damaged_record_is_found_beside_a_machine_that_remembers_it(small, tmp_path):
    """`check` looks at the store, never at this machine's copies."""
    shutil.copytree(small, tmp_path / "copy")
    with Store(tmp_path / "copy") as store:
        assert read_all(store, SMALL) == sum(len(model.files) for model in SMALL.values())
    key = record_of(tmp_path / "copy", "models/first")
    data = (tmp_path / "copy" / key).read_bytes()
    replace(tmp_path / "copy" / key, flipped(data, 60, 1))
    with Store(tmp_path / "copy") as store:
        assert read_all(store, {"models/first": SMALL["models/first"]}) == 3
        assert {problem.key for problem in check(store).problems} == {key}


# ---- packs and segments of newer versions


def test_a_segment_from_the_future_is_left_alone(copied, tmp_path, caplog):
    key = files_of(copied, "index")[0]
    data = bytearray((copied / key).read_bytes())
    data[8:10] = (2).to_bytes(2, "little")
    replace(copied / key, data)
    assert data[:8] == index.MAGIC
    with Store(copied) as store:
        assert read_all(store, SMALL) == sum(len(model.files) for model in SMALL.values())
        store.add(tmp_path / "copy" / "format", ref="models/more")
    assert (copied / key).read_bytes() == data, "somebody else can read it"
    assert re.search(rf"{key}.*upgrade", caplog.text)


# ---- what the files themselves promise


def test_every_frame_of_the_larger_store_lies_where_scan_and_footer_say(large):
    backend = LocalBackend(large)
    for key in files_of(large, "packs"):
        footer = read_footer(backend, pack_id_of(key))
        scanned = [offset for offset, _ in pack.scan_frames(Path(large / key).read_bytes(), key=key)]
        assert scanned == footer.rows["offset"].tolist()
