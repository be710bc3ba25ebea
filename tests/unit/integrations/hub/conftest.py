"""A store of small models, served on loopback."""

from __future__ import annotations

import pytest
from fakes.hub_server import hub_server, write_model

import casstore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "minilm")


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    with casstore.open(tmp_path_factory.mktemp("hub") / "store", create=True, durability="none") as opened:
        older = write_model(folder.parent / "older", seed=1)
        opened.add(older, ref="models/org/minilm")
        opened.tag("v1", "models/org/minilm")
        opened.tag("release/1.0", "models/org/minilm")
        opened.add(folder, ref="models/org/minilm", base="v1")
        opened.add(folder, ref="models/minilm")
        opened.add(folder / "1_Pooling", ref="models/deep/er/name")
        yield opened


@pytest.fixture(scope="module")
def served(store):
    with hub_server(store) as app:
        yield app
