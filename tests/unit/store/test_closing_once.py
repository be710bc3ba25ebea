"""After close(2) has failed, the number is free, and may be another thread's file: nothing closes it again."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager

import pytest
from fakes.stores import noise

import casstore
from casstore.backend import MemoryBackend
from casstore.objects.index.segment_cache import SegmentCache


@contextmanager
def failing_close(monkeypatch, module, *, nth):
    """Let the nth close(2) of a module fail; whoever closes that number again closes somebody else's file.

    Yields a function that says whether it came to that call at all.
    """
    real, null = os.close, os.open(os.devnull, os.O_RDONLY)
    count, taken = 0, []

    def close(fd):
        nonlocal count
        if not sys._getframe(1).f_code.co_filename.endswith(module):
            real(fd)
            return
        assert fd not in taken, "closed again"
        count += 1
        real(fd)
        if count == nth + 1:
            os.dup2(null, fd)
            taken.append(fd)
            raise OSError(errno.EIO, "close failed")

    monkeypatch.setattr(os, "close", close)
    yield lambda: bool(taken)
    monkeypatch.undo()
    for fd in [*taken, null]:
        os.fstat(fd)
        real(fd)


def test_a_checkout(tmp_path, monkeypatch):
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    for at, name in enumerate(("a", "sub/b")):
        (model / name).write_bytes(noise(at, 50_000))
    with casstore.Store(tmp_path / "store", create=True, durability="none") as store:
        store.add(model, ref="models/m")
        nth, came = 0, True
        while came:
            with failing_close(monkeypatch, "checkout.py", nth=nth) as failed:
                try:
                    store.get("models/m", tmp_path / f"out{nth}")
                except (OSError, casstore.CasstoreError):
                    assert not (tmp_path / f"out{nth}").exists()
                came = failed()
            nth += 1
        assert nth > 5


@pytest.mark.parametrize("nth", [0, 1])
def test_a_copy_of_a_segment(tmp_path, monkeypatch, nth):
    with failing_close(monkeypatch, "segment_cache.py", nth=nth):
        for at in range(2):
            # A cache that failed makes no more copies.
            cache = SegmentCache(MemoryBackend("closing"), str(tmp_path / "copies"))
            with cache.new_copy() as copy:
                copy.write(b"x")
                copy.publish(f"index/{at}")
