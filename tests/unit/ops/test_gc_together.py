"""Two collectors at once: what one of them deletes while the other one looks is neither damage nor a loss."""

from __future__ import annotations

import pytest
from fakes.stores import assert_clean, model_of, noise, read_model, write_model

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.errors import IntegrityError
from casstore.objects.keys import pack_key
from casstore.ops.gc.roots import RootReader

KEPT = model_of(own=noise(1, 30_000))
GONE = model_of(own=noise(2, 30_000))
POLICY = GcPolicy(orphans_now=True, repack=1.0)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        opened.add(write_model(KEPT, tmp_path / "kept"), ref="models/kept", stat_cache=False)
        opened.add(write_model(GONE, tmp_path / "gone"), ref="models/gone", stat_cache=False)
        yield opened


def after_the_records(monkeypatch, work, *, times=1):
    """Do something after a collector has read the records, which is after it has listed the packs."""
    real, left = RootReader.read, [work] * times

    def read(self, now):
        roots = real(self, now)
        if left:
            left.pop()()
        return roots

    monkeypatch.setattr(RootReader, "read", read)


def test_a_ref_and_its_pack_go_while_another_collector_looks(store, monkeypatch):
    def delete():
        with Store(store.backend.url, durability="none") as other:
            other.rm("models/gone")
            assert execute_gc(other, plan_gc(other, POLICY)).packs_deleted == 1

    after_the_records(monkeypatch, delete)
    plan = plan_gc(store, POLICY)
    assert plan.missing == {}
    assert execute_gc(store, plan).ok
    assert read_model(store, "models/kept") == KEPT
    assert_clean(store)


def test_a_pack_that_somebody_took_away_is_reported(store, monkeypatch):
    """Its ref is still there: the next look proves what is absent, and goes on with the rest."""
    (pack,) = store.resolve("models/gone").record.packs
    after_the_records(monkeypatch, lambda: store.backend.delete(pack_key(pack)))
    plan = plan_gc(store, POLICY)
    assert list(plan.missing) == ["models/gone"]


def test_a_damaged_pack_stops_it_as_before(store, tmp_path):
    (pack,) = store.resolve("models/gone").record.packs
    path = store.backend.local_path(pack_key(pack))
    with open(path, "r+b") as file:
        file.truncate(100)
    with Store(store.backend.url) as other, pytest.raises(IntegrityError, match="models/gone"):
        plan_gc(other, POLICY)
