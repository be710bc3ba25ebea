"""Which ranges of which packs are read for the frames that are wanted, and batches of bounded size."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from casstore.concurrency.buffers import BLOCK
from casstore.format.frame import HEADER_SIZE, header_size
from casstore.format.rows import ROW, BaseLists
from casstore.objects.index.located import Located
from casstore.objects.reading.ranges import MAX_FETCH, MAX_GAP, batches, plan_ranges
from casstore.ops.sync.frames import _WASTE as WASTE
from casstore.ops.sync.frames import ranges_of


def located(frames):
    """Return rows of (pack, offset, stored)."""
    rows = np.zeros(len(frames), ROW)
    for at, (pack, offset, stored) in enumerate(frames):
        rows["pack"][at], rows["offset"][at], rows["stored"][at] = pack, offset, stored
    return Located(rows, np.zeros(len(frames), np.int32), (BaseLists.empty(),))


def plan(frames):
    return ranges_of(located(frames), np.arange(len(frames)))


def test_adjoining_frames_are_one_read():
    size = 1000 + HEADER_SIZE
    (found,) = plan([(3, 32 + size, 1000), (3, 32, 1000), (3, 32 + 2 * size, 1000)])
    assert (found.pack, found.begin, found.end, found.dense) == (3, 32, 32 + 3 * size, True)
    assert found.frames == (1, 0, 2)


def test_packs_are_read_apart():
    assert len(plan([(1, 32, 1000), (2, 32 + 1000 + HEADER_SIZE, 1000)])) == 2


def test_small_gaps_are_read_along_within_the_budget_and_large_ones_are_not():
    stored = 100_000 - HEADER_SIZE
    frames, at = [], 32
    for gap in (100, 90_000, 500, 5_000, 100):
        frames.append((0, at, stored))
        at += 100_000 + gap
    frames.append((0, at, stored))
    ranges = plan(frames)
    # A hundredth of 600,000 bytes pays for 100, 100, 500 and 5,000, not for 90,000.
    assert [len(item.frames) for item in ranges] == [2, 4]
    assert not ranges[0].dense
    assert sum(item.end - item.begin for item in ranges) == 600_000 + 5_700


def test_the_smallest_gaps_come_first():
    stored = 10_000 - HEADER_SIZE
    # The budget is 300 bytes for three frames.
    assert [
        len(item.frames) for item in plan([(0, 0, stored), (0, 10_250, stored), (0, 20_350, stored)])
    ] == [1, 2]


def test_a_range_is_a_block_at_most_unless_one_frame_is_larger():
    half = BLOCK // 2 - HEADER_SIZE
    frames = [(0, at * (half + HEADER_SIZE), half) for at in range(5)]
    assert [len(item.frames) for item in plan(frames)] == [2, 2, 1]
    (found,) = plan([(0, 32, 3 * BLOCK)])
    assert found.end - found.begin == 3 * BLOCK + HEADER_SIZE


def test_bases_count_as_part_of_the_frame():
    source = located([(0, 0, 100), (0, header_size(2) + 100, 100)])
    source.rows["bases"][0], source.rows["rank"][0] = 1, 1
    source = Located(source.rows, source.sources, (BaseLists.of([(b"a" * 32, b"b" * 32)]),))
    (found,) = ranges_of(source, np.arange(2))
    assert found.dense
    assert found.end == header_size(2) + HEADER_SIZE + 200


def test_a_frame_that_is_wanted_twice_is_read_once():
    size = 1000 + HEADER_SIZE
    source = located([(0, 32, 1000), (0, 32 + size, 1000), (0, 32, 1000)])
    (found,) = plan_ranges(source, range(3))
    assert (sorted(found.frames), found.end - found.begin) == ([0, 1, 2], 2 * size)


def test_other_frames_that_overlap_are_read_apart():
    assert len(plan_ranges(located([(0, 32, 1000), (0, 532, 1000)]), range(2))) == 2


def test_a_range_has_bounded_bytes_in_the_pack_and_decoded():
    size = 1000 + HEADER_SIZE
    source = located([(0, 32 + at * size, 1000) for at in range(6)])
    source.rows["raw"] = 5000
    assert len(plan_ranges(source, range(6))) == 1
    assert [len(item.frames) for item in plan_ranges(source, range(6), max_stored=2 * size)] == [2, 2, 2]
    assert [len(item.frames) for item in plan_ranges(source, range(6), max_plain=15_000)] == [3, 3]
    assert [len(item.frames) for item in plan_ranges(source, range(6), max_plain=1)] == [1] * 6
    assert plan_ranges(source, []) == []


def test_gaps_are_free_without_a_budget():
    source = located([(0, at * MAX_GAP, 100) for at in range(MAX_FETCH // MAX_GAP)])
    assert len(plan_ranges(source, range(len(source.rows)))) == 1


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 60))
def test_batches_hold_every_item_in_order_within_the_limit(sizes, limit):
    runs = list(batches(sizes, limit))
    assert [at for run in runs for at in run] == list(range(len(sizes)))
    for run, following in zip(runs, [*runs, None][1:], strict=True):
        total = sum(sizes[at] for at in run)
        assert total <= limit or len(run) == 1
        assert following is None or total + sizes[following.start] > limit


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 200_000), st.integers(0, 300_000)),
        min_size=1,
        max_size=60,
    )
)
def test_every_frame_is_in_one_range_and_the_waste_is_bounded(steps):
    frames, ends = [], [0, 0, 0]
    for pack, gap, stored in steps:
        frames.append((pack, ends[pack] + gap, stored))
        ends[pack] += gap + HEADER_SIZE + stored
    ranges = plan(frames)
    assert sorted(at for item in ranges for at in item.frames) == list(range(len(frames)))
    wanted = sum(stored + HEADER_SIZE for _, _, stored in frames)
    assert sum(item.end - item.begin for item in ranges) <= wanted * (1 + WASTE)
    for item in ranges:
        size = 0
        for at, following in zip(item.frames, [*item.frames[1:], None], strict=True):
            pack, offset, stored = frames[at]
            end = offset + HEADER_SIZE + stored
            assert pack == item.pack
            assert item.begin <= offset
            assert end <= item.end
            assert following is None or 0 <= frames[following][1] - end <= MAX_GAP
            size += HEADER_SIZE + stored
        assert item.dense == (size == item.end - item.begin)
        assert item.end - item.begin <= BLOCK or len(item.frames) == 1
