"""Files of a store that are gone, foreign, in the wrong place or of another version."""

from __future__ import annotations

import dataclasses
import re
import shutil

import pytest
from fakes.damage import (
    SMALL,
    SMALL_FILES,
    SMALL_TENSORS,
    files_of,
    flipped,
    foreign_in,
    problems_of,
    read_all,
    read_tensors,
    record_of,
    replace,
)
from fakes.stores import (
    assert_clean,
    read_model,
    write_model,
)

from casstore import ConfigError, Store
from casstore.errors import FormatError, MissingObject
from casstore.format import index, names
from casstore.format import record as record_format
from casstore.ops.check import check


def test_without_segments_the_packs_are_read(copied):
    shutil.rmtree(copied / "index")
    with Store(copied) as store:
        assert read_all(store, SMALL) == SMALL_FILES
        assert read_tensors(store, SMALL_TENSORS) == len(SMALL_TENSORS)
        assert_clean(store)
    with Store(copied, read_only=True) as store:
        assert store.stats().models == 2


def test_without_one_segment_the_rest_is_found_too(copied):
    for key in files_of(copied, "index"):
        data = (copied / key).read_bytes()
        (copied / key).unlink()
        with Store(copied) as store:
            assert read_all(store, SMALL) == SMALL_FILES
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
            files = SMALL_FILES
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
        assert read_all(store, SMALL) == SMALL_FILES
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
    assert right == SMALL_FILES


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
        assert read_all(store, SMALL) < SMALL_FILES


def test_a_segment_under_another_name(copied):
    first, second = files_of(copied, "index")[:2]
    replace(copied / first, (copied / second).read_bytes())
    assert first in problems_of(copied)
    with Store(copied) as store:
        read_all(store, SMALL)


# ---- packs and segments of newer versions


def test_a_segment_from_the_future_is_left_alone(copied, tmp_path, caplog):
    key = files_of(copied, "index")[0]
    data = bytearray((copied / key).read_bytes())
    data[8:10] = (2).to_bytes(2, "little")
    replace(copied / key, data)
    assert data[:8] == index.MAGIC
    with Store(copied) as store:
        assert read_all(store, SMALL) == SMALL_FILES
        store.add(tmp_path / "copy" / "format", ref="models/more")
    assert (copied / key).read_bytes() == data, "somebody else can read it"
    assert re.search(rf"{key}.*upgrade", caplog.text)
