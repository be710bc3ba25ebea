from __future__ import annotations

import pytest
from fakes.faulty_backend import FaultyBackend
from fakes.posix_model import SimulatedCrash

from casstore.backend import LocalBackend, MemoryBackend
from casstore.errors import AccessDenied, BackendUnavailable, ObjectNotFound


@pytest.fixture
def faulty(request):
    return FaultyBackend(MemoryBackend(f"test_faulty/{request.node.nodeid}"))


def script(backend):
    backend.put("a", [b"1"])
    with backend.open_writer() as writer:
        writer.write([b"2"])
        writer.commit("b")
    backend.create("c", [b"3"])
    list(backend.list(""))
    backend.delete("a")


def script_of_a_writer(backend):
    with backend.open_writer() as writer:
        writer.write([b"x"])
        writer.commit("b")


def test_calls_are_counted(faulty):
    script(faulty)
    assert faulty.calls == [
        ("put", "a"),
        ("open_writer", ""),
        ("write", ""),
        ("commit", "b"),
        ("create", "c"),
        ("list", ""),
        ("delete", "a"),
    ]


def test_stop_at_every_call(faulty):
    stages = ["", "a", "a", "a", "ab", "abc", "abc", "bc"]
    for k, stage in enumerate(stages):
        inner = MemoryBackend(f"test_faulty/stop/{k}")
        faulty = FaultyBackend(inner)
        faulty.stop_at(k)
        if k < len(stages) - 1:
            with pytest.raises(SimulatedCrash):
                script(faulty)
            with pytest.raises(SimulatedCrash):
                faulty.stat("a")
        else:
            script(faulty)
        assert "".join(entry.key for entry in inner.list("")) == stage


def test_a_stopped_writer_leaves_its_temporary(tmp_path):
    inner = LocalBackend(tmp_path, create=True)
    faulty = FaultyBackend(inner)
    faulty.stop_at(2)
    with pytest.raises(SimulatedCrash):
        script_of_a_writer(faulty)
    assert len(list(inner.list_temporaries())) == 1


def test_errors(faulty):
    faulty.fail_at(1, AccessDenied("no"))
    faulty.put("a", [b"1"])
    with pytest.raises(AccessDenied):
        faulty.put("b", [b"2"])
    faulty.fail_next("stat", BackendUnavailable("later"), times=2)
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            faulty.stat("a")
    assert faulty.stat("a").size == 1
    with pytest.raises(ObjectNotFound):
        faulty.stat("b")


def test_lost_answers(faulty):
    faulty.lose_answer_at(0)
    with pytest.raises(BackendUnavailable):
        faulty.put("a", [b"1"])
    assert faulty.read("a") == b"1"


def test_lying_listings(faulty):
    for key in "abcd":
        faulty.put(key, [b"x"])
    faulty.hide(["b"])
    assert [entry.key for entry in faulty.list("")] == ["a", "c", "d"]
    faulty.shorten_listings(2)
    assert [entry.key for entry in faulty.list("")] == ["a", "c"]
    faulty.heal()
    faulty.freeze_listings()
    faulty.put("e", [b"x"])
    faulty.delete("a")
    assert [entry.key for entry in faulty.list("")] == ["a", "b", "c", "d"]
    faulty.heal()
    assert [entry.key for entry in faulty.list("")] == ["b", "c", "d", "e"]


def test_flipped_bits(faulty):
    faulty.put("a", [bytes(8)])
    faulty.corrupt("a", 5, bit=2)
    assert faulty.read("a") == b"\0\0\0\0\0\4\0\0"
    assert faulty.read("a", start=4, length=2) == b"\0\4"
    assert faulty.read("a", start=6) == b"\0\0"
    buffer = bytearray(3)
    assert faulty.read_into("a", memoryview(buffer), start=4) == 3
    assert buffer == b"\0\4\0"
    assert faulty.local_path("a") is None
