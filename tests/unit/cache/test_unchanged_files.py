"""Files of cached models are what was cached, whatever their times say; and read no more often than that needs."""

import json
import mmap
import os
import shutil

import pytest

from casstore import OliveCache
from casstore.cache.placements.placement import PlacedFile, Placement
from casstore.digest import digest
from casstore.machine.stat_identity import StatIdentity
from casstore.machine.unchanged import UnchangedFiles

OLD, NEW = b"o" * 10_000, b"n" * 10_000


def through_a_map(path):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:] = NEW  # moves no time stamp: ever on tmpfs, until it is written back elsewhere


def restored_from_a_backup(path):
    status = os.stat(path)
    path.write_bytes(NEW)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def put_in_its_place(path):
    status = os.stat(path)
    other = path.with_name("other")
    other.write_bytes(NEW)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


def as_a_mount_without_ctime_would_say(path):
    """Let the note be of the new file's identity, as where inodes are numbered anew and ctime is mtime."""
    put_in_its_place(path)
    note = path.parents[1] / "placement.json"
    placement = Placement.decode(note.read_bytes())
    files = tuple(
        PlacedFile(file.location, StatIdentity.of(os.stat(file.location)), file.file_id)
        for file in placement.files
    )
    note.write_bytes(Placement(placement.content, placement.model, files).encode())


CHANGES = [through_a_map, restored_from_a_backup, put_in_its_place, as_a_mount_without_ctime_would_say]


@pytest.fixture
def cache(tmp_path):
    with OliveCache(tmp_path / "cache") as opened:
        yield opened


def cache_model(cache, name="m"):
    folder = cache.get_model_cache_path(name)
    (folder / "model.bin").write_bytes(OLD)
    cache.cache_model(name, {"type": "folder", "config": {"model_path": str(folder)}})
    return folder / "model.bin"


def load(cache, name="m"):
    with open(os.path.join(cache.load_model(name)["config"]["model_path"], "model.bin"), "rb") as file:
        return file.read()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("checked_out", [False, True])
def test_a_changed_file_is_never_handed_out_as_the_cached_one(cache, change, checked_out):
    path = cache_model(cache)
    if checked_out:
        path.unlink()
        assert load(cache) == OLD
        [path] = cache.dirs.checkouts.glob("*/files/model/model.bin")
        path.chmod(0o644)
        path.parent.chmod(0o755)
        if change is as_a_mount_without_ctime_would_say:
            shutil.move(path.parents[2] / "placement.json", path.parents[1] / "placement.json")
    change(path)
    if checked_out and change is as_a_mount_without_ctime_would_say:
        shutil.move(path.parents[1] / "placement.json", path.parents[2] / "placement.json")
    assert path.read_bytes() == NEW
    assert load(cache) == OLD
    assert load(cache) == OLD


def test_the_input_of_a_pass_counts_by_its_bytes_although_an_earlier_pass_made_it(cache, tmp_path):
    def copy(model, output):
        data = (model / "o.bin" if model.is_dir() else model).read_bytes()
        (output / "o.bin").write_bytes(data)

    (tmp_path / "in.bin").write_bytes(OLD)
    first = cache.run_pass("copy", copy, tmp_path / "in.bin", version="1")
    assert (cache.run_pass("copy", copy, first, version="1") / "o.bin").read_bytes() == OLD
    through_a_map(first / "o.bin")
    assert (cache.run_pass("copy", copy, first, version="1") / "o.bin").read_bytes() == NEW
    assert (cache.run_pass("copy", copy, tmp_path / "in.bin", version="1") / "o.bin").read_bytes() == OLD


def test_what_was_changed_through_a_map_is_not_deleted_with_the_rest(tmp_path):
    config = {"cache_dir": str(tmp_path / "cache"), "max_checkout_bytes": 0}
    with OliveCache(config) as cache:
        path = cache_model(cache)
        through_a_map(path)
    assert path.read_bytes() == NEW


def test_a_file_with_other_times_and_the_same_bytes_goes_on_being_used(cache):
    path = cache_model(cache)
    os.utime(path)
    assert cache.load_model("m")["config"]["model_path"] == str(path.parent)


def test_a_file_is_read_once_and_then_trusted_where_that_is_proved(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(OLD)
    file = PlacedFile(str(path), StatIdentity.of(os.stat(path)), digest(OLD))
    trusting = UnchangedFiles(min_age=-60_000_000_000, mark=lambda _: b"ext4,1")
    verified = file.verified(trusting)
    assert verified.proof
    assert verified.verified(trusting) is verified
    assert Placement.decode(Placement("c", {}, (verified,)).encode()).files == (verified,)
    for untrusting in (UnchangedFiles(), UnchangedFiles(min_age=-60_000_000_000, mark=lambda _: None)):
        assert file.verified(untrusting).proof is None
        assert verified.verified(untrusting) is not verified


@pytest.mark.parametrize("data", [b"", b"[]", b'{"content": "c", "model": {}, "files": [["p", "00", ""]]}'])
def test_a_note_that_cannot_be_used_is_none(data):
    assert Placement.decode(data) is None
    row = ["p", digest(b"").hex(), "", 1, 2, 3, 4, 5]
    assert Placement.decode(json.dumps({"content": "c", "model": {}, "files": [row]}).encode())
