"""Sync between machines whose clocks are a day wrong: a ref's newest value is the one with the highest number."""

from __future__ import annotations

import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from fakes.stores import assert_clean, model_of, noise, read_model
from fakes.sync_stores import Side, shown

from casstore.errors import RefConflict
from casstore.ops.sync import execute, plan_sync
from casstore.refs import refs

DAY = 86_400 * 10**9
FIRST, SECOND, THIRD = (model_of(own=noise(at, 100_000)) for at in range(3))


@pytest.fixture(params=[("local", "objects"), ("objects", "local")], ids="-".join)
def sides(request, tmp_path):
    """Return two machines' stores, and the one that they share."""
    return [Side(kind, tmp_path) for kind in (request.param[0], request.param[0], request.param[1])]


@pytest.fixture
def clock(monkeypatch):
    """Return a context in which the machine's clock is wrong by so many days."""

    @contextmanager
    def clock(days):
        with monkeypatch.context() as patch:
            patch.setattr(refs, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + days * DAY))
            yield

    return clock


def sync(src, dst, **options):
    return execute(plan_sync(src.plain, dst.plain, **options))


@pytest.mark.parametrize("ahead", [1, -1])
def test_the_newest_value_is_the_last_one_written(sides, clock, ahead):
    one, other, shared = sides
    with clock(ahead):
        one.add("models/x", FIRST)
        one.plain.tag("best", "models/x")
        one.plain.put_manifest("runs/r", b"first")
        sync(one, shared)
    with clock(-ahead):
        sync(shared, other)
        assert shown(other.plain) == shown(one.plain)
        other.add("models/x", SECOND)
        other.plain.tag("best", "models/x")
        other.plain.put_manifest("runs/r", b"second")
        assert set(sync(other, shared).refs) == {"models/x", "tags/best", "runs/r"}
    with clock(ahead):
        report = sync(shared, one)
        assert set(report.refs) == {"models/x", "tags/best", "runs/r"}
        assert not report.conflicts
    for side in sides:
        assert read_model(side.plain, "models/x") == SECOND
        assert read_model(side.plain, "tags/best") == SECOND
        assert side.plain.manifest_of(side.plain.record("runs/r")) == b"second"
        assert_clean(side.plain)
        targets = [record.target for record in side.plain.history("models/x")]
        assert len(set(targets)) == len(targets)
    times = [record.time for record in shared.plain.history("models/x")]
    assert (times[0] > times[-1]) == (ahead > 0)  # or this would show nothing
    # Nothing moves back.
    assert sync(one, shared).refs == sync(other, shared).refs == ()


@pytest.mark.parametrize("ahead", [1, -1])
def test_values_that_did_not_meet_are_a_conflict_whatever_their_times_say(sides, clock, ahead):
    one, other, shared = sides
    with clock(ahead):
        one.add("models/x", FIRST)
        sync(one, shared)
    with clock(-ahead):
        other.add("models/x", SECOND)
        report = sync(other, shared)
    assert [found.name for found in report.conflicts] == ["models/x"]
    assert read_model(shared.plain, "models/x") == FIRST
    sync(other, shared, overwrite=True)
    assert {record.target for record in shared.plain.history("models/x")} == {
        one.plain.record("models/x").target,
        other.plain.record("models/x").target,
    }
    assert read_model(shared.plain, "models/x") == SECOND


@pytest.mark.parametrize("ahead", [1, -1])
def test_a_deletion_stands_however_old_it_looks(sides, clock, ahead):
    one, _, shared = sides
    with clock(ahead):
        one.add("models/x", FIRST)
        sync(one, shared)
    with clock(-ahead):
        shared.plain.rm("models/x")
    assert "models/x" not in shared.plain.refs()
    with clock(ahead):
        one.add("models/x", THIRD)
    sync(one, shared)
    assert read_model(shared.plain, "models/x") == THIRD


def test_lists_are_ordered_by_the_times_that_writers_gave(sides, clock):
    one, other, shared = sides
    for name, side, days in (("a", one, 1), ("b", other, -1), ("c", one, 0), ("d", other, 1), ("e", one, -1)):
        with clock(days):
            side.plain.put_manifest(f"runs/{name}", name.encode())
            sync(side, shared)
    rows = shared.plain.find("runs/")
    assert [row.name for row in rows] == [f"runs/{name}" for name in "daceb"]
    assert shared.open(shared.backend).find("runs/") == rows


def test_a_tag_that_two_move_at_once_has_one_winner(sides, clock):
    """Whoever comes second, though its clock says that it came first."""
    shared = sides[2]
    shared.add("models/x", FIRST)
    shared.add("models/y", SECOND)
    early, late = shared.open(shared.backend), shared.open(shared.backend)
    with clock(1):
        won = early._refs.draft("tags/best", target=early.record("models/x").target)
    with clock(-1):
        lost = late._refs.draft("tags/best", target=late.record("models/y").target)
    assert won.key == lost.key
    early._refs.put(won)
    with pytest.raises(RefConflict):
        late._refs.put(lost)
    assert shared.plain.record("tags/best").target == won.target
