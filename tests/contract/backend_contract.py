"""What every backend must do. test_backends.py runs this class on each of them."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest

from casstore.errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    ObjectExists,
    ObjectNotFound,
)

PACK = "packs/0a/" + "0a" * 32
RECORD = "refs/models/3f/bert-base.v1_x+y@3.6f2c"
BIG = np.random.default_rng(1).integers(0, 256, 9 << 20, dtype=np.uint8).tobytes()

BAD_KEYS = [
    "", "/", "/format", "format/", "a//b", "..", "a/../b", ".tmp/x", "a/.b", "A", "a b", "a\0", "a\n", "é",
    "a\\b", "a:b", "a" * 256, "/".join(["a" * 200] * 5)
]  # fmt: skip


class BackendContract:
    """Needs the fixtures `subject` (contract.backends.Subject) and `backend` (its backend)."""

    # ---- put and read

    def test_put_then_read(self, backend):
        for key in ("format", PACK, RECORD, "gc/tombstones/=x", "a" * 255):
            backend.put(key, [b"one", bytearray(b"two"), memoryview(b"three"), b""])
            assert backend.read(key) == b"onetwothree"

    def test_parts_may_be_any_buffers(self, backend):
        backend.put("format", [np.arange(6, dtype="<u2").reshape(2, 3), np.empty((0, 4)), b"!"])
        assert backend.read("format") == np.arange(6, dtype="<u2").tobytes() + b"!"

    def test_many_parts(self, backend):
        parts = [bytes([i % 256]) * (i % 3) for i in range(5000)]
        backend.put(PACK, parts)
        assert backend.read(PACK) == b"".join(parts)

    def test_empty_object(self, backend):
        backend.put("format", [])
        assert backend.read("format") == b""
        assert backend.stat("format").size == 0
        assert [entry.key for entry in backend.list("")] == ["format"]

    def test_another_client_sees_it_at_once(self, subject):
        other = subject.reopen()
        assert list(other.list("packs/")) == []
        subject.backend.put(PACK, [b"x"])
        assert other.read(PACK) == b"x"
        assert [entry.key for entry in other.list("packs/")] == [PACK]

    def test_ranges_are_clipped(self, backend):
        backend.put("format", [b"0123456789"])
        for start, length in product([0, 1, 5, 9, 10, 11, 1000], [None, 0, 1, 5, 10, 11, 10**12]):
            end = None if length is None else start + length
            got = backend.read("format", start=start, length=length)
            assert got == b"0123456789"[start:end], (start, length)

    def test_read_into(self, backend):
        backend.put("format", [b"0123456789"])
        for start, room in product([0, 3, 10, 50], [0, 1, 7, 10, 20]):
            buffer = bytearray(b"." * room)
            wanted = b"0123456789"[start : start + room]
            assert backend.read_into("format", memoryview(buffer), start=start) == len(wanted)
            assert buffer == wanted + b"." * (room - len(wanted)), (start, room)

    def test_read_into_an_array(self, backend):
        values = np.arange(12, dtype=np.float32).reshape(3, 4)
        backend.put("format", [values])
        target = np.zeros((3, 4), np.float32)
        assert backend.read_into("format", memoryview(target)) == 48
        assert (target == values).all()

    def test_negative_ranges_are_refused(self, backend):
        backend.put("format", [b"0123456789"])
        for start, length in ((-1, None), (0, -1)):
            with pytest.raises(ConfigError):
                backend.read("format", start=start, length=length)

    # ---- absent

    def test_absent_objects(self, backend):
        backend.put("packs/0a/other", [b"x"])
        for key in (PACK, "packs/0a", "packs/ff/" + "0" * 64, "format/x"):
            for length in (None, 0, 5):
                with pytest.raises(ObjectNotFound, match=key):
                    backend.read(key, length=length)
            with pytest.raises(ObjectNotFound, match=key):
                backend.stat(key)
            with pytest.raises(ObjectNotFound, match=key):
                backend.read_into(key, memoryview(bytearray(3)))

    def test_bad_keys_are_refused_everywhere(self, backend):
        for key in BAD_KEYS:
            self.refuses_key(backend, key)
        assert list(backend.list("")) == []

    def refuses_key(self, backend, key):
        with pytest.raises(ConfigError):
            backend.put(key, [b"x"])
        with pytest.raises(ConfigError):
            backend.create(key, [b"x"])
        with pytest.raises(ConfigError):
            backend.read(key)
        with pytest.raises(ConfigError):
            backend.read_into(key, memoryview(bytearray(1)))
        with pytest.raises(ConfigError):
            backend.stat(key)
        with pytest.raises(ConfigError):
            backend.delete(key)
        with pytest.raises(ConfigError):
            backend.local_path(key)
        with backend.open_writer() as writer, pytest.raises(ConfigError):
            writer.commit(key)

    # ---- nothing is overwritten

    def test_put_does_not_overwrite(self, subject):
        subject.backend.put(PACK, [b"first"])
        for backend in (subject.backend, subject.reopen()):
            with pytest.raises(ObjectExists, match=PACK):
                backend.put(PACK, [b"second"])
            assert backend.read(PACK) == b"first"

    def test_commit_does_not_overwrite(self, backend):
        backend.put(PACK, [b"first"])
        with backend.open_writer() as writer:
            writer.write([b"second"])
            with pytest.raises(ObjectExists):
                writer.commit(PACK)
        assert backend.read(PACK) == b"first"

    def test_create(self, subject):
        backend = subject.backend
        assert backend.creates_exclusively is subject.exclusive
        if not subject.exclusive:
            with pytest.raises(ConfigError, match="only if it is absent"):
                backend.create(RECORD, [b"x"])
            assert list(backend.list("refs/")) == []
            return
        backend.create(RECORD, [b"fir", b"st"])
        for other in (backend, subject.reopen()):
            with pytest.raises(ObjectExists):
                other.create(RECORD, [b"second"])
        assert backend.read(RECORD) == b"first"
        assert [entry.key for entry in backend.list("")] == [RECORD], "probing leaves nothing behind"

    def test_one_of_many_creators_wins(self, subject):
        if not subject.exclusive:
            assert not subject.backend.creates_exclusively
            return
        writers = 8
        for round_ in range(10):
            key = f"refs/tags/aa/prod@{round_}"
            barrier = threading.Barrier(writers)

            def create(number, key=key, barrier=barrier):
                barrier.wait()
                try:
                    subject.backend.create(key, [b"%d" % number])
                except ObjectExists:
                    return None
                return number

            with ThreadPoolExecutor(writers) as pool:
                winners = [number for number in pool.map(create, range(writers)) if number is not None]
            assert len(winners) == 1
            assert subject.backend.read(key) == b"%d" % winners[0]

    # ---- writers

    def test_writer(self, backend):
        with backend.open_writer() as writer:
            assert writer.offset == 0
            writer.write([b"abc", b"de"])
            assert writer.offset == 5
            writer.write([])
            writer.write([np.arange(3, dtype=np.uint8)])
            assert writer.offset == 8
            assert list(backend.list("")) == [], "nothing is visible before the commit"
            writer.commit(PACK)
        assert backend.read(PACK) == b"abcde\0\1\2"

    def test_large_writer(self, backend):
        with backend.open_writer() as writer:
            for at in range(0, len(BIG), 1 << 20):
                writer.write([BIG[at : at + 100], BIG[at + 100 : at + (1 << 20)]])
            writer.commit(PACK)
        assert backend.stat(PACK).size == len(BIG)
        assert backend.read(PACK) == BIG
        assert backend.read(PACK, start=len(BIG) - 5) == BIG[-5:]

    @pytest.mark.parametrize("size", [0, 10, len(BIG)])
    def test_a_discarded_writer_leaves_nothing(self, backend, size):
        with backend.open_writer() as writer:
            writer.write([BIG[:size]])
        with pytest.raises(ZeroDivisionError), backend.open_writer() as writer:
            writer.write([BIG[: size // 0]])
        with backend.open_writer() as writer:
            writer.write([BIG[:size]])
            writer.discard()
            writer.discard()
            with pytest.raises(BackendError):
                writer.write([b"x"])
            with pytest.raises(BackendError):
                writer.commit(PACK)
        assert list(backend.list("")) == []
        assert list(backend.list_temporaries()) == []

    def test_a_committed_writer_is_used_up(self, backend):
        with backend.open_writer() as writer:
            writer.write([b"x"])
            writer.commit(PACK)
            with pytest.raises(BackendError):
                writer.write([b"y"])
            with pytest.raises(BackendError):
                writer.commit("packs/0b/other")
        assert [entry.key for entry in backend.list("")] == [PACK]
        assert list(backend.list_temporaries()) == []

    def test_writers_side_by_side(self, backend):
        with backend.open_writer() as one, backend.open_writer() as two:
            for number in range(20):
                one.write([b"a%d" % number])
                two.write([b"b%d" % number])
            two.commit("packs/02/two")
            one.commit("packs/01/one")
        assert backend.read("packs/01/one") == b"".join(b"a%d" % number for number in range(20))
        assert backend.read("packs/02/two") == b"".join(b"b%d" % number for number in range(20))

    # ---- listing

    def test_list_is_sorted_by_whole_keys(self, backend):
        keys = ["a/b/c", "a/b-c", "a/b.c", "a/b0", "a-b/c", "a.b", "a0", "format", "a/b=", "a/b@1.2"]
        for key in keys:
            backend.put(key, [key.encode()])
        entries = list(backend.list(""))
        assert [entry.key for entry in entries] == sorted(keys)
        assert [entry.size for entry in entries] == [len(key) for key in sorted(keys)]
        assert list(backend.list_keys("")) == sorted(keys)

    def test_what_is_no_key_is_listed_apart(self, backend):
        for key in ("desktop.ini", PACK, RECORD):
            backend.put(key, [b"x"])
        assert list(backend.list_foreign()) == []
        assert list(backend.list_keys("")) == sorted(["desktop.ini", PACK, RECORD])

    def test_list_below_a_prefix(self, backend):
        for key in ("packs/aa/1", "packs/ab/2", "packs-old/aa/3", "index/4", "packs2", "refs/packs/5"):
            backend.put(key, [b"x"])
        assert [entry.key for entry in backend.list("packs/")] == ["packs/aa/1", "packs/ab/2"]
        assert [entry.key for entry in backend.list("packs/ab/")] == ["packs/ab/2"]
        assert list(backend.list("quarantine/")) == []
        assert list(backend.list("packs/ff/")) == []
        for prefix in ("", "packs/", "packs/ab/", "refs/", "quarantine/", "packs/ff/"):
            assert list(backend.list_keys(prefix)) == [entry.key for entry in backend.list(prefix)]

    def test_bad_prefixes_are_refused(self, backend):
        for prefix in ("packs", "/", "a//", "../", "packs/../", ".tmp/", "P/"):
            with pytest.raises(ConfigError):
                list(backend.list(prefix))
            with pytest.raises(ConfigError):
                list(backend.list_keys(prefix))

    def test_list_skips_what_is_being_written(self, backend):
        with backend.open_writer() as writer:
            writer.write([BIG])
            assert list(backend.list("")) == list(backend.list_keys("")) == []
            writer.commit(PACK)

    def test_listing_many(self, backend):
        keys = [f"packs/{number % 16:02x}/{number:064x}" for number in range(120)]
        for key in keys:
            backend.put(key, [b"x"])
        assert [entry.key for entry in backend.list("packs/")] == sorted(keys)
        assert list(backend.list_keys("packs/")) == sorted(keys)

    def test_times_are_the_clocks(self, backend):
        before = backend.now()
        backend.put(PACK, [b"x"])
        for entry in (backend.stat(PACK), *backend.list("")):
            assert entry.key == PACK
            assert math.isnan(entry.modified) or -2 <= entry.modified - before < 60
        assert abs(backend.now() - time.time()) < 60
        assert [entry.key for entry in backend.list("")] == [PACK], "reading the clock leaves nothing behind"

    # ---- delete

    def test_delete(self, subject):
        backend = subject.backend
        backend.put(PACK, [b"x"])
        backend.put("packs/0a/other", [b"y"])
        backend.delete(PACK)
        backend.delete(PACK)
        backend.delete("packs/ff/never")
        for handle in (backend, subject.reopen()):
            with pytest.raises(ObjectNotFound):
                handle.read(PACK)
            with pytest.raises(ObjectNotFound):
                handle.stat(PACK)
            assert [entry.key for entry in handle.list("")] == ["packs/0a/other"]
        backend.put(PACK, [b"z"])
        assert backend.read(PACK) == b"z"

    def test_delete_many(self, subject):
        backend = subject.backend
        keys = [PACK, "packs/0a/one", "packs/0a/two", "packs/0b/three"]
        for key in [*keys, "packs/0a/other"]:
            backend.put(key, [b"x"])
        backend.delete_many([*keys, "packs/ff/never"])
        backend.delete_many([])
        for handle in (backend, subject.reopen()):
            assert [entry.key for entry in handle.list("")] == ["packs/0a/other"]

    # ---- the rest

    def test_an_outage_is_not_an_absence(self, subject):
        backend = subject.backend
        backend.put(PACK, [b"x"])
        if subject.lose_root is None:
            return
        subject.lose_root()
        for question in (
            lambda: backend.read(PACK),
            lambda: backend.read_into(PACK, memoryview(bytearray(1))),
            lambda: backend.stat(PACK),
            lambda: list(backend.list("packs/")),
            lambda: list(backend.list("")),
            lambda: list(backend.list_keys("packs/")),
            lambda: list(backend.list_keys("")),
            lambda: backend.delete(PACK),
            lambda: backend.delete_many([PACK, "packs/0a/other"]),
        ):
            with pytest.raises(BackendUnavailable):
                question()
        with pytest.raises(ConfigError, match="There is no"):
            subject.reopen()

    def test_make_durable(self, backend):
        backend.put(PACK, [b"x"])
        backend.make_durable([PACK])
        backend.make_durable([])

    def test_publish_lock_is_given_back(self, backend):
        for exclusive in (False, True, False):
            with backend.publish_lock(exclusive=exclusive) as held:
                assert held in (True, False)

    def test_local_path_holds_exactly_the_object(self, backend):
        backend.put(PACK, [b"abc"])
        path = backend.local_path(PACK)
        if path is not None:
            with open(path, "rb") as file:
                assert file.read() == b"abc"

    def test_threads(self, backend):
        def work(number):
            key = f"packs/{number % 4:02x}/{number}"
            data = bytes([number]) * 10_000
            if number % 2:
                backend.put(key, [data])
            else:
                with backend.open_writer() as writer:
                    writer.write([data])
                    writer.commit(key)
            return all(backend.read(key, start=at, length=100) == data[:100] for at in range(0, 5000, 1250))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(64)))
        assert sum(1 for _ in backend.list("packs/")) == 64

    def test_url_and_repr(self, backend):
        assert "://" in backend.url
        assert backend.url in repr(backend)

    def test_close(self, subject):
        with subject.reopen() as other:
            other.put(PACK, [b"x"])
        assert subject.backend.read(PACK) == b"x"
