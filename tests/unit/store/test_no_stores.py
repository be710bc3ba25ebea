"""Folders that are no store, or one of another version: refused by name, and left as they are."""

from __future__ import annotations

import pytest
from fakes.folders import tree_of, write_tree

from casstore import (
    ConfigError,
    IntegrityError,
    Store,
)
from casstore.errors import BackendError, UnsupportedVersion
from casstore.format import canonical, envelope


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no directory.*create=True"):
        Store(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_is_no_store(tmp_path):
    write_tree(tmp_path / "folder", {"notes.txt": b"mine"})
    before = tree_of(tmp_path / "folder")
    with pytest.raises(ConfigError, match=r"folder is not a casstore store"):
        Store(tmp_path / "folder")
    with pytest.raises(ConfigError, match=r"folder is not empty"):
        Store(tmp_path / "folder", create=True)
    assert tree_of(tmp_path / "folder") == before


@pytest.mark.parametrize("create", [False, True])
def test_a_file_is_no_store(tmp_path, create):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises((ConfigError, BackendError), match="file"):
        Store(tmp_path / "file", create=create)


def test_creating_a_store_again_opens_it(tmp_path):
    first = Store(tmp_path / "s", create=True).store_id
    assert Store(tmp_path / "s", create=True).store_id == first


def _format(**changes):
    body = {"type": "store", "version": 1, "hash": "blake3-256", "id": bytes(16), "requires": []}
    return envelope.seal(b"casstore", canonical.encode({**body, **changes}))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (_format(version=2), UnsupportedVersion, "version 2; upgrade"),
        (_format(requires=["encryption"]), UnsupportedVersion, "requires encryption; upgrade"),
        (_format(hash="sha3-256"), UnsupportedVersion, "sha3-256; upgrade"),
        (_format(version=0), IntegrityError, "version 0"),
        (_format(id=b"short"), IntegrityError, "id"),
        (_format(type="record"), IntegrityError, "store"),
        (_format()[:-1], IntegrityError, "format"),
        (_format()[:5], IntegrityError, "format"),
        (b"", IntegrityError, "format"),
        (b"a format of something else" * 4, IntegrityError, "format"),
    ],
)
def test_a_format_file_that_is_wrong(tmp_path, data, error, message):
    write_tree(tmp_path / "s", {"format": data})
    for create in (False, True):
        with pytest.raises(error, match=message) as caught:
            Store(tmp_path / "s", create=create)
        assert isinstance(caught.value, UnsupportedVersion) == (error is UnsupportedVersion)
    assert (tmp_path / "s/format").read_bytes() == data


@pytest.mark.parametrize(
    "arguments",
    [{"durability": "some"}, {"shared": "world"}, {"read_only": True, "create": True}, {"key": "x"}],
)
def test_settings_that_make_no_sense(tmp_path, arguments):
    with pytest.raises(ConfigError):
        Store(tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()
