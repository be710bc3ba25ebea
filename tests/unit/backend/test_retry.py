from __future__ import annotations

import pytest
from fakes.faulty_backend import FaultyBackend
from fakes.posix_model import PosixModel

from casstore.backend import LocalBackend, MemoryBackend, RetryingBackend, RetryPolicy
from casstore.backend.base import Throttled
from casstore.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    DigestMismatch,
    ObjectExists,
    ObjectNotFound,
)


class Clock:
    """A clock that only sleeping moves; jitter takes the ceiling unless told otherwise."""

    def __init__(self, *, fraction=1.0):
        self.time = 1000.0
        self.pauses = []
        self.ceilings = []
        self.fraction = fraction

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.time += seconds

    def jitter(self, low, high):
        assert low == 0.0
        self.ceilings.append(high)
        return high * self.fraction

    def policy(self, **options):
        return RetryPolicy(clock=lambda: self.time, sleep=self.sleep, jitter=self.jitter, **options)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def faulty(request):
    return FaultyBackend(MemoryBackend(f"test_retry/{request.node.nodeid}"))


@pytest.fixture
def backend(faulty, clock):
    return RetryingBackend(faulty, clock.policy())


OUTAGE = BackendUnavailable("outage")


def test_pauses_grow_to_a_ceiling(backend, faulty, clock):
    faulty.fail_next("stat", OUTAGE, times=10)
    with pytest.raises(ObjectNotFound):
        backend.stat("x")
    assert clock.ceilings == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0, 20.0])


def test_jitter_is_full(faulty):
    clock = Clock(fraction=0.25)
    faulty.fail_next("stat", OUTAGE, times=3)
    with pytest.raises(ObjectNotFound):
        RetryingBackend(faulty, clock.policy()).stat("x")
    assert clock.pauses == pytest.approx([0.025, 0.05, 0.1])


def test_the_deadline_covers_the_pauses(backend, faulty, clock):
    faulty.fail_next("stat", OUTAGE, times=10**6)
    with pytest.raises(BackendUnavailable) as caught:
        backend.stat("x")
    assert caught.value is OUTAGE
    assert 100 < sum(clock.pauses) <= 120


def test_a_storage_that_never_answered_is_not_waited_for_like_a_busy_one(faulty, clock):
    backend = RetryingBackend(faulty, clock.policy(), opening=clock.policy(deadline=10.0))
    faulty.fail_next("stat", OUTAGE, times=10**6)
    with pytest.raises(BackendUnavailable):
        backend.stat("x")
    assert sum(clock.pauses) <= 10
    faulty._next.clear()
    with pytest.raises(ObjectNotFound):
        backend.stat("x")
    clock.pauses.clear()
    faulty.fail_next("stat", OUTAGE, times=10**6)
    with pytest.raises(BackendUnavailable):
        backend.stat("x")
    assert 60 < sum(clock.pauses) <= 120


def test_a_wish_for_a_pause_is_honoured(backend, faulty, clock):
    faulty.fail_next("stat", Throttled("slow down", retry_after=30.0))
    faulty.fail_next("stat", Throttled("slow down"))
    with pytest.raises(ObjectNotFound):
        backend.stat("x")
    assert clock.pauses == pytest.approx([30.0, 0.2])


def test_a_wish_beyond_the_deadline_ends_it(backend, faulty, clock):
    faulty.fail_next("stat", Throttled("slow down", retry_after=3600.0))
    with pytest.raises(Throttled):
        backend.stat("x")
    assert clock.pauses == []


def test_an_endless_outage_does_not_overflow(faulty):
    clock = Clock(fraction=0.0)
    faulty.fail_next("stat", OUTAGE, times=5000)
    with pytest.raises(ObjectNotFound):
        RetryingBackend(faulty, clock.policy()).stat("x")


@pytest.mark.parametrize(
    "error",
    [
        BackendError("no"),
        AccessDenied("no"),
        BackendUnavailable("no", retryable=False),
        ObjectNotFound("no"),
        DigestMismatch("a", "b", "k"),
    ],
)
def test_the_rest_comes_through_at_once(backend, faulty, clock, error):
    faulty.fail_next("read", error)
    with pytest.raises(type(error)):
        backend.read("x")
    assert clock.pauses == []
    assert faulty.calls == [("read", "x")]


def test_every_operation_is_repeated(backend, faulty):
    buffer = bytearray(1)
    for operation, call in [
        ("put", lambda: backend.put("a", [b"x"])),
        ("create", lambda: backend.create("b", [b"y"])),
        ("read", lambda: backend.read("a")),
        ("read_into", lambda: backend.read_into("a", memoryview(buffer))),
        ("stat", lambda: backend.stat("a")),
        ("list", lambda: list(backend.list(""))),
        ("open_writer", lambda: backend.open_writer().discard()),
        ("delete", lambda: backend.delete("a")),
        ("make_durable", lambda: backend.make_durable(key for key in ["b"])),
        ("list_temporaries", lambda: list(backend.list_temporaries())),
        ("creates_exclusively", lambda: backend.creates_exclusively),
    ]:
        before = len(faulty.calls)
        faulty.fail_next(operation, OUTAGE, times=2)
        call()
        assert [name for name, _ in faulty.calls[before:]] == [operation] * 3
    assert buffer == b"x"
    assert [entry.key for entry in faulty.inner.list("")] == ["b"]


@pytest.mark.parametrize("operation", ["put", "create"])
def test_a_lost_answer_is_told_from_a_lost_race(backend, faulty, operation):
    write = getattr(backend, operation)
    faulty.lose_answer_at(len(faulty.calls))
    write("mine", [b"my", b" bytes"])
    assert backend.read("mine") == b"my bytes"

    faulty.fail_next(operation, OUTAGE)
    faulty.inner.put("theirs", [b"their bytes"])
    with pytest.raises(ObjectExists):
        write("theirs", [b"my bytes"])
    assert backend.read("theirs") == b"their bytes"

    # Client libraries send again on their own, so the first answer heard may be the second one given.
    faulty.inner.put("twice", [b"my bytes"])
    write("twice", [b"my bytes"])


def test_a_commit_whose_answer_got_lost(backend, faulty):
    with backend.open_writer() as writer:
        writer.write([b"ab"])
        writer.write([b"cd"])
        assert writer.offset == 4
        faulty.fail_next("commit", OUTAGE)
        writer.commit("pack")
    assert backend.read("pack") == b"abcd"


class CommitsTwice(FaultyBackend):
    """A remote writer: its spool outlives a commit whose answer got lost."""

    def open_writer(self):
        backend = self

        class Writer(type(super().open_writer())):
            def commit(self, key):
                data = self._inner._data
                try:
                    super().commit(key)
                finally:
                    self._inner._data = data

        return Writer(backend, self.inner.open_writer())


@pytest.mark.parametrize("theirs", [None, b"other size"])
def test_a_repeated_commit_recognises_its_own_object(clock, theirs):
    faulty = CommitsTwice(MemoryBackend(f"test_retry/commits_twice/{theirs}"))
    backend = RetryingBackend(faulty, clock.policy())
    with backend.open_writer() as writer:
        writer.write([b"abcd"])
        if theirs is None:
            faulty.lose_answer_at(len(faulty.calls))
            writer.commit("pack")
        else:
            faulty.inner.put("pack", [theirs])
            faulty.fail_next("commit", OUTAGE)
            with pytest.raises(ObjectExists):
                writer.commit("pack")
    assert backend.read("pack") == theirs or b"abcd"


def test_writes_are_never_repeated(backend, faulty):
    with backend.open_writer() as writer:
        faulty.fail_next("write", OUTAGE)
        with pytest.raises(BackendUnavailable):
            writer.write([b"x"])


class Interrupted(MemoryBackend):
    """Listings break off after every three entries."""

    def list(self, prefix):
        self.started = getattr(self, "started", 0) + 1
        for number, entry in enumerate(super().list(prefix)):
            if number >= 3 * self.started:
                raise BackendUnavailable("broken off")
            yield entry

    def list_keys(self, prefix):
        return (entry.key for entry in self.list(prefix))


@pytest.mark.parametrize("names", [False, True])
def test_a_listing_goes_on_where_it_broke_off(clock, names):
    inner = Interrupted(f"test_retry/interrupted-{names}")
    keys = [f"k/{number}" for number in range(8)]
    for key in keys:
        inner.put(key, [b"x"])
    backend = RetryingBackend(inner, clock.policy())
    listed = list(backend.list_keys("k/")) if names else [entry.key for entry in backend.list("k/")]
    assert listed == keys
    assert inner.started == 3
    assert clock.ceilings == pytest.approx([0.1, 0.1]), "progress starts the pauses anew"


class Unsorted(MemoryBackend):
    """Lists in another order."""

    def list(self, prefix):
        found = list(super().list(prefix))
        return iter(found[1::2] + found[::2])

    def list_keys(self, prefix):
        return (entry.key for entry in self.list(prefix))


@pytest.mark.parametrize("names", [False, True])
def test_a_listing_that_is_not_sorted_is_an_error_and_loses_nothing_in_silence(clock, names):
    inner = Unsorted(f"test_retry/unsorted-{names}")
    for number in range(10):
        inner.put(f"k/{number}", [b"x"])
    backend = RetryingBackend(inner, clock.policy())
    with pytest.raises(BackendError, match="unsorted"):
        list(backend.list_keys("k/") if names else backend.list("k/"))
    assert clock.pauses == [], "asking again would not help"


class Overlapping(Interrupted):
    """Pages that overlap name some keys twice, and break off."""

    def list(self, prefix):
        return (entry for entry in super().list(prefix) for _ in range(2))


def test_a_listing_whose_pages_overlap_counts_nothing_twice(clock):
    inner = Overlapping("test_retry/overlapping")
    keys = [f"k/{number}" for number in range(8)]
    for key in keys:
        inner.put(key, [b"x"])
    assert [entry.key for entry in RetryingBackend(inner, clock.policy()).list("k/")] == keys
    assert inner.started == 3


def test_a_listing_that_cannot_go_on_raises(clock):
    faulty = FaultyBackend(MemoryBackend("test_retry/endless"))
    faulty.fail_next("list", OUTAGE, times=10**6)
    with pytest.raises(BackendUnavailable):
        list(RetryingBackend(faulty, clock.policy()).list(""))


def test_local_fsync_failures_are_not_repeated(clock):
    disk = PosixModel()
    backend = RetryingBackend(LocalBackend("/s", create=True, calls=disk), clock.policy())
    disk.fail("fsync", 5)
    with pytest.raises(BackendUnavailable) as caught:
        backend.put("packs/x", [b"x"])
    assert not caught.value.retryable
    disk.fail("fsync", 5)
    with pytest.raises(BackendError), backend.open_writer() as writer:
        writer.commit("packs/y")
    assert clock.pauses == []
