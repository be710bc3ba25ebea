"""Collections of stores on real servers, beside machines that read and write them."""

from __future__ import annotations

import pytest
from fakes.stores import assert_clean, model_of, noise, read_model, write_model

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.format import marks
from casstore.objects.keys import PACK_PREFIX

SHARED = noise(1, 300_000)
MODELS = {
    "models/one": model_of(own=noise(2, 200_000), shared=SHARED),
    "models/two": model_of(own=noise(3, 200_000), shared=SHARED),
    "models/three": model_of(own=noise(4, 900_000), more=noise(5, 200_000)),
}
HASTY = GcPolicy(grace=0, superseded=0, orphans_now=True, repack=0.9)


@pytest.fixture
def opener(remote_place, tmp_path, monkeypatch):
    """Return a function that opens one store as a machine of some name."""
    url, access = remote_place
    opened = []

    def machine(name, **options):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name / "cache"))
        opened.append(Store(url, **access, **options))
        return opened[-1]

    yield machine
    for store in opened:
        store.close()


def packs_size(store):
    return sum(entry.size for entry in store.backend.list(PACK_PREFIX))


def test_one_machine_collects_what_another_reads(opener, tmp_path):
    here, there = opener("here", create=True), opener("there")
    for ref, content in MODELS.items():
        here.add(write_model(content, tmp_path / ref), ref=ref)
    assert read_model(there, "models/two") == MODELS["models/two"]
    here.rm("models/one")
    here.rm("models/three")

    cautious = execute_gc(here, plan_gc(here))
    assert (cautious.packs_deleted, cautious.packs_condemned) == (0, 0), "deleted models stay for a week"
    two_phases = GcPolicy(superseded=0, orphans_now=True)
    first = execute_gc(here, plan_gc(here, two_phases))
    assert (first.mode, first.packs_deleted) == ("two-phases", 0)
    assert first.packs_condemned > 0
    before = packs_size(here)
    assert execute_gc(here, plan_gc(here, two_phases)).packs_deleted == 0

    report = execute_gc(here, plan_gc(here, HASTY))
    assert report.packs_deleted >= first.packs_condemned
    assert before - packs_size(here) > 900_000
    assert read_model(there, "models/two") == MODELS["models/two"]
    there.add(tmp_path / "models/one", ref="models/one")
    for store in (here, there):
        assert read_model(store, "models/one") == MODELS["models/one"]
        assert_clean(store)
    assert plan_gc(there, HASTY).bytes_freed == 0
    assert list(here.backend.list_keys(marks.TOMBSTONE_PREFIX))
