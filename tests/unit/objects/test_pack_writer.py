"""What a pack writer saves of an attempt that failed: packs that are whole, under the names of their bytes."""

from __future__ import annotations

import random

import pytest

from casstore.backend.local.backend import LocalBackend
from casstore.digest import digest
from casstore.errors import BackendUnavailable
from casstore.format.rows import Kind
from casstore.objects.keys import pack_key
from casstore.objects.publishing.pack_writer import PackWriter, encode_object


class Stop(BaseException):
    """Like KeyboardInterrupt."""


class FailingHasher:
    """Hashes, until an interrupt comes between writing and hashing."""

    def __init__(self, hasher):
        self._hasher = hasher
        self.is_armed = False

    def update(self, data):
        if self.is_armed:
            self.is_armed = False
            raise Stop
        self._hasher.update(data)

    def digest(self):
        return self._hasher.digest()


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(str(tmp_path / "store"), create=True, durability="none")


def chunk(number, size):
    return encode_object(Kind.CHUNK, random.Random(number).randbytes(size))


def append_all(writer, numbers, size):
    for number in numbers:
        writer.append(chunk(number, size))


@pytest.mark.parametrize("small", [10 << 10, 100 << 10])
def test_an_interrupt_before_bytes_are_hashed_leaves_no_pack_of_a_wrong_name(backend, small):
    writer = PackWriter(backend)
    append_all(writer, range(6), 1 << 20)
    writer._wait_for_writes(left=0)
    hasher = writer._open.hasher = FailingHasher(writer._open.hasher)
    hasher.is_armed = True
    with pytest.raises(Stop):
        append_all(writer, range(10, 160), small)
    for pack in writer.rescue():
        assert digest(backend.read(pack_key(pack.pack_id))) == pack.pack_id
    for key in backend.list_keys("packs/"):
        assert key == pack_key(digest(backend.read(key)))


def test_saving_what_was_written_raises_nothing_where_the_disk_fails(backend, monkeypatch):
    writer = PackWriter(backend)
    append_all(writer, range(6), 1 << 20)
    writer._wait_for_writes(left=0)
    writer.append(chunk(7, 1000))

    def fail(_parts):
        raise BackendUnavailable("The disk is gone.", retryable=False)

    monkeypatch.setattr(writer._open.writer, "write", fail)
    assert writer.rescue() == []
    assert not list(backend.list_keys("packs/"))
