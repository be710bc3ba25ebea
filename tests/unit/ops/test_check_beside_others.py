"""A check while others delete, collect and add: what they took away is no damage, and what is damaged is reported."""

from __future__ import annotations

import pytest
from fakes.stores import model_of, noise, write_model

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.objects.keys import pack_key
from casstore.ops import check as package
from casstore.ops.check import check

SHARED = noise(1, 30_000)
MODELS = {
    "models/gone": model_of(own=noise(2, 30_000), shared=SHARED),
    "models/kept": model_of(shared=SHARED),
}
POLICY = GcPolicy(orphans_now=True, repack=1.0)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        for ref, content in MODELS.items():
            opened.add(write_model(content, tmp_path / ref), ref=ref, stat_cache=False)
        yield opened


@pytest.fixture
def meanwhile(monkeypatch):
    """Let something happen when the packs are listed and their footers are not read yet."""

    def once(work):
        real, left = package.check_packs, [work]

        def check_packs(*arguments, **options):
            if left:
                left.pop()()
            return real(*arguments, **options)

        monkeypatch.setattr(package, "check_packs", check_packs)

    return once


def collect_by_another(store, ref):
    with Store(store.backend.url, durability="none") as other:
        other.rm(ref)
        assert execute_gc(other, plan_gc(other, POLICY)).packs_deleted > 0


def test_a_ref_and_its_packs_go(store, meanwhile):
    """Of the other ref, the objects are in a fresh pack that was not listed."""
    meanwhile(lambda: collect_by_another(store, "models/gone"))
    report = check(store)
    assert report.problems == ()


def test_a_pack_that_somebody_took_away_is_damage(store, meanwhile):
    packs = {pack for record in store.refs().values() for pack in record.packs}
    meanwhile(lambda: [store.backend.delete(pack_key(pack)) for pack in packs])
    report = check(store)
    assert sum(problem.key.startswith("refs/") for problem in report.problems) == len(MODELS)
    assert report.models == len(MODELS)


def test_damage_is_reported_once_however_often_packs_change(store, meanwhile, tmp_path):
    (pack,) = store.resolve("models/gone").record.packs

    def work():
        with open(store.backend.local_path(pack_key(pack)), "r+b") as file:
            file.truncate(100)
        with Store(store.backend.url, durability="none") as other:
            other.add(write_model(model_of(new=noise(9, 20_000)), tmp_path / "new"), ref="models/new")

    meanwhile(work)
    report = check(store)
    keys = [problem.key for problem in report.problems]
    assert keys.count(pack_key(pack)) == 1
    assert len(set(keys)) == len(keys)


def test_a_ref_and_its_packs_go_before_packs_are_listed(store, monkeypatch):
    real = package.check_records

    def check_records(*arguments):
        records = real(*arguments)
        collect_by_another(store, "models/gone")
        return records

    monkeypatch.setattr(package, "check_records", check_records)
    assert check(store).problems == ()
