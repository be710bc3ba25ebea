"""How a place becomes a store, beside others that make it one."""

from __future__ import annotations

import pytest

from casstore import Store
from casstore.errors import ConfigError
from casstore.store import identity


def test_a_store_that_another_made_and_filled_meanwhile(tmp_path, monkeypatch):
    read = identity._read_format

    def late(backend):
        """Find no store yet; by the time the place is listed, another has made one and added to it."""
        monkeypatch.setattr(identity, "_read_format", read)
        assert read(backend) is None
        (tmp_path / "m").write_bytes(b"weights")
        with Store(tmp_path / "store", create=True) as other:
            other.add(tmp_path / "m", ref="models/m")

    (tmp_path / "store").mkdir()
    monkeypatch.setattr(identity, "_read_format", late)
    with Store(tmp_path / "store", create=True) as store, Store(tmp_path / "store") as opened:
        assert store.store_id == opened.store_id
        assert list(store.refs()) == ["models/m"]


def test_a_place_that_others_use_stays_theirs(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        Store(tmp_path, create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
