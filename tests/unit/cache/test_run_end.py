"""When a run has ended, the cache holds the store and the files of its outputs: no other copy, and never too few."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest

from casstore import OliveCache, Store
from casstore.cache.placements.placement import Placement
from casstore.ops.quarantine import quarantine_damaged

PASSES = ["convert", "fuse", "quantize"]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "in.bin"
    path.write_bytes(os.urandom(1000))
    return path


def extend(model, output):
    data = (model / "o.bin" if model.is_dir() else model).read_bytes()
    (output / "o.bin").write_bytes(data + b"x")


def run(cache, model, ran=None, *, passes=PASSES):
    """Run passes, each on what the one before made; return the folders."""
    folders = []
    for name in passes:

        def make(source, output, name=name):
            if ran is not None:
                ran.append(name)
            extend(source, output)

        folders.append(cache.run_pass(name, make, folders[-1] if folders else model, version="1"))
    return folders


def files(root):
    """Return the files of models in a cache's folder, outside its store."""
    found = [*root.glob("runs/*/models*/**/*"), *root.glob("checkouts/**/*")]
    return sorted(path for path in found if path.is_file() and path.name.endswith(".bin"))


def settings(tmp_path, **others):
    return {"cache_dir": str(tmp_path / "cache"), **others}


def test_only_the_output_has_files_and_a_warm_run_makes_the_others_again(tmp_path, model):
    ran = []
    for _ in range(3):
        with OliveCache(settings(tmp_path)) as cache:
            folders = run(cache, model, ran)
            for count, folder in enumerate(folders, 1):
                assert (folder / "o.bin").read_bytes() == model.read_bytes() + b"x" * count
            assert not cache.problems
        assert ran == PASSES
        assert [path.parent for path in files(tmp_path / "cache")] == [folders[-1]]


def test_what_was_an_output_goes_when_a_later_run_goes_on_from_it(tmp_path, model):
    for passes in (PASSES[:1], PASSES[:2], PASSES):
        with OliveCache(settings(tmp_path)) as cache:
            last = run(cache, model, passes=passes)[-1]
        assert [path.parent for path in files(tmp_path / "cache")] == [last]


def test_outputs_of_other_runs_stay(tmp_path, model):
    with OliveCache(settings(tmp_path)) as cache:
        [first] = run(cache, model, passes=["a"])
    with OliveCache(settings(tmp_path)) as cache:
        [second] = run(cache, model, passes=["b"])
    assert {path.parent for path in files(tmp_path / "cache")} == {first, second}


def test_all_files_stay_if_that_is_wanted(tmp_path, model):
    with OliveCache(settings(tmp_path, keep_working_files=True)) as cache:
        folders = run(cache, model)
    assert {path.parent for path in files(tmp_path / "cache")} == set(folders)


def test_what_was_saved_elsewhere_leaves_no_copy(tmp_path, model):
    with OliveCache(settings(tmp_path)) as cache:
        folders = run(cache, model)
        cache.save_model(folders[-1].parent.name, tmp_path / "output")
    assert files(tmp_path / "cache") == []
    assert (tmp_path / "output/model/o.bin").read_bytes() == model.read_bytes() + b"xxx"


def test_a_run_may_end_while_the_cache_stays_open(tmp_path, model):
    with OliveCache(settings(tmp_path)) as cache:
        folders = run(cache, model)
        cache.end_run([folders[-1].parent.name])
        assert [path.parent for path in files(tmp_path / "cache")] == [folders[-1]]
        with OliveCache(settings(tmp_path, max_checkout_bytes=0)):
            pass
        assert [path.parent for path in files(tmp_path / "cache")] == [folders[-1]], "it is still in use"
        ran = []
        assert run(cache, model, ran)[-1] == folders[-1]
        assert ran == []
        name = folders[0].parent.name
        assert cache.get_model_cache_path(name).is_dir(), "another attempt has a folder"


END = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_run_end import run, settings
from casstore import OliveCache
cache = OliveCache({"cache_dir": sys.argv[1]})
print(run(cache, Path(sys.argv[2]))[0], flush=True)
sys.stdin.read()
"""


def other_process(tmp_path, model):
    here = os.path.dirname(__file__)
    return subprocess.Popen(
        [sys.executable, "-c", END, str(tmp_path / "cache"), str(model), here],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_what_another_process_uses_stays_until_that_one_ends_however_it_does(tmp_path, model, end):
    with other_process(tmp_path, model) as other:
        first = other.stdout.readline().strip()
        with OliveCache(settings(tmp_path)) as cache:
            run(cache, model)
        assert first in {str(path.parent) for path in files(tmp_path / "cache")}
        if end == "kill":
            other.kill()
        other.communicate()
    if end == "kill":
        with OliveCache(settings(tmp_path)):
            pass
    [left] = files(tmp_path / "cache")
    assert str(left.parent) != first, "a run that nobody closed ends with its process"


def test_files_that_a_killed_run_left_are_hits_of_the_next_one_and_go_with_it(tmp_path, model):
    with other_process(tmp_path, model) as other:
        assert other.stdout.readline()
        other.kill()
        other.communicate()
    left = files(tmp_path / "cache")
    assert len(left) == len(PASSES)
    with OliveCache(settings(tmp_path)) as cache:
        folders = run(cache, model, passes=[*PASSES, "tune"])
        assert {path.parent for path in left} == set(folders[:-1])
    assert [path.parent for path in files(tmp_path / "cache")] == [folders[-1]]


def end_and_be_killed(place, model, count):
    """In a child: run two passes, leave a file of one's own, and be killed at a deletion or renaming of the end."""
    cache = OliveCache(settings(place))
    folders = run(cache, model, passes=PASSES[:2])
    (folders[0] / "notes.txt").write_text("mine")
    (place / "last").write_text(str(folders[1]))
    left = count

    def hook(event, arguments):
        nonlocal left
        if event in ("os.remove", "os.rename", "os.rmdir") and "/runs/" in os.fsdecode(arguments[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    cache.close()


def test_a_kill_at_any_deletion_leaves_what_the_next_run_deletes(tmp_path, model):
    for count in range(30):
        place = tmp_path / str(count)
        place.mkdir()
        child = os.fork()
        if child == 0:
            try:
                end_and_be_killed(place, model, count)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        with OliveCache(settings(place)):
            pass
        # Before anything was deleted, the process was killed where it notes which files are the output's.
        left = {str(path.parent) for path in files(place / "cache")}
        assert left <= {(place / "last").read_text()}
        [mine] = place.rglob("notes.txt")
        assert mine.read_text() == "mine"
        if not os.WIFSIGNALED(status):
            break
    assert left
    assert count > 3


def test_a_full_disk_at_the_end_keeps_the_output_and_raises_nothing(tmp_path, model, monkeypatch):
    with OliveCache(settings(tmp_path)) as cache:
        last = run(cache, model)[-1]

        def write(self, folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Placement, "write", write)
    assert [path.parent for path in files(tmp_path / "cache")] == [last]


def damage_packs(store):
    for path in filter(os.path.isfile, (store / "packs").rglob("*")):
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with Store(store) as opened:
        for record in opened.refs("models/").values():
            quarantine_damaged(opened, record)


def lose_packs(store):
    for path in filter(os.path.isfile, (store / "packs").rglob("*")):
        path.unlink()


def lose_store(store):
    shutil.rmtree(store)


@pytest.mark.parametrize("damage", [lose_packs, damage_packs, lose_store])
def test_the_only_copy_never_goes(tmp_path, model, damage):
    with OliveCache(settings(tmp_path, keep_working_files=True)) as cache:
        folders = run(cache, model)
    damage(tmp_path / "cache/store")
    for _ in range(2):
        with OliveCache(settings(tmp_path, max_checkout_bytes=0)):
            pass
        assert {path.parent for path in files(tmp_path / "cache")} == set(folders)


def test_files_of_a_model_that_was_deleted_go(tmp_path, model):
    with OliveCache(settings(tmp_path)) as cache:
        folders = run(cache, model)
        cache.models.delete(folders[0].parent.name)
        cache.local.gc()
    assert [path.parent for path in files(tmp_path / "cache")] == [folders[-1]]
