"""The space that a local store keeps for a full disk: it is there, it is given back, and it never grows or hurts."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
from fakes.posix_model import KEEP_ALL, LOSE_ALL, SimulatedCrash
from fakes.stores import Disk, assert_clean, open_on

from casstore import Store
from casstore.backend import LocalBackend, MemoryBackend
from casstore.backend.local import ballast
from casstore.backend.local.ballast import FOLDER, LAST, PIECE, PIECES
from casstore.backend.oserrors import from_os_error
from casstore.errors import BackendError


def pieces(root):
    folder = root / FOLDER
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.exists() else {}


def full_until(count, number=errno.ENOSPC):
    """Return work that finds the disk full so many times."""
    left = itertools.repeat(None, count)
    full = OSError(number, os.strerror(number))

    def work():
        if next(left, True) is None:
            raise from_os_error(full, "write") from full
        return "done"

    return work


def test_the_first_publish_makes_it_and_nothing_shows_it(root, model):
    with Store(root, create=True) as store:
        assert pieces(root) == {}, "an empty store has nothing to free"
        store.add(model, ref="models/a")
        assert pieces(root) == dict.fromkeys(PIECES, PIECE)
        blocks = sum(path.stat().st_blocks for path in (root / FOLDER).iterdir())
        assert blocks * 512 >= len(PIECES) * PIECE, "written out"
        assert not [key for key in store.backend.list_keys("") if "ballast" in key]
        assert list(store.backend.list_foreign()) == []
        assert list(store.backend.list_temporaries()) == []
        assert not store.leftovers()
        assert_clean(store)
        with Store(root.parent / "other", create=True) as other:
            store.push(other)
            assert_clean(other)
        store.add(model, ref="models/b")
        assert pieces(root) == dict.fromkeys(PIECES, PIECE)


def test_a_store_of_an_earlier_version_gets_it_at_the_next_publish_and_what_is_torn_is_written_again(
    root, model
):
    with Store(root, create=True) as store:
        store.add(model, ref="models/a")
        for path in (root / FOLDER).iterdir():
            path.unlink()
        os.rmdir(root / FOLDER)
    with Store(root) as store:
        store.tag("t", "models/a")
        assert pieces(root) == dict.fromkeys(PIECES, PIECE)
        os.truncate(root / FOLDER / "3", 100)
        store.rm("models/a")
        assert pieces(root) == dict.fromkeys(PIECES, PIECE)


def test_who_needs_none_has_none(root, model):
    with Store(root, create=True, durability="none") as store:
        store.add(model, ref="models/a")
    assert pieces(root) == {}
    backend = MemoryBackend("no-ballast")
    backend.keep_spare_room()
    assert list(backend.list("")) == []
    with pytest.raises(BackendError):
        backend.in_spare_room(full_until(1))


def test_a_disk_without_room_to_spare_gets_none():
    disk = Disk()
    LocalBackend("/srv/store", create=True, calls=disk).keep_spare_room()
    assert not disk.tree()
    disk.room = True
    LocalBackend("/srv/store", calls=disk).keep_spare_room()
    assert len(disk.tree()) == len(PIECES)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_files_of_dead_writers_go_first_and_the_last_pieces_are_for_the_last_step(root, number):
    with LocalBackend(root, create=True) as backend:
        backend.keep_spare_room()
        left_over = root / ".tmp" / f"{'0' * 32}.held"
        left_over.write_bytes(b"left")
        assert backend.in_spare_room(full_until(1, number)) == "done"
        assert not left_over.exists()
        assert len(pieces(root)) == len(PIECES)
        assert backend.in_spare_room(full_until(3, number)) == "done"
        assert len(pieces(root)) == len(PIECES) - 2
        with pytest.raises(BackendError, match="full"):
            backend.in_spare_room(full_until(99))
        assert len(pieces(root)) == LAST
        assert backend.in_spare_room(full_until(LAST + 1), last=True) == "done"
        assert pieces(root) == {}
        with pytest.raises(BackendError, match="full"):
            backend.in_spare_room(full_until(99), last=True)
        backend.keep_spare_room()
        assert pieces(root) == dict.fromkeys(PIECES, PIECE)


def test_other_errors_release_nothing(root):
    def work():
        raise BackendError("no")

    with LocalBackend(root, create=True) as backend:
        backend.keep_spare_room()
        with pytest.raises(BackendError, match="no"):
            backend.in_spare_room(work, last=True)
        assert len(pieces(root)) == len(PIECES)


def test_threads_and_processes_that_release_and_restore_it_at_once(root):
    LocalBackend(root, create=True).close()
    program = (
        "import sys; from casstore.backend import LocalBackend; from casstore.backend.local import ballast\n"
        "with LocalBackend(sys.argv[1]) as backend:\n"
        "    for at in range(60):\n"
        "        backend.keep_spare_room(); ballast.release(backend._directory, last=True)\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", program, str(root)]) for _ in range(2)]

    def work():
        with LocalBackend(root) as backend:
            for _ in range(60):
                backend.keep_spare_room()
                ballast.release(backend._directory, last=True)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0]
    assert set(pieces(root).items()) <= {(name, PIECE) for name in PIECES}
    with LocalBackend(root) as backend:
        backend.keep_spare_room()
        assert list(backend.list_temporaries()) == []
    assert pieces(root) == dict.fromkeys(PIECES, PIECE)


@pytest.mark.parametrize("number", [None, errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_crash_or_an_error_at_any_call_leaves_a_store_that_works(number, monkeypatch):
    """The next process completes it; there is never more of it than there should be."""
    monkeypatch.setattr(ballast, "PIECE", 100)
    monkeypatch.setattr(ballast, "PIECES", ("0", "1"))
    clean = Disk()
    open_on(clean, create=True)
    before = clean.crash(LOSE_ALL)
    for k in itertools.count():
        faults = {"crash_at": k} if number is None else {"errors": {k: number}}
        disk = Disk.holding(before.crash(LOSE_ALL), room=True, **faults)
        finished = False
        with suppress(SimulatedCrash):
            try:
                backend = LocalBackend("/srv/store", calls=disk)
            except BackendError:
                continue
            backend.keep_spare_room()
            assert disk.open_descriptors() == 0
            finished = len(disk.calls) <= k
        for survivor in (disk.kill(), disk.crash(KEEP_ALL), disk.crash(LOSE_ALL), disk.crash(k)):
            alive = Disk.holding(survivor, room=True)
            with open_on(alive).publication():
                pass
            found = {path: data for path, data in alive.tree().items() if "/.ballast/" in path}
            assert [len(data) for data in found.values()] == [100, 100]
            assert not [path for path in alive.tree() if path.endswith(".held")]
            assert_clean(open_on(alive))
        if finished:
            break
    assert k > 20
