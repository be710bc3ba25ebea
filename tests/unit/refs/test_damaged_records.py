"""Records that are damaged, in the wrong place or from the future: told by name, and other refs are read."""

from __future__ import annotations

import shutil

import pytest
from fakes.damage import (
    SMALL,
    SMALL_FILES,
    flipped,
    problems_of,
    read_all,
    record_of,
    replace,
)

from casstore import Store
from casstore.errors import FormatError, UnsupportedVersion
from casstore.format import canonical, envelope, names
from casstore.ops.check import check


def test_a_record_under_the_key_of_another_ref(copied):
    source = record_of(copied, "models/second")
    seq, write = source.split("@")[1].split(".")
    for ref, number in (
        ("models/first", int(seq, 16) + 1),
        ("models/second", int(seq, 16) + 1),
        ("models/new", 1),
    ):
        key = f"{names.directory(ref)}{number:016x}.{write}"
        (copied / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(copied / source, copied / key)
        assert "record of another ref" in problems_of(copied)[key]
        with Store(copied) as store:
            with pytest.raises(FormatError, match="record of another ref"):
                store.model(ref)
            told = []
            store.on_damage = told.append
            assert ref not in store.refs()
            assert ref not in {row.name for row in store.find()}
            store.stats()
            assert {(damage.name, damage.key) for damage in told} == {(ref, key)}
            with pytest.raises(FormatError, match="record of another ref"):
                store.refs(strict=True)
        (copied / key).unlink()
    assert problems_of(copied) == {}


def body_of(path, magic=b"cass-ref"):
    return canonical.decode(envelope.unseal(magic, path.read_bytes(), key="record"), what="record")


@pytest.mark.parametrize("change", [{"version": 2}, {"requires": ["signature"]}])
def test_a_record_from_the_future_is_not_damage(copied, change):
    key = record_of(copied, "models/first")
    body = body_of(copied / key)
    replace(copied / key, envelope.seal(b"cass-ref", canonical.encode({**body, **change})))
    with Store(copied) as store:
        with pytest.raises(UnsupportedVersion, match="upgrade casstore") as caught:
            store.model("models/first")
        assert key in str(caught.value)
        assert set(store.refs()) == {"models/second"}
        with pytest.raises(UnsupportedVersion, match="upgrade casstore"):
            store.refs(strict=True)
        assert read_all(store, {"models/second": SMALL["models/second"]}) == 2
    assert "upgrade casstore" in problems_of(copied)[key]


def test_a_record_with_keys_from_the_future_is_read_and_kept(copied):
    key = record_of(copied, "models/first")
    body = body_of(copied / key)
    replace(copied / key, envelope.seal(b"cass-ref", canonical.encode({**body, "mood": "good"})))
    with Store(copied) as store:
        assert store.refs()["models/first"].extra == {"mood": "good"}
        assert read_all(store, SMALL) == SMALL_FILES
    assert problems_of(copied) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"type": "model"},
        {"version": 0},
        {"version": -1},
        {"seq": "1"},
        {"seq": 7},
        {"write": b"short"},
        {"write": bytes(16)},
        {"name": "models/second"},
        {"target": b"short"},
        {"target": 5},
        {"manifest": "text"},
        {"metadata": []},
        {"packs": b"odd"},
        {"exclusive": 1},
        {"inline": 4},
        {"requires": "signature"},
    ],
)
def test_a_record_that_says_impossible_things(copied, change):
    key = record_of(copied, "models/first")
    body = body_of(copied / key)
    replace(copied / key, envelope.seal(b"cass-ref", canonical.encode({**body, **change})))
    with Store(copied) as store:
        with pytest.raises(FormatError) as caught:
            store.model("models/first")
        assert not isinstance(caught.value, UnsupportedVersion)
        assert key in str(caught.value)
        assert read_all(store, {"models/second": SMALL["models/second"]}) == 2
    assert key in problems_of(copied)


def test_a_damaged_record_is_found_beside_a_machine_that_remembers_it(small, tmp_path):
    """`check` looks at the store, never at this machine's copies."""
    shutil.copytree(small, tmp_path / "copy")
    with Store(tmp_path / "copy") as store:
        assert read_all(store, SMALL) == SMALL_FILES
    key = record_of(tmp_path / "copy", "models/first")
    data = (tmp_path / "copy" / key).read_bytes()
    replace(tmp_path / "copy" / key, flipped(data, 60, 1))
    with Store(tmp_path / "copy") as store:
        assert read_all(store, {"models/first": SMALL["models/first"]}) == 3
        assert {problem.key for problem in check(store).problems} == {key}
