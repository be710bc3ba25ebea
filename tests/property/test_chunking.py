"""Cuts cover every byte once, depend on content and not on how it is read, and move only near a change."""

from __future__ import annotations

import hashlib
import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore import chunking
from casstore.chunking import FIXED_CHUNK, MAX_CHUNK, MIN_SPAN, Chunker, Region, offsets, plan_regions


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


NOISE = noise(5 << 20)


def cut_in_blocks(data, regions, sizes):
    """Cut `data` as a pipeline does: read blocks of the given sizes, carry what is not cut yet."""
    chunker = Chunker(regions)
    view = memoryview(data)
    lengths = []
    begin = end = turn = 0
    while True:
        end = min(end + sizes[turn % len(sizes)], len(data))
        turn += 1
        found = chunker.cut(view[begin:end], offset=begin, final=end == len(data)).tolist()
        lengths += found
        begin += sum(found)
        if end == len(data):
            assert begin == end
            return lengths
        assert end - begin < MAX_CHUNK


def cut_at_once(data, regions):
    return cut_in_blocks(data, regions, [max(1, len(data))])


@st.composite
def spans_of(draw, size):
    """Tensor ranges that do not overlap: small, large, adjacent, with gaps, tied."""
    edges = sorted(draw(st.lists(st.integers(0, size), max_size=10)))
    pairs = list(itertools.pairwise(edges))
    chosen = [pair for pair in pairs if draw(st.booleans())]
    return chosen + [pair for pair in chosen if draw(st.booleans())]


@given(data=st.data(), size=st.integers(0, 1 << 40))
def test_every_byte_is_in_exactly_one_region(data, size):
    spans = data.draw(spans_of(size))
    regions = plan_regions(data.draw(st.permutations(spans)), size)
    edges = [edge for region in regions for edge in (region.begin, region.end)]
    assert edges == sorted(edges)
    assert edges[:1] + edges[-1:] == ([0, size] if size else [])
    assert all(region.begin < region.end for region in regions)
    assert all(left.end == right.begin for left, right in itertools.pairwise(regions))
    fixed = {(region.begin, region.end) for region in regions if region.fixed}
    assert fixed == {(begin, end) for begin, end in spans if end - begin >= MIN_SPAN}
    # What is not fixed is joined as far as it goes.
    assert all(left.fixed or right.fixed for left, right in itertools.pairwise(regions))


@pytest.mark.parametrize("spans", [[(-1, 5)], [(5, 4)], [(90, 101)], [(0, 50), (49, 60)], [(0, 50), (0, 60)]])
def test_absurd_spans_are_refused(spans):
    with pytest.raises(ValueError, match="span"):
        plan_regions(spans, 100)


@given(data=st.data())
def test_cuts_do_not_depend_on_the_blocks(data):
    size = data.draw(st.integers(0, len(NOISE)))
    regions = plan_regions(data.draw(spans_of(size)), size)
    sizes = data.draw(st.lists(st.integers(1 << 14, 3 << 20), min_size=1, max_size=5))
    content = NOISE[:size]
    lengths = cut_in_blocks(content, regions, sizes)
    assert sum(lengths) == size
    assert all(0 < length <= MAX_CHUNK for length in lengths)
    assert lengths == cut_at_once(content, regions)


@pytest.mark.parametrize("size", [1, 2, 64, 4095, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 200_000])
@pytest.mark.parametrize("content", [bytes(200_000), NOISE])
def test_short_regions_are_cut_as_the_engine_cuts_them(content, size):
    engine = Chunker([])._engine
    want = [chunk.length for chunk in engine.cut_buf(memoryview(content[:size]))]
    assert cut_at_once(content[:size], plan_regions([], size)) == want


def test_tiny_blocks_cut_alike():
    size = 300_000
    regions = plan_regions([(100_001, 170_001)], size)
    assert cut_in_blocks(NOISE[:size], regions, [1777]) == cut_at_once(NOISE[:size], regions)


@pytest.mark.parametrize("content", [bytes(3 << 20), NOISE[: 3 << 20]], ids=["zeros", "noise"])
@pytest.mark.parametrize("step", [MAX_CHUNK, MAX_CHUNK - 1, MAX_CHUNK + 1])
def test_blocks_near_the_maximum_cut_alike(content, step):
    # Zeros have no cut by content: every chunk is cut at the maximum, right where such blocks end.
    regions = plan_regions([], len(content))
    assert cut_in_blocks(content, regions, [step]) == cut_at_once(content, regions)


@given(begin=st.integers(0, 200_000), length=st.integers(MIN_SPAN, 3 << 20), after=st.integers(0, 200_000))
def test_large_spans_are_cut_every_half_mebibyte_from_their_start(begin, length, after):
    size = begin + length + after
    lengths = np.array(cut_at_once(NOISE[:size], plan_regions([(begin, begin + length)], size)))
    starts = offsets(lengths)
    inside = [int(start) for start in starts if begin <= start < begin + length]
    assert inside == list(range(begin, begin + length, FIXED_CHUNK))
    assert begin + length in {*starts.tolist(), size}


@given(prefix=st.integers(1, 300_000), suffix=st.integers(0, 300_000), length=st.integers(1, 2 << 20))
def test_a_region_is_cut_by_its_own_bytes_only(prefix, suffix, length):
    content = NOISE[:length]
    alone = cut_at_once(content, (Region(0, length, fixed=False),))
    around = (
        Region(0, prefix, fixed=True),
        Region(prefix, prefix + length, fixed=False),
        Region(prefix + length, prefix + length + suffix, fixed=True),
    )
    within = cut_at_once(noise(prefix, 1) + content + noise(suffix, 2), around[: 3 if suffix else 2])
    skipped = -(-prefix // FIXED_CHUNK)
    assert within[skipped : skipped + len(alone)] == alone


def chunk_set(content):
    lengths = np.array(cut_at_once(content, plan_regions([], len(content))))
    starts = offsets(lengths)
    return [
        hashlib.sha256(content[start : start + length]).digest()
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]


@given(
    at=st.integers(0, len(NOISE)), change=st.one_of(st.binary(min_size=1, max_size=99), st.integers(1, 5000))
)
def test_an_insertion_or_deletion_in_opaque_bytes_leaves_far_chunks_alone(at, change):
    if isinstance(change, bytes):
        changed = NOISE[:at] + change + NOISE[at:]
    else:
        changed = NOISE[:at] + NOISE[at + change :]
    before, after = chunk_set(NOISE), chunk_set(changed)
    lengths = np.array(cut_at_once(NOISE, plan_regions([], len(NOISE))))
    ends = offsets(lengths) + lengths
    # All that ends before the change is as it was, and the cuts meet again soon after it.
    untouched = int((ends < at).sum())
    assert before[:untouched] == after[:untouched]
    assert len(set(before) - set(after)) <= 6


def test_the_layout_version_pins_every_parameter():
    # These cuts are what other machines and later releases must find: another result needs a new version.
    assert chunking.LAYOUT_VERSION == 1
    assert (MIN_SPAN, FIXED_CHUNK, MAX_CHUNK) == (65536, 524288, 1048576)
    content = np.random.RandomState(20).bytes(4 << 20)
    assert hashlib.sha256(content).hexdigest()[:16] == "0ae22fce9a1e96a1"
    assert cut_at_once(content, plan_regions([], len(content))) == [
        535804,
        533442,
        197717,
        301338,
        323283,
        300024,
        170525,
        325302,
        431869,
        280883,
        289829,
        350440,
        153848,
    ]
    spans = [(1_000_003, 1_600_003), (1_600_003, 1_665_538), (1_700_000, 2_800_000)]
    assert cut_at_once(content, plan_regions(spans, len(content))) == [
        535804,
        464199,
        524288,
        75712,
        99997,
        524288,
        524288,
        51424,
        319304,
        280883,
        289829,
        350440,
        153848,
    ]


def test_bytes_of_a_file_that_grew_are_cut_and_of_one_that_shrank_are_not_missed():
    regions = plan_regions([(0, 600_000)], 700_000)
    assert sum(cut_at_once(NOISE[:1_500_000], regions)) == 1_500_000
    assert cut_at_once(NOISE[:550_000], regions) == [FIXED_CHUNK, 550_000 - FIXED_CHUNK]


def test_a_buffer_from_elsewhere_in_the_file_is_refused():
    chunker = Chunker(plan_regions([(0, 1 << 20)], 1 << 20))
    assert chunker.cut(memoryview(NOISE)[: 600 << 10], offset=0, final=False).tolist() == [FIXED_CHUNK]
    with pytest.raises(ValueError, match="instead of 524288"):
        chunker.cut(memoryview(NOISE), offset=600 << 10, final=False)


def test_a_hundred_gigabytes_of_tensors_are_planned_and_cut_by_arithmetic():
    count = 100_000
    regions = plan_regions([(at * MIN_SPAN, (at + 1) * MIN_SPAN) for at in range(count)], count * MIN_SPAN)
    assert len(regions) == count
    one = plan_regions([(0, 1 << 40)], 1 << 40)
    block = memoryview(bytearray(32 << 20))
    assert Chunker(one).cut(block, offset=0, final=False).tolist() == [FIXED_CHUNK] * 64


def test_a_missing_native_chunker_is_said_once(monkeypatch):
    from pyfastcdc.py import FastCDC as SlowFastCDC  # noqa: PLC0415 - only this test wants the fallback

    monkeypatch.setattr(chunking, "FastCDC", SlowFastCDC)
    monkeypatch.setattr(chunking, "_slow_is_known", False)
    with pytest.warns(RuntimeWarning, match="native extension"):
        slow = Chunker(plan_regions([], 200_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Chunker(plan_regions([], 1))
    data = memoryview(NOISE)[:200_000]
    found = slow.cut(data, offset=0, final=True).tolist()
    monkeypatch.undo()
    assert found == cut_at_once(NOISE[:200_000], plan_regions([], 200_000))
