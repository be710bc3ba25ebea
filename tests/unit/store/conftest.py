"""A store, a model, and what an attacker writes; tests that need another store have their own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from fakes.folders import write_tree
from fakes.forge import Forge
from fakes.stores import noise

from casstore import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    write_tree(folder, {"config.json": b'{"layers": 2}', "sub/weights.bin": noise(7, 30_000)})
    return folder


@pytest.fixture
def kept(store, model):
    return store.add(model, ref="models/m")


@pytest.fixture
def open_folder():
    """A folder that an ordinary user can reach, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="casstore-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def forge(tmp_path):
    made = Forge(tmp_path / "store")
    yield made
    made.store.close()


@pytest.fixture
def outside(tmp_path):
    """A place beside the destination that nobody may touch; the test fails if anybody did."""
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "sandbox/precious").write_bytes(b"precious")
    (tmp_path / "sandbox/folder").mkdir()
    yield tmp_path / "sandbox"
    left = {str(path.relative_to(tmp_path / "sandbox")) for path in (tmp_path / "sandbox").rglob("*")}
    assert {name for name in left if not name.startswith("out")} == {"precious", "folder"}
    assert (tmp_path / "sandbox/precious").read_bytes() == b"precious"
