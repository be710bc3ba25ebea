"""LocalBackend on a disk that loses what was not synced: whole or not at all, and there once acknowledged."""

from __future__ import annotations

import errno
import itertools
from contextlib import suppress

import pytest
from fakes.posix_model import KEEP_ALL, LOSE_ALL, PosixModel, SimulatedCrash

from casstore.backend import LocalBackend
from casstore.errors import BackendError, CasstoreError, ObjectExists, ObjectNotFound

KEY = "packs/ab/" + "ab" * 32
DATA = bytes(range(256)) * 3
CHOICES = (LOSE_ALL, KEEP_ALL, *range(12))


def put(backend, key=KEY, data=DATA):
    backend.put(key, [data[:100], data[100:]])


def create(backend, key=KEY, data=DATA):
    backend.create(key, [data[:100], data[100:]])


def stream(backend, key=KEY, data=DATA):
    with backend.open_writer() as writer:
        writer.write([data[:10]])
        writer.write([data[10:500], data[500:]])
        writer.commit(key)


WRITES = (put, create, stream)


class NoLinks(PosixModel):
    def link(self, source, target):
        self._check("link", target)
        raise OSError(errno.EPERM, "no links here")


class NoExclusiveRename(NoLinks):
    def rename_exclusive(self, source, target):
        self._check("rename_exclusive", target)
        raise OSError(errno.EINVAL, "no flags here")


def fresh(model=PosixModel):
    """A disk with an empty, durable store."""
    disk = model()
    LocalBackend("/srv/store", create=True, calls=disk)
    survivor = disk.crash(LOSE_ALL)
    return again(model, survivor)


def again(model, disk, **options):
    return model(_root=disk._root, **options)


def state(disk):
    """Return the bytes under KEY on a disk, None when it is absent, and check what else is visible."""
    backend = LocalBackend("/srv/store", calls=disk)
    listed = {entry.key: entry.size for entry in backend.list("")}
    assert set(listed) <= {KEY}
    try:
        data = backend.read(KEY)
    except ObjectNotFound:
        assert not listed
        return None
    assert listed == {KEY: len(data)}
    return data


@pytest.mark.parametrize("model", [PosixModel, NoLinks, NoExclusiveRename])
@pytest.mark.parametrize("write", WRITES)
def test_power_failure_at_every_call(write, model):
    if model is NoExclusiveRename and write is create:
        with pytest.raises(CasstoreError, match="told apart"):
            create(LocalBackend("/srv/store", calls=fresh(model)))
        return
    seen = set()
    k, done = 0, False
    while not done:
        before = fresh(model)
        disk = again(model, before, crash_at=k)
        acknowledged = False
        try:
            backend = LocalBackend("/srv/store", calls=disk)
            write(backend)
            acknowledged = True
            backend.stat(KEY)
            done = True
        except SimulatedCrash:
            pass
        for choice in CHOICES:
            data = state(disk.crash(choice))
            seen.add((acknowledged, data is None))
            if acknowledged:
                assert data == DATA, f"acknowledged at call {k} and lost ({choice})"
            else:
                assert data in (None, DATA), f"torn at call {k} ({choice})"
        k += 1
    assert seen == {(False, True), (False, False), (True, False)}, "the test saw every outcome"
    assert 10 < k < 60


@pytest.mark.parametrize("write", WRITES)
def test_killed_at_every_call_then_power_failure_after_the_next_writer(write):
    """What a killed process left half-done must not weaken what the next one acknowledges."""
    k, done = 0, False
    while not done:
        disk = again(PosixModel, fresh(), crash_at=k)
        try:
            write(LocalBackend("/srv/store", calls=disk))
            done = True
        except SimulatedCrash:
            pass
        alive = disk.kill()
        # A key that is taken is relied on by the caller, hence as good as written.
        with suppress(ObjectExists):
            write(LocalBackend("/srv/store", calls=alive))
        for choice in CHOICES:
            assert state(alive.crash(choice)) == DATA, f"killed at call {k}, then lost ({choice})"
        k += 1


def test_make_durable_makes_a_killed_writers_object_safe_to_rely_on():
    unsafe = 0
    for k in range(40):
        disk = again(PosixModel, fresh(), crash_at=k)
        with _until_crash():
            put(LocalBackend("/srv/store", calls=disk))
        alive = disk.kill()
        reader = LocalBackend("/srv/store", calls=alive)
        try:
            reader.stat(KEY)
        except ObjectNotFound:
            continue
        unsafe += state(alive.crash(LOSE_ALL)) is None
        reader.make_durable([KEY])
        for choice in CHOICES:
            assert state(alive.crash(choice)) == DATA
    assert unsafe, "without make_durable, some of these objects would have been lost"


class _until_crash:  # noqa: N801  # reads as a statement
    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return kind is SimulatedCrash


def test_a_deletion_that_was_acknowledged_stays():
    for k in range(20):
        disk = fresh()
        put(LocalBackend("/srv/store", calls=disk))
        disk = again(PosixModel, disk.crash(LOSE_ALL), crash_at=k)
        acknowledged = False
        with _until_crash():
            LocalBackend("/srv/store", calls=disk).delete(KEY)
            acknowledged = True
        for choice in CHOICES:
            data = state(disk.crash(choice))
            assert data is None if acknowledged else data in (None, DATA)
    assert acknowledged


def test_deletions_that_were_acknowledged_together_stay():
    keys = ["packs/ab/1", "packs/ab/2", "packs/cd/1", "packs/cd/2"]
    before = fresh()
    backend = LocalBackend("/srv/store", calls=before)
    for key in [*keys, KEY]:
        backend.put(key, [DATA])
    for k in itertools.count():
        disk = again(PosixModel, before.crash(LOSE_ALL), crash_at=k)
        acknowledged = False
        with _until_crash():
            LocalBackend("/srv/store", calls=disk).delete_many(keys)
            acknowledged = True
        for choice in CHOICES:
            left = set(LocalBackend("/srv/store", calls=disk.crash(choice)).list_keys(""))
            assert left == {KEY} if acknowledged else {KEY} <= left <= {KEY, *keys}
        if acknowledged:
            break
    assert disk.calls.count("fsync") == 2, "each folder once"


def test_an_error_in_the_middle_leaves_what_went_durable():
    disk = again(PosixModel, fresh())
    backend = LocalBackend("/srv/store", calls=disk)
    for key in ("packs/ab/1", "packs/cd/1"):
        backend.put(key, [DATA])
    disk.fail("unlink", errno.EIO, nth=1)
    with pytest.raises(BackendError, match="delete packs/cd/1"):
        backend.delete_many(["packs/ab/1", "packs/cd/1"])
    left = LocalBackend("/srv/store", calls=disk.crash(LOSE_ALL)).list_keys("packs/")
    assert list(left) == ["packs/cd/1"]


def test_making_the_store_is_durable():
    for k in range(80):
        disk = PosixModel(crash_at=k)
        acknowledged = False
        with _until_crash():
            put(LocalBackend("/srv/deep/store", create=True, calls=disk))
            acknowledged = True
        for choice in CHOICES:
            survivor = disk.crash(choice)
            if acknowledged:
                assert LocalBackend("/srv/deep/store", calls=survivor).read(KEY) == DATA
    assert acknowledged


def test_a_root_that_another_process_was_killed_over_is_made_durable():
    for k in range(40):
        disk = PosixModel(crash_at=k)
        with _until_crash():
            LocalBackend("/srv/deep/store", create=True, calls=disk)
        alive = disk.kill()
        put(LocalBackend("/srv/deep/store", create=True, calls=alive))
        assert LocalBackend("/srv/deep/store", calls=alive.crash(LOSE_ALL)).read(KEY) == DATA
    assert len(disk.calls) < k, "the last one was not stopped"


def test_durability_none_leaves_out_the_fsyncs_and_nothing_else():
    calls = {}
    for durability in ("full", "none"):
        disk = again(PosixModel, fresh())
        put(LocalBackend("/srv/store", calls=disk, durability=durability))
        calls[durability] = disk.calls
        assert state(disk.kill()) == DATA
    assert "fsync" not in calls["none"]
    file_calls = [name for name in calls["full"] if name not in ("fsync", "open", "close")]
    assert file_calls == [name for name in calls["none"] if name not in ("open", "close")]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("write", WRITES)
def test_an_error_at_every_call(write, number):
    k, failed = 0, 0
    while True:
        disk = again(PosixModel, fresh(), errors={k: number})
        refusal = None
        try:
            write(LocalBackend("/srv/store", calls=disk))
        except BackendError as error:
            refusal = error
            failed += 1
        acknowledged = refusal is None
        assert acknowledged or not refusal.retryable or disk.calls[-1] == "stat", disk.calls
        assert disk.open_descriptors() == 0, f"a descriptor leaked at call {k}: {disk.calls}"
        for choice in (KEEP_ALL, LOSE_ALL, 1):
            data = state(disk.crash(choice))
            assert data == DATA if acknowledged else data in (None, DATA)
        if not acknowledged:
            assert state(disk.kill()) is None, f"visible after the error at call {k}: {disk.calls}"
        if len(disk.calls) <= k:
            break
        k += 1
    assert failed > 10


def read_into(backend):
    buffer = bytearray(len(DATA))
    assert backend.read_into(KEY, memoryview(buffer)) == len(DATA)
    return bytes(buffer)


def hold(backend, **options):
    with backend.publish_lock(**options) as held:
        return held


def absent(backend):
    with pytest.raises(ObjectNotFound) as caught:
        backend.stat("packs/cd/x")
    return type(caught.value)


QUESTIONS = {
    "open": (lambda backend: backend.url, "file:///srv/store"),
    "read": (lambda backend: backend.read(KEY), DATA),
    "read a range": (lambda backend: backend.read(KEY, start=5, length=7), DATA[5:12]),
    "read into": (read_into, DATA),
    "stat": (lambda backend: backend.stat(KEY).size, len(DATA)),
    "stat absent": (absent, ObjectNotFound),
    "list": (lambda backend: [entry.key for entry in backend.list("")], [KEY]),
    "list packs": (lambda backend: [entry.key for entry in backend.list("packs/")], [KEY]),
    "list nothing": (lambda backend: [entry.key for entry in backend.list("refs/")], []),
    "list keys": (lambda backend: list(backend.list_keys("")), [KEY]),
    "list no keys": (lambda backend: list(backend.list_keys("refs/")), []),
    "list leftovers": (lambda backend: list(backend.list_temporaries()), []),
    "remove a leftover": (lambda backend: backend.remove_temporary(".tmp/x"), None),
    "make_durable": (lambda backend: backend.make_durable([KEY]), None),
    "delete": (lambda backend: backend.delete(KEY), None),
    "delete many": (lambda backend: backend.delete_many([KEY, "packs/cd/x"]), None),
    "delete absent": (lambda backend: backend.delete("packs/cd/x"), None),
    "lock": (hold, True),
    "lock exclusively": (lambda backend: hold(backend, exclusive=True), True),
    "probe": (lambda backend: backend.creates_exclusively, True),
    "clock": (lambda backend: backend.now() > 1e9, True),
}


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOSPC])
@pytest.mark.parametrize("question", QUESTIONS)
def test_an_error_at_every_call_is_mapped_and_never_a_wrong_answer(question, number):
    ask, answer = QUESTIONS[question]
    before = fresh()
    put(LocalBackend("/srv/store", calls=before))
    before = before.crash(LOSE_ALL)
    for k in itertools.count():
        disk = PosixModel(_root=before.crash(LOSE_ALL)._root, errors={k: number})
        # An error is one of casstore's, or it did not matter to the answer.
        with suppress(BackendError):
            assert ask(LocalBackend("/srv/store", calls=disk)) == answer
        assert disk.open_descriptors() == 0, f"a descriptor leaked at call {k}: {disk.calls}"
        if len(disk.calls) <= k:
            break
    assert k > 0


@pytest.mark.parametrize("write", WRITES)
def test_fsync_is_never_repeated(write):
    clean = again(PosixModel, fresh())
    write(LocalBackend("/srv/store", calls=clean))
    for nth in range(clean.calls.count("fsync")):
        disk = again(PosixModel, fresh())
        disk.fail("fsync", errno.EIO, nth=nth)
        with pytest.raises(BackendError) as caught:
            write(LocalBackend("/srv/store", calls=disk))
        assert not caught.value.retryable
        assert disk.calls.count("fsync") == nth + 1, "one failure ends it"
        assert state(disk.kill()) is None
        # A new start goes on with new files, never with the failed one.
        write(LocalBackend("/srv/store", calls=disk))
        assert state(disk.crash(LOSE_ALL)) == DATA


def test_a_directory_whose_fsync_failed_is_not_relied_on_again():
    disk = again(PosixModel, fresh())
    backend = LocalBackend("/srv/store", calls=disk)
    put(backend, "packs/ab/first")
    disk.fail("fsync", errno.EIO, nth=1)
    with pytest.raises(BackendError):
        put(backend)
    fsyncs = disk.calls.count("fsync")
    with pytest.raises(BackendError, match="open the store again"):
        put(backend)
    assert disk.calls.count("fsync") == fsyncs + 1, "the file's own, and no second one of the directory"
    put(backend, "packs/cd/other")
    assert backend.read("packs/cd/other") == DATA


def test_disk_full_frees_what_was_written():
    disk = again(PosixModel, fresh())
    backend = LocalBackend("/srv/store", calls=disk)
    disk.fail("write", errno.ENOSPC, nth=1)
    with backend.open_writer() as writer:
        writer.write([DATA])
        with pytest.raises(BackendError, match=r"disk is full.*Free space"):
            writer.write([DATA])
        with pytest.raises(BackendError, match="failed"):
            writer.commit(KEY)
    assert disk.tree() == {}
    assert disk.open_descriptors() == 0


@pytest.mark.parametrize("short", [1, 7, 100])
def test_short_writes_and_reads(short):
    disk = again(PosixModel, fresh(), short=short)
    backend = LocalBackend("/srv/store", calls=disk)
    with backend.open_writer() as writer:
        writer.write([DATA[:1], DATA[1:30], DATA[30:]])
        assert writer.offset == len(DATA)
        writer.commit(KEY)
    assert backend.read(KEY) == DATA
    assert backend.read(KEY, start=13, length=400) == DATA[13:413]
    buffer = bytearray(len(DATA) + 5)
    assert backend.read_into(KEY, memoryview(buffer)) == len(DATA)
    assert buffer[: len(DATA)] == DATA


def test_a_link_whose_answer_got_lost_counts_as_made():
    """NFS repeats a link; the repetition finds the name taken by the first try."""

    class Nfs(PosixModel):
        def link(self, source, target):
            super().link(source, target)
            raise FileExistsError(errno.EEXIST, "File exists", target)

    disk = again(Nfs, fresh())
    put(LocalBackend("/srv/store", calls=disk))
    assert state(disk.crash(LOSE_ALL)) == DATA


@pytest.mark.parametrize("model", [PosixModel, NoLinks, NoExclusiveRename])
def test_nothing_is_overwritten_with_any_kind_of_rename(model):
    disk = again(model, fresh(model))
    put(LocalBackend("/srv/store", calls=disk))
    for write in (put, stream):
        with pytest.raises(ObjectExists):
            write(LocalBackend("/srv/store", calls=disk), data=b"other")
    assert state(disk) == DATA
    assert LocalBackend("/srv/store", calls=disk).creates_exclusively is (model is not NoExclusiveRename)
    assert [path for path in disk.tree() if "/.tmp/" in path] == []


def test_a_directory_that_someone_removed_is_made_again():
    disk = again(PosixModel, fresh())
    backend = LocalBackend("/srv/store", calls=disk)
    put(backend)
    backend.delete(KEY)
    del disk._find("/srv/store/packs").entries["ab"]
    put(backend)
    assert state(disk.kill()) == DATA


def test_a_temporary_file_that_someone_removed():
    disk = again(PosixModel, fresh())
    backend = LocalBackend("/srv/store", calls=disk)
    with backend.open_writer() as writer:
        writer.write([DATA])
        for entry in backend.list_temporaries():
            backend.remove_temporary(entry.key)
        with pytest.raises(BackendError, match="temporary file was removed"):
            writer.commit(KEY)
    assert state(disk.kill()) is None


def test_leftovers_of_crashed_writers_are_found_and_removed():
    disk = again(PosixModel, fresh(), crash_at=16)
    with _until_crash():
        stream(LocalBackend("/srv/store", calls=disk))
    backend = LocalBackend("/srv/store", calls=disk.kill())
    [leftover] = backend.list_temporaries()
    assert leftover.size > 0
    assert list(backend.list("")) == []
    backend.remove_temporary(leftover.key)
    backend.remove_temporary(leftover.key)
    assert list(backend.list_temporaries()) == []
