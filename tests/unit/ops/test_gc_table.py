"""The table of frames against plain Python: ids that share their first words, deltas, packs that come and go."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from fakes.collector import decoded
from fakes.counts import EXAMPLES
from hypothesis import given, settings

from casstore.objects.collection.table import FrameTable, PackColumns

IDS = [(lead, tail) for lead in (1, 2, 3) for tail in (1, 2)]
FRAMES = st.lists(
    st.tuples(
        st.sampled_from(IDS), st.integers(0, 3), st.lists(st.sampled_from(IDS), min_size=1, max_size=2)
    ),
    max_size=6,
).map(lambda frames: [(item, rank, tuple(bases) if rank else ()) for item, rank, bases in frames])


def id_of(key):
    return b"".join(word.to_bytes(8, "big") for word in (*key, 0, 0))


def columns(number, frames):
    lists = [bases for _, _, bases in frames if bases]
    numbers = iter(range(1, len(lists) + 1))
    return PackColumns(
        number=number,
        leads=np.array([key[0] for key, _, _ in frames], np.uint64),
        tails=np.array([key[1] for key, _, _ in frames], np.uint64),
        sizes=np.array([100 + rank for _, rank, _ in frames], np.uint32),
        ranks=np.array([rank for _, rank, _ in frames], np.uint8),
        lists=np.array([next(numbers) if bases else 0 for _, _, bases in frames], np.uint32),
        offsets=np.cumsum([0, *map(len, lists)]).astype(np.int64),
        bases=np.array([key for bases in lists for key in bases], np.uint64).reshape(-1, 2),
    )


def key_of(table, number):
    return tuple(table.keys[number].tolist())


@settings(max_examples=EXAMPLES)
@given(
    st.lists(st.lists(FRAMES, max_size=3), min_size=1, max_size=3),
    st.sets(st.integers(0, 8)),
    st.sets(st.integers(0, 8)),
    st.sets(st.sampled_from(IDS)),
)
def test_the_table_is_a_list_of_frames(arrivals, gone, usable, needed):
    table, packs, marked = FrameTable(), {}, set()
    for batch in arrivals:
        added = {len(packs) + at: frames for at, frames in enumerate(batch)}
        table.replace([columns(number, frames) for number, frames in added.items()], frozenset())
        packs.update(added)
        present = {key for frames in packs.values() for key, _, _ in frames}
        there = table.mark(b"".join(map(id_of, sorted(needed))))
        assert there.tolist() == [key in present for key in sorted(needed)]
        marked |= needed & present
    table.replace([], frozenset(gone & packs.keys()))
    left = {number: frames for number, frames in packs.items() if number not in gone}
    present = {key for frames in left.values() for key, _, _ in frames}
    found = table.find(np.array(IDS, np.uint64))
    assert [None if at < 0 else key_of(table, at) for at in found.tolist()] == [
        key if key in present else None for key in IDS
    ]
    assert {key_of(table, at) for at in np.flatnonzero(table.live)} == marked & present
    mask = np.zeros(max(packs, default=0) + 1, np.bool_)
    mask[[number for number in usable if number < len(mask)]] = True
    counts = table.decodes(mask)
    assert {key_of(table, at) for at in table.objects[counts]} == decoded(
        frame for number, frames in left.items() if mask[number] for frame in frames
    )
    keepers = table.keepers(counts, np.zeros(len(mask)))
    kept = {key_of(table, at) for at in table.objects[keepers]}
    safe = {key_of(table, at) for at in table.objects[counts]}
    assert marked & safe <= kept <= safe
    only = np.zeros(len(table), np.bool_)
    only[keepers] = True
    assert marked & safe <= {
        key_of(table, at) for at in table.objects[table.decodes(np.zeros(len(mask), np.bool_), also=only)]
    }, "what is kept decodes without the rest"
    rows = np.full(len(table.live), -1, np.int64)
    chosen = table.rows_of(np.ones(len(table.live), np.bool_), among=counts)
    rows[table.objects[chosen]] = chosen
    assert {key_of(table, int(at)) for at in table.objects[chosen]} == safe
    bases = {key_of(table, int(table.objects[row])): bases_in(left, table, int(row)) for row in chosen}
    wanted, level = set(), marked & present
    while level:
        wanted |= level
        level = {base for key in level for base in bases.get(key, ()) if base in present} - wanted
    found = table.with_bases(np.flatnonzero(table.live), rows)
    assert {key_of(table, at) for at in found.tolist()} == wanted


def bases_in(packs, table, row):
    """Return the bases of a row's frame: of those with its id and rank in its pack, the first."""
    frames = packs[int(table.packs[row])]
    key, rank = key_of(table, int(table.objects[row])), int(table.ranks(np.array([row]))[0])
    return next(bases for found, level, bases in frames if (found, level) == (key, rank))


def test_what_is_needed_stays_so_while_it_moves_to_another_pack():
    """Another collector copies it there, and deletes the old pack, between two looks or over several."""
    table, key, other = FrameTable(), IDS[0], IDS[1]
    table.replace([columns(0, [(key, 0, ()), (other, 0, ())])], frozenset())
    table.mark(id_of(key))
    table.replace([columns(1, [(key, 0, ()), (other, 0, ())])], frozenset({0}))
    assert table.live.tolist() == [True, False]
    table.replace([], frozenset({1}))
    table.replace([columns(2, [(other, 0, ()), (key, 0, ())])], frozenset())
    assert table.live.tolist() == [True, False]
