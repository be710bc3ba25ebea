"""A cache keeps its store below a bound in the background: nothing in use goes, and no pass waits, fails or is slowed down by it."""

import os
import signal
import sys
import threading
import time

import pytest

from casstore import OliveCache, Store
from casstore.cache.quota import collector
from casstore.cache.quota.collector import alone, keep_bound, measure
from casstore.cache.quota.ledger import MAX_AGE, Ledger, Measured
from casstore.errors import ConfigError
from casstore.ops.gc.sweep import Sweep

SIZE = 200_000
BOUND = 6 * SIZE


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "in.bin"
    path.write_bytes(b"x")
    return path


def settings(tmp_path, **others):
    return {"cache_dir": str(tmp_path / "cache"), "max_store_bytes": BOUND, **others}


def run(cache, model, numbers, ran=None):
    """Run one pass for each number, whose output is unlike all others."""

    def make(source, output, number):
        if ran is not None:
            ran.append(number)
        (output / "o.bin").write_bytes(os.urandom(SIZE))

    return [cache.run_pass("make", make, model, {"number": number}, version="1") for number in numbers]


def settle(cache):
    """Wait until no collector works for this cache, and none is due."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        cache.quota.check()
        if cache.quota._child is None:
            return
        time.sleep(0.02)
    raise AssertionError("the collector does not end")


def stored(place):
    with Store(place / "cache/store") as store:
        return measure(store)


def test_the_bound_holds_from_run_to_run(tmp_path, model):
    for start in (0, 8):
        with OliveCache(settings(tmp_path)) as cache:
            run(cache, model, range(start, start + 8))
            settle(cache)
            assert not cache.problems
        settle(cache)
        assert stored(tmp_path) <= BOUND
    with OliveCache(settings(tmp_path, max_store_bytes=None)) as cache:
        ran = []
        run(cache, model, range(16), ran)
        assert 0 < len(ran) < 16, "some are still there"


def test_nothing_that_a_running_pipeline_has_hit_or_made_goes(tmp_path, model):
    with OliveCache(settings(tmp_path)) as cache:
        run(cache, model, range(4))
    with OliveCache(settings(tmp_path)) as one, OliveCache(settings(tmp_path)) as other:
        ran = []
        run(one, model, [0, 1], ran)
        assert ran == []
        run(other, model, range(4, 12))
        settle(other)
        assert not one.problems
        for name in [*one.models.list(), *other.models.list()]:
            record = one.models.record(name)
            assert record is None or not one.local.lacks(record)
        run(one, model, [0, 1, *range(4, 12)], ran)
        assert ran == []
        # Of all that nobody has asked for in these two runs, nothing could stay.
        run(one, model, [2, 3], ran)
        assert ran == [2, 3]
        settle(one)
    settle(other)
    settle(one)
    assert stored(tmp_path) <= BOUND


def test_files_of_models_that_went_are_deleted_in_time(tmp_path, model):
    with OliveCache(settings(tmp_path)) as cache:
        run(cache, model, range(12))
    settle(cache)
    with OliveCache(settings(tmp_path, max_checkout_bytes=0)):
        pass
    assert not list((tmp_path / "cache/runs").glob("*/models/o.bin"))


def test_a_warm_run_starts_no_process(tmp_path, model):
    with OliveCache(settings(tmp_path)) as cache:
        run(cache, model, range(3))
        settle(cache)
    with OliveCache(settings(tmp_path)) as cache:
        cache.quota._start = None
        run(cache, model, range(3))


def test_a_pass_is_recorded_while_a_collection_is_at_work(tmp_path, model, monkeypatch):
    with OliveCache(settings(tmp_path, max_store_bytes=None)) as cache:
        run(cache, model, range(12))
    working, go_on = threading.Event(), threading.Event()
    prepare = Sweep.prepare

    def stop(self, numbers):
        prepare(self, numbers)  # marks are read, and what stays is copied and verified
        working.set()
        assert go_on.wait(60)

    monkeypatch.setattr(Sweep, "prepare", stop)
    with Store(tmp_path / "cache/store") as store:
        ledger = Ledger(tmp_path / "cache/in-use")
        thread = threading.Thread(target=keep_bound, args=(store, ledger, BOUND))
        thread.start()
        assert working.wait(60)
        with OliveCache(settings(tmp_path, max_store_bytes=None)) as cache:
            ran = []
            run(cache, model, [100, 101], ran)
            assert thread.is_alive()
            go_on.set()
            thread.join()
            run(cache, model, [100, 101], ran)
            assert ran == [100, 101]
            assert not cache.problems
        assert measure(store) <= BOUND


def test_a_collector_that_hangs_delays_neither_a_pass_nor_the_end_for_long(tmp_path, model, monkeypatch):
    monkeypatch.setattr("casstore.cache.quota.quota._WAIT", 0.2)
    monkeypatch.setattr("casstore.cache.quota.quota._START", "import time; time.sleep(600)")
    with OliveCache(settings(tmp_path)) as cache:
        run(cache, model, range(10))
        child = cache.quota._child
        assert child is not None
    os.kill(child, signal.SIGKILL)
    settle(cache)
    [problem] = cache.problems
    assert f"below {BOUND} bytes" in problem


def hide_python(cache, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")


def be_frozen(cache, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)


def damage_a_record(cache, monkeypatch):
    [record, *_] = (path for path in (cache.dirs.store / "refs/models").rglob("*@*") if path.is_file())
    record.chmod(0o644)
    record.write_bytes(b"damaged")


def fail(cache, monkeypatch):
    monkeypatch.setattr("casstore.cache.quota.quota._START", "raise SystemExit('no room')")


@pytest.mark.parametrize("break_it", [hide_python, be_frozen, damage_a_record, fail])
def test_a_collection_that_fails_is_logged_and_fails_no_pass(tmp_path, model, monkeypatch, break_it):
    with OliveCache(settings(tmp_path, max_store_bytes=None)) as cache:
        run(cache, model, range(8))
        break_it(cache, monkeypatch)
    with OliveCache(settings(tmp_path)) as cache:
        started = []
        start = cache.quota._start
        cache.quota._start = lambda bound: (started.append(bound), start(bound))
        for number in (20, 21, 22):
            run(cache, model, [number])
            settle(cache)
        ran = []
        run(cache, model, [20, 21, 22], ran)
        assert ran == []
        assert [problem for problem in cache.problems if f"below {BOUND} bytes" in problem]
        assert len(started) < 3, "it is not tried again for every pass"


def test_a_store_that_is_not_known_to_be_private_is_left_alone(tmp_path, model):
    with Store(tmp_path / "cache/store", create=True):
        pass
    with OliveCache(settings(tmp_path)) as cache:
        run(cache, model, range(10))
        [problem] = cache.problems
        assert "casstore init --private" in problem
        assert cache.quota._child is None
        assert len(cache.models.list()) == 10


def test_the_shared_cache_keeps_what_goes_here(tmp_path, model):
    shared = (tmp_path / "shared").as_uri()
    config = settings(tmp_path, cache_dir=[str(tmp_path / "cache"), shared])
    with OliveCache(config) as cache:
        run(cache, model, range(12))
    settle(cache)
    assert stored(tmp_path) <= BOUND
    with Store(tmp_path / "shared") as store:
        assert len(store.refs("models/")) == 12
    with OliveCache(config) as cache:
        ran = []
        run(cache, model, range(12), ran)
        assert ran == []


def test_one_collector_works_at_a_time(tmp_path):
    with alone(tmp_path) as first, alone(tmp_path) as second:
        assert (first, second) == (True, False)
    with alone(tmp_path) as again:
        assert again


def test_no_collector_is_started_beside_that_of_another_pipeline(tmp_path, model):
    with OliveCache(settings(tmp_path)) as cache:
        settle(cache)
        with alone(cache.dirs.locks):
            run(cache, model, range(10))
            assert cache.quota._child is None
        cache.quota.check()
        assert cache.quota._child is not None


def measured(size, **others):
    return Measured(**{"size": size, "start_above": 0, "max_bytes": 1, "time": time.time(), **others})


def test_the_ledger_counts_what_all_write(tmp_path):
    one, other = Ledger(tmp_path), Ledger(tmp_path)
    one.add(5)
    assert one.read() is None
    assert one.written() == 0, "as long as nobody measures, there is nothing to add to"
    one.begin()
    one.finish(measured(100))
    one.add(5)
    other.add(7)
    assert (other.read().size, other.written()) == (100, 12)
    other.begin()
    assert one.written() == 0


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"size": 1}'])
def test_a_damaged_ledger_means_that_the_size_is_unknown(tmp_path, data):
    ledger = Ledger(tmp_path)
    (tmp_path / "store-size.json").write_bytes(data)
    (tmp_path / "store-written").write_bytes(b"12\n\xff\n-3\n5\n7")
    assert ledger.read() is None
    assert ledger.written() == 24
    ledger.finish(measured(1, time=time.time() - 2 * MAX_AGE))
    assert ledger.read() is None


def test_a_bound_is_a_number_of_bytes(tmp_path):
    for bound in (0, -1):
        with pytest.raises(ConfigError, match="max_store_bytes"):
            OliveCache(settings(tmp_path, max_store_bytes=bound))


def test_a_collection_makes_room_so_that_not_every_pass_starts_one(tmp_path, model):
    with OliveCache(settings(tmp_path, max_store_bytes=None)) as cache:
        run(cache, model, range(8))
    with Store(tmp_path / "cache/store") as store:
        keep_bound(store, ledger := Ledger(tmp_path / "cache/in-use"), BOUND)
        assert measure(store) <= BOUND - collector.slack(BOUND)
        assert ledger.read().start_above == BOUND
