"""The copies of records that a machine keeps must never outlive what they are copies of."""

from __future__ import annotations

import shutil

import pytest
from fakes.stores import model_of, read_model, write_model

from casstore.api.store import Store
from casstore.errors import RefNotFound

A, B = model_of(x=b"a"), model_of(x=b"b")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that opens the store from the machine of that name."""

    def open_from(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return Store(tmp_path / "store", create=True, durability="none")

    return open_from


@pytest.fixture
def folders(tmp_path):
    return [write_model(content, tmp_path / name) for name, content in (("a", A), ("b", B))]


def trim(store, name):
    """Do what a collector does to a deleted ref after a while: its records go."""
    for entry in list(store.backend.list("refs/")):
        if name in entry.key:
            store.backend.delete(entry.key)


def test_a_tag_that_was_trimmed_and_set_anew_elsewhere(machine, folders):
    """A tag's records are numbered, and the numbers start again."""
    one = machine("one")
    one.add(folders[0], ref="models/a")
    one.add(folders[1], ref="models/b")
    one.tag("moving", "models/a")
    assert read_model(one, "tags/moving") == A
    assert one.refs("tags/")["tags/moving"].target is not None
    one.rm("tags/moving")
    trim(one, "moving")
    two = machine("two")
    two.tag("moving", "models/b")
    assert read_model(two, "tags/moving") == B
    assert read_model(one, "tags/moving") == B
    wanted = two.refs("tags/")["tags/moving"]
    assert one.refs("tags/") == {"tags/moving": wanted}
    assert machine("one").refs("tags/") == {"tags/moving": wanted}


def test_a_store_that_was_put_back_from_an_older_copy(machine, folders, tmp_path):
    one = machine("one")
    one.add(folders[0], ref="models/a")
    one.add(folders[1], ref="models/b")
    one.tag("moving", "models/a")
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    one.tag("moving", "models/b")
    one.add(folders[0], ref="models/b")
    assert (read_model(one, "tags/moving"), read_model(one, "models/b")) == (B, A)
    one.close()
    (tmp_path / "store").rename(tmp_path / "newer")
    (tmp_path / "copy").rename(tmp_path / "store")
    one = machine("one")
    assert (read_model(one, "tags/moving"), read_model(one, "models/b")) == (A, B)
    one.tag("moving", "models/a")
    one.rm("models/b")
    for store in (one, machine("two")):
        assert list(store.refs()) == ["models/a", "tags/moving"]
        with pytest.raises(RefNotFound):
            store.resolve("models/b")


def test_records_are_kept_so_that_they_need_not_be_read_again(machine, folders, monkeypatch):
    one = machine("one")
    one.add(folders[0], ref="models/a")
    record = one.refs()["models/a"]
    one.close()
    again = machine("one")
    read = []
    inner = again.backend.read
    monkeypatch.setattr(again.backend, "read", lambda key, **_: read.append(key) or inner(key, **_))
    assert again.refs() == {"models/a": record}
    assert again.resolve("models/a").record == record
    assert [key for key in read if key.startswith("refs/")] == []
