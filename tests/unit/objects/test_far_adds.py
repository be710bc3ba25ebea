"""Adding straight to a store that is a network away: several packs on their way at once, and no more than that."""

from __future__ import annotations

import threading

import pytest
from fakes.stores import model_of, noise, read_model, write_model
from fakes.sync_stores import Side

from casstore.objects.publishing import pack_writer

UPLOADS = 3
CONTENT = model_of(**{f"part-{number}": noise(number, 1 << 20) for number in range(12)})


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_writer, "REMOTE_PACK_TARGET", 128 << 10)
    monkeypatch.setattr(pack_writer, "UPLOADS", UPLOADS)
    # A worker's block is what packs are filled with.
    monkeypatch.setattr("casstore.store.adding.ingest.BLOCK", 128 << 10)
    return Side("objects", tmp_path)


class Packs:
    """Counts what an add does with packs: those open, those on their way, and the most of each at once."""

    def __init__(self, side):
        self._call = side.faulty.call
        self._lock = threading.Lock()
        self._open = self._sent = 0
        self.most_open = self.most_sent = self.sent = 0
        self.together = threading.Barrier(UPLOADS, timeout=30)
        side.faulty.call = self.call

    def call(self, op, key, work):
        if op == "open_writer":
            with self._lock:
                self._open += 1
                self.most_open = max(self.most_open, self._open)
        if op != "commit":
            return self._call(op, key, work)
        with self._lock:
            self._sent += 1
            self.sent += 1
            self.most_sent = max(self.most_sent, self._sent)
            together = self.sent <= UPLOADS
        if together:
            self.together.wait()  # Raises unless that many are on their way at once.
        try:
            return self._call(op, key, work)
        finally:
            with self._lock:
                self._sent -= 1
                self._open -= 1


def test_an_add_sends_several_packs_at_once_and_holds_back_the_rest(there, tmp_path):
    packs = Packs(there)
    there.broken().add(write_model(CONTENT, tmp_path / "model"), ref="models/m")
    assert packs.sent > 2 * UPLOADS
    assert packs.most_sent == UPLOADS
    assert packs.most_open <= UPLOADS + 2  # on their way, the one that waits, and the one that is filled
    assert read_model(there.plain, "models/m") == CONTENT


def test_a_pack_that_cannot_be_sent_ends_the_add_before_the_rest_is_read(there, tmp_path):
    packs = Packs(there)
    inner = packs.together.wait

    def fail():
        inner()
        raise ConnectionResetError("The server is gone.")

    packs.together.wait = fail
    with pytest.raises(ConnectionResetError):
        there.broken().add(write_model(CONTENT, tmp_path / "model"), ref="models/m")
    assert packs.sent <= 2 * UPLOADS + 1
    assert not there.plain.refs()
