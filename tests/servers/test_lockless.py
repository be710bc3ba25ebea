"""A folder that is one machine's own and that others write to over SFTP: they cannot hold its lock, and say so first."""

from __future__ import annotations

import pytest
from fakes.collector import collect_alone, packs_of, unsafe_objects
from fakes.stores import assert_clean, model_of, noise, read_model, write_model

from casstore import Store
from casstore.backend.base import LOCKLESS

CONTENT = model_of(own=noise(1, 100_000))


@pytest.fixture
def near(tmp_path):
    """Return the store as its own machine sees it; its only model is deleted, so its pack is free for the taking."""
    with Store(tmp_path / "store", create=True) as store:
        store.add(write_model(CONTENT, tmp_path / "model"), ref="models/old")
        store.rm("models/old")
        yield store


@pytest.fixture
def far(near, sftp_server, tmp_path):
    with Store(sftp_server.url(tmp_path / "store"), **sftp_server.options) as store:
        yield store


def test_the_marker_is_there_before_the_first_pack(near, far, tmp_path):
    assert not (tmp_path / "store" / LOCKLESS).exists(), "opening writes nothing"
    packs = packs_of(near.backend)
    with near.backend.publish_lock(exclusive=True, blocking=False) as alone, far.publication():
        assert alone
        assert near.backend.has_lockless_writers()
        assert packs_of(near.backend) == packs
    with near.backend.publish_lock(exclusive=True) as alone:
        assert not alone
    assert collect_alone(near.backend) == []


def test_a_first_publish_while_a_collector_is_under_way(near, far, tmp_path):
    """The marker comes after everything was decided; what was acknowledged is there all the same."""
    gone = collect_alone(near.backend, meanwhile=lambda: far.add(tmp_path / "model", ref="models/new"))
    assert gone
    assert unsafe_objects(near.backend, "models/new") == set()
    assert read_model(near, "models/new") == CONTENT
    assert_clean(near)
