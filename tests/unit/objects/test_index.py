"""Index look-ups against a dict: many segments, merging, duplicates, near-equal ids, gone packs, damage."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import tracemalloc
import uuid

import numpy as np
import pytest
from fakes.stores import noise

from casstore.backend import BackendWrapper, LocalBackend, MemoryBackend
from casstore.digest import digest
from casstore.errors import AccessDenied, BackendError, BackendUnavailable, MissingObject
from casstore.format import index as index_format
from casstore.format import pack as pack_format
from casstore.format.frame import FrameHeader, encode_header
from casstore.format.rows import ROW, BaseLists, Kind, row_ids
from casstore.objects.index import list_merging, merging, segment, segment_file
from casstore.objects.index.index import Index
from casstore.objects.index.merging import MAX_SEGMENTS, choose_parts
from casstore.objects.index.stored_lists import StoredLists
from casstore.objects.keys import INDEX_PREFIX, index_key, is_foreign, pack_key
from casstore.objects.object_store import ObjectStore


def header(object_id, *, stored=7, raw=9, rank=0, bases=()):
    return FrameHeader(object_id, Kind.CHUNK, 0, raw, stored, rank, tuple(bases))


def footer_of(headers):
    offsets, at = [], pack_format.HEADER_SIZE
    for item in headers:
        offsets.append(at)
        at += item.size + item.stored
    return pack_format.footer_rows(headers, offsets)


def write_pack(backend, headers):
    """Write a real pack with payloads of zeros; return its id."""
    footer = footer_of(headers)
    body = [pack_format.encode_header(uuid.uuid4().bytes)]
    for item in headers:
        body += [encode_header(item), bytes(item.stored)]
    data = b"".join(body)
    data += b"".join([pack_format.encode_footer(footer, begin=len(data))])
    pack_id = digest(data)
    backend.put(pack_key(pack_id), [data])
    return pack_id, footer


class Expected:
    """A dict of where objects are: id → {(pack, offset)}."""

    def __init__(self, backend):
        self.backend = backend
        self.places = {}
        self.rows = {}

    def write(self, headers):
        pack_id, footer = write_pack(self.backend, headers)
        self.note(pack_id, footer)
        return pack_id, footer

    def note(self, pack_id, footer):
        for row in footer.rows:
            place = (pack_id, int(row["offset"]))
            self.places.setdefault(row["id"].tobytes(), set()).add(place)
            self.rows[place] = row
        return pack_id, footer

    def check(self, index, ids, *, gone=(), usable=None):
        """Compare the answers to one long question and to several short ones, which take different paths."""
        self._check(index, ids, gone, usable)
        if len(ids) > 50:
            for at in range(0, min(len(ids), 500), 50):
                self._check(index, ids[at : at + 50], gone, usable)

    def _check(self, index, ids, gone, usable):
        located = index.locate(ids, usable=usable)
        for at, object_id in enumerate(ids):
            allowed = {place for place in self.places.get(object_id, ()) if place[0] not in gone}
            assert located.found[at] == bool(allowed), object_id.hex()
            if allowed:
                row = located.rows[at]
                place = (index.pack_id(int(row["pack"])), int(row["offset"]))
                assert place in allowed
                assert row["id"].tobytes() == object_id
                assert [row[name] for name in ("stored", "raw", "kind", "rank")] == [
                    self.rows[place][name] for name in ("stored", "raw", "kind", "rank")
                ]


class FakeSegment:
    def __init__(self, size, key):
        self.size, self.key = size, key

    def __len__(self):
        return self.size


@pytest.fixture(params=["memory", "local"])
def backend(request, tmp_path):
    if request.param == "memory":
        return MemoryBackend(uuid.uuid4().hex)
    return LocalBackend(tmp_path / "store", create=True, durability="none")


@pytest.fixture
def memory():
    return MemoryBackend(uuid.uuid4().hex)


def ids_of(chance, count):
    return [chance.randbytes(32) for _ in range(count)]


def segments(backend):
    return [entry.key for entry in backend.list(INDEX_PREFIX)]


@pytest.mark.parametrize("seed", range(6))
def test_look_ups_agree_with_a_dict(backend, seed):
    chance = random.Random(seed)
    expected, index = Expected(backend), Index(backend)
    known = []
    for _ in range(chance.randint(5, 40)):
        packs = []
        for _ in range(chance.randint(1, 4)):
            ids = ids_of(chance, chance.choice((0, 1, 3, 20, 200)))
            ids += chance.sample(known, min(len(known), chance.randint(0, 5)))
            known += ids
            packs.append(expected.write([header(item, stored=chance.randint(0, 50)) for item in ids]))
        index.publish(packs)
    absent = ids_of(chance, 50)
    asked = [*known, *absent]
    chance.shuffle(asked)
    expected.check(index, asked)
    expected.check(Index(backend), asked)
    expected.check(index, [])
    for item in asked[:30]:
        expected.check(index, [item])
    assert len(segments(backend)) < 40


def test_ids_may_come_as_one_string_and_twice(memory):
    expected, index = Expected(memory), Index(memory)
    ids = ids_of(random.Random(1), 5)
    index.publish([expected.write([header(item) for item in ids])])
    located = index.locate(b"".join([*ids, *ids]))
    assert located.found.all()
    assert np.array_equal(located.rows[:5], located.rows[5:])


def test_a_large_segment_has_many_buckets(memory):
    expected, index = Expected(memory), Index(memory)
    chance = random.Random(3)
    ids = ids_of(chance, 20_000)
    index.publish([expected.write([header(item) for item in ids])])
    [segment] = index.segments.values()
    assert segment.head.shape.buckets >= 256
    expected.check(index, [*chance.sample(ids, 500), *ids_of(chance, 500)])
    assert 0 < segment.checked.sum() < len(segment.checked), "only what was asked for was checked"


@pytest.mark.parametrize("rest", [24, 16, 8, 1])
def test_ids_with_equal_leading_words(memory, rest):
    """The table is searched by the first 64 bits; what follows must decide all the same."""
    chance = random.Random(rest)
    expected, index = Expected(memory), Index(memory)
    common = chance.randbytes(32 - rest)
    near = list({common + chance.randbytes(rest) for _ in range(200)})
    absent = [item for item in (common + chance.randbytes(rest) for _ in range(100)) if item not in near]
    stored = near[: len(near) // 2]
    absent += near[len(near) // 2 :]
    index.publish([expected.write([header(item, stored=at % 9) for at, item in enumerate(stored)])])
    index.publish([expected.write([header(item) for item in ids_of(chance, 100)])])
    expected.check(index, [*stored, *absent])
    expected.check(Index(memory), [*absent, *stored])


@pytest.mark.parametrize("lead", [b"\x00" * 32, b"\xff" * 32, b"\x80" + bytes(31), b"\x7f" + b"\xff" * 31])
def test_ids_at_the_edges_of_buckets(memory, lead):
    expected, index = Expected(memory), Index(memory)
    chance = random.Random(5)
    ids = [lead, *ids_of(chance, 600)]
    absent = [bytes([*lead[:31], lead[31] ^ 1]), b"\x00" * 31 + b"\x01", b"\xff" * 31 + b"\xfe"]
    index.publish([expected.write([header(item) for item in ids])])
    expected.check(index, [*ids, *absent])


def test_an_object_in_several_packs(memory):
    """In one segment, in several, and in one pack twice."""
    expected, index = Expected(memory), Index(memory)
    shared, *own = ids_of(random.Random(7), 10)
    packs = [expected.write([header(shared), header(item), header(shared)]) for item in own]
    index.publish(packs[:3])
    for pack in packs[3:]:
        index.publish([pack])
    expected.check(index, [shared, *own])
    for at in range(len(packs)):
        keep = packs[at][0]
        others = {pack for pack, _ in packs} - {keep}
        located = index.locate([shared], usable=lambda number: index.pack_id(number) == keep)  # noqa: B023
        assert index.pack_id(int(located.rows["pack"][0])) == keep
        expected.check(
            index,
            [shared, *own],
            gone=others,
            usable=lambda number: index.pack_id(number) == keep,  # noqa: B023
        )
    expected.check(index, [shared], gone={pack for pack, _ in packs}, usable=lambda _: False)


def test_the_lowest_rank_of_one_segment_is_preferred(memory):
    expected, index = Expected(memory), Index(memory)
    item, base, other = ids_of(random.Random(8), 3)
    packs = [
        expected.write([header(item, rank=2, bases=[base])]),
        expected.write([header(item, rank=1, bases=[other])]),
        expected.write([header(item, rank=3, bases=[base, other])]),
    ]
    index.publish(packs)
    located = index.locate([item])
    assert located.rows["rank"][0] == 1
    assert located.bases(0) == (other,)


def test_base_lists_survive_merging(memory):
    chance = random.Random(9)
    expected, index = Expected(memory), Index(memory)
    wanted = {}
    for _ in range(3 * MAX_SEGMENTS):
        bases = ids_of(chance, chance.randint(1, 3))
        item, plain = ids_of(chance, 2)
        wanted[item] = tuple(bases)
        wanted[plain] = ()
        index.publish([expected.write([header(item, rank=1, bases=bases), header(plain)])])
    assert len(segments(memory)) <= MAX_SEGMENTS
    for opened in (index, Index(memory)):
        located = opened.locate(list(wanted))
        assert [located.bases(at) for at in range(len(wanted))] == list(wanted.values())


@pytest.mark.parametrize("count", [300, 30_000], ids=["small", "large"])
def test_a_segment_that_someone_cuts_short_while_it_is_open_ends_no_process(tmp_path, caplog, count):
    """As `cp` does that restores a backup over a store in use: a mapped file would end the process with SIGBUS."""
    backend = LocalBackend(tmp_path / "store", create=True, durability="none")
    expected = Expected(backend)
    ids = ids_of(random.Random(52), count)
    Index(backend).publish([expected.write([header(item) for item in ids])])
    [key] = segments(backend)
    index = Index(backend)
    expected.check(index, ids[:1])
    path = tmp_path / "store" / key
    path.chmod(0o600)
    os.truncate(path, 100)
    expected.check(index, ids[:100])
    assert sum(len(rows) for rows in index.all_rows()) == count
    assert (key in caplog.text) == (count > 10_000), "a small one is in memory"


@pytest.mark.parametrize("batch", [1, 8, 1 << 16])
def test_equal_base_lists_are_written_once_however_they_come_together(memory, monkeypatch, batch):
    monkeypatch.setattr(list_merging, "BATCH", batch)
    chance = random.Random(47)
    shared = [tuple(ids_of(chance, chance.randint(1, 4))) for _ in range(20)]
    # Some that differ in one place only, and some of which one is the beginning of another.
    shared += [(*item[:-1], bytes(32)) for item in shared[:5]] + [(*item, bytes(32)) for item in shared[:5]]
    expected, index = Expected(memory), Index(memory)
    wanted = {}
    for _ in range(3 * MAX_SEGMENTS):
        headers = []
        for bases in chance.sample(shared, 15):
            [item] = ids_of(chance, 1)
            wanted[item] = bases
            headers.append(header(item, rank=1, bases=bases))
        index.publish([expected.write(headers)])
    for opened in (index, Index(memory)):
        located = opened.locate(list(wanted))
        assert [located.bases(at) for at in range(len(wanted))] == list(wanted.values())
    largest = max(index.segments.values(), key=len)
    assert len(largest) > 10 * len(shared)
    assert largest.head.shape.lists == len(set(shared))


def test_base_lists_are_read_by_range(tmp_path):
    backend = LocalBackend(tmp_path / "store", create=True, durability="none")
    rng = np.random.default_rng(48)
    count = 200_000
    rows = np.zeros(count, ROW)
    rows["id"] = np.frombuffer(rng.bytes(32 * count), ">u8").reshape(-1, 4)
    rows["kind"], rows["rank"], rows["bases"] = Kind.CHUNK, 1, np.arange(1, count + 1)
    lists = BaseLists(np.arange(count + 1, dtype="<u4"), rng.bytes(32 * count))
    data = index_format.encode(rows, lists, {bytes(32): 1})
    backend.put(index_key(data), [data])
    index = Index(backend)
    index.refresh()
    tracemalloc.start()
    try:
        located = index.locate(row_ids(rows[:3]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [located.bases(at) for at in range(3)] == [lists.get(at) for at in range(1, 4)]
    assert peak < 1 << 20, "of 7 MB of lists, a few blocks"


def test_a_few_base_lists_are_kept_for_many_questions(memory, monkeypatch):
    chance = random.Random(53)
    wanted = {item: tuple(ids_of(chance, chance.randint(1, 3))) for item in ids_of(chance, 40)}
    index = Index(memory)
    index.publish([write_pack(memory, [header(item, rank=1, bases=bases) for item, bases in wanted.items()])])
    reads = []
    read_blocks = StoredLists._read_blocks
    monkeypatch.setattr(
        StoredLists, "_read_blocks", lambda lists, blocks: reads.append(blocks) or read_blocks(lists, blocks)
    )
    for item, bases in wanted.items():
        assert index.locate([item]).bases(0) == bases
    assert len(reads) < len(wanted)


def test_the_lowest_rank_of_all_segments_is_preferred(backend):
    chance = random.Random(49)
    expected, index = Expected(backend), Index(backend)
    deep, *bases = ids_of(chance, 4)
    for rank, more in ((3, 300), (2, 30), (1, 3), (5, 1)):
        headers = [header(deep, rank=rank, bases=bases[:1]), *map(header, ids_of(chance, more))]
        index.publish([expected.write(headers)])
    for opened in (index, Index(backend)):
        located = opened.locate([deep, bases[1], deep])
        assert located.found.tolist() == [True, False, True]
        assert located.rows["rank"].tolist() == [1, 0, 1]
        assert located.bases(0) == (bases[0],)
    lowest = index.locate([deep]).rows["pack"][0]
    located = index.locate([deep], usable=lambda number: number != lowest)
    assert located.rows["rank"].tolist() == [2], "the lowest one of those that can be used"
    index.publish([expected.write([header(deep)])])
    assert index.locate([deep]).rows["rank"].tolist() == [0]


@pytest.mark.parametrize("place", [0, -1])
def test_where_base_lists_are_damaged_the_packs_answer(backend, caplog, place):
    expected = Expected(backend)
    items, bases = ids_of(random.Random(50), 200), ids_of(random.Random(51), 200)
    headers = [header(item, rank=1, bases=[base]) for item, base in zip(items, bases, strict=True)]
    Index(backend).publish([expected.write(headers)])
    [key] = segments(backend)
    shape = index_format.decode_shape(backend.read(key), key=key)
    key = damaged(backend, lambda data: data.__setitem__((shape.bases_begin, -1)[place], 0xEE))
    index = Index(backend)
    located = index.locate(items)
    assert [located.bases(at) for at in range(200)] == [(base,) for base in bases]
    assert_one_warning(caplog, key)


def test_merging_keeps_segments_few_and_forgets_nothing(backend):
    chance = random.Random(10)
    expected, index = Expected(backend), Index(backend)
    known, most = [], 0
    for _ in range(150):
        ids = ids_of(chance, chance.choice((1, 2, 5)))
        known += ids
        index.publish([expected.write([header(item) for item in ids])])
        most = max(most, len(segments(backend)))
    assert most <= MAX_SEGMENTS + 1
    assert set(segments(backend)) == set(index.segments)
    expected.check(index, known)
    expected.check(Index(backend), known)


def test_a_second_process_follows_merges(backend):
    chance = random.Random(11)
    expected, index, stale = Expected(backend), Index(backend), Index(backend)
    known = []
    for step in range(60):
        ids = ids_of(chance, 2)
        known += ids
        index.publish([expected.write([header(item) for item in ids])])
        if step % 7 == 0:
            stale.refresh()
            expected.check(stale, known)
    stale.refresh()
    assert set(stale.segments) == set(index.segments)


def test_two_processes_merge_the_same(backend):
    """Both see enough segments; the second finds the work done and its parts gone."""
    chance = random.Random(12)
    expected = Expected(backend)
    writers = [Index(backend), Index(backend)]
    known = []
    for _ in range(MAX_SEGMENTS):
        ids = ids_of(chance, 3)
        known += ids
        writers[0].publish([expected.write([header(item) for item in ids])])
    writers[1].refresh()
    for writer in writers:
        ids = ids_of(chance, 3)
        known += ids
        writer.publish([expected.write([header(item) for item in ids])])
    for reader in (*writers, Index(backend)):
        reader.refresh()
        expected.check(reader, known)


def _publish_one_by_one(root, seed, count, failures):
    backend = LocalBackend(root, durability="none")
    try:
        index = Index(backend)
        chance = random.Random(seed)
        for item in ids_of(chance, count):
            index.refresh()
            index.publish([write_pack(backend, [header(item)])])
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_many_processes_that_merge_at_once_disturb_nobody(tmp_path):
    root = tmp_path / "store"
    backend = LocalBackend(root, create=True, durability="none")
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    seeds, count = range(60, 64), 40
    writers = [
        context.Process(target=_publish_one_by_one, args=(root, seed, count, failures)) for seed in seeds
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert failures.empty(), failures.get()
    assert [writer.exitcode for writer in writers] == [0] * len(writers)
    ids = [item for seed in seeds for item in ids_of(random.Random(seed), count)]
    index = Index(backend)
    assert index.locate(ids).found.all()
    assert not index.read_uncovered()
    assert len(segments(backend)) <= 3 * MAX_SEGMENTS


@pytest.mark.parametrize("late", [False, True], ids=["equal", "damaged"])
def test_losing_the_race_to_merge_is_no_failure(backend, monkeypatch, late):
    """Another process writes the same merged segment first; where its file is damaged, it is not relied on."""
    chance = random.Random(53)
    expected, index = Expected(backend), Index(backend)
    ids = ids_of(chance, MAX_SEGMENTS + 1)
    for item in ids[:-1]:
        index.publish([expected.write([header(item)])])
    writing = merging.write_merged

    def slower(target, parts, **options):
        key, _ = writing(target, parts, **options)
        if late:
            data = target.read(key)
            target.delete(key)
            target.put(key, [data[:-1]])
            monkeypatch.setattr("casstore.objects.index.upkeep.write_merged", writing)
        return writing(target, parts)

    monkeypatch.setattr("casstore.objects.index.upkeep.write_merged", slower)
    index.publish([expected.write([header(ids[-1])])])
    assert len(segments(backend)) == 1
    expected.check(index, ids)
    expected.check(Index(backend), ids)


@pytest.mark.parametrize("fault", ["full", "outage", "part gone", "part damaged", "cannot delete"])
def test_a_merge_that_fails_fails_nobodys_work(memory, caplog, fault):
    chance = random.Random(54)
    calls = []

    class Failing(BackendWrapper):
        def open_writer(self):
            calls.append("merge")
            if fault in ("full", "outage"):
                raise BackendUnavailable("no") if fault == "outage" else BackendError("the disk is full")
            return super().open_writer()

        def delete(self, key):
            if fault == "cannot delete":
                raise AccessDenied("no")
            super().delete(key)

    expected, index = Expected(memory), Index(Failing(memory))
    ids = ids_of(chance, 6 * MAX_SEGMENTS)
    for at, item in enumerate(ids):
        if at == MAX_SEGMENTS and fault.startswith("part"):
            key = segments(memory)[3]
            data = bytearray(memory.read(key))
            memory.delete(key)
            if fault == "part damaged":
                data[-8] ^= 1
                data[150] ^= 1
                memory.put(key, [data])
                index = Index(Failing(memory))
        index.publish([expected.write([header(item)])])
    expected.check(index, ids)
    expected.check(Index(memory), ids)
    assert len(calls) < len(ids) / 4, "not tried again with each add"
    assert caplog.records or fault == "part gone"


def test_overlapping_segments_merge_without_repeating_rows(memory):
    """As two processes leave them that merged the same parts at the same time."""
    chance = random.Random(22)
    expected, index = Expected(memory), Index(memory)
    bases = ids_of(chance, 2)
    packs = [
        expected.write([header(first), header(second, rank=1, bases=bases)])
        for first, second in zip(
            ids_of(chance, MAX_SEGMENTS + 2), ids_of(chance, MAX_SEGMENTS + 2), strict=True
        )
    ]
    for at in range(MAX_SEGMENTS + 1):
        index.publish([packs[at], packs[at + 1]])
    [merged] = index.segments.values()
    assert len(merged) == 2 * len(packs)
    assert len(set(merged.head.packs)) == len(packs)
    expected.check(Index(memory), list(expected.places))
    located = Index(memory).locate(list(expected.places))
    assert [located.bases(at) for at in range(len(located.rows))] == [(), tuple(bases)] * len(packs)


@pytest.mark.parametrize("overlap", [False, True])
def test_large_segments_merge_in_batches_to_what_they_were(backend, monkeypatch, overlap):
    monkeypatch.setattr(segment, "BATCH_BITS", 7)
    monkeypatch.setattr(merging, "BATCH_BITS", 7)
    monkeypatch.setattr(list_merging, "BATCH", 2)
    monkeypatch.setattr(segment, "_SMALL", 100)
    chance = random.Random(23)
    expected, index = Expected(backend), Index(backend)
    packs = []
    for at in range(MAX_SEGMENTS + 2):
        base = ids_of(chance, 1)
        ids = ids_of(chance, chance.randint(50, 400))
        headers = [header(item) if n % 3 else header(item, rank=1, bases=base) for n, item in enumerate(ids)]
        packs.append(expected.write(headers))
        index.publish(packs[-2:] if overlap and at else packs[-1:])
    largest = max(index.segments.values(), key=len)
    assert len(index.segments) <= 3
    assert sum(1 for _ in largest.batches()) >= 8
    rows = np.concatenate(list(largest.batches()), dtype=ROW)
    lists = largest.lists.take(np.arange(largest.head.shape.lists))
    assert index_format.encode(
        rows, lists, dict(zip(largest.head.packs, largest.head.sizes, strict=True))
    ) == backend.read(largest.key)
    for opened in (index, Index(backend)):
        expected.check(opened, [*expected.places, *ids_of(chance, 500)])
        located = opened.locate(list(expected.places))
        for at, (object_id, places) in enumerate(expected.places.items()):
            assert object_id == located.rows["id"][at].tobytes()
            assert bool(located.bases(at)) == bool(expected.rows[next(iter(places))]["bases"])


def test_a_large_segment_that_hides_an_object_is_set_aside_before_it_counts_as_missing(
    backend, monkeypatch, caplog
):
    monkeypatch.setattr(segment, "_SMALL", 10)
    expected = Expected(backend)
    ids = sorted(ids_of(random.Random(24), 300))
    Index(backend).publish([expected.write([header(item) for item in ids])])
    [key] = segments(backend)
    shape = index_format.decode_shape(backend.read(key), key=key)

    def flip(data):
        data[shape.head_size + 4 * 150 + 3] ^= 0xFF

    key = damaged(backend, flip)
    index = Index(backend)
    assert not index.locate([ids[150]]).found.any()
    assert not index.recheck([bytes(32)])
    located = ObjectStore(backend, index=index).locate([ids[150]])
    assert index.pack_id(int(located.rows["pack"][0])) in {pack for pack, _ in expected.places[ids[150]]}
    assert_one_warning(caplog, key)


@pytest.mark.parametrize("small", [10, 10_000], ids=["large", "small"])
@pytest.mark.parametrize("ask", ["locate", "all_rows", "lacks, then locate"])
def test_a_row_that_cannot_be_is_not_handed_out_though_its_checksum_fits(
    backend, monkeypatch, small, ask, caplog
):
    monkeypatch.setattr(segment, "_SMALL", small)
    expected = Expected(backend)
    ids = sorted(ids_of(random.Random(25), 300))
    pack_id, footer = expected.write([header(item) for item in ids])
    rows = np.sort(footer.rows, order="id")
    rows["rank"][150] = 1  # a delta without a base
    forged = index_format.encode(rows, footer.bases, {pack_id: footer.pack_size})
    backend.put(index_key(forged), [forged])
    index = Index(backend)
    if ask == "lacks, then locate":
        index.refresh()
        assert not index.lacks([bytes(32)])
    if ask != "all_rows":
        expected.check(index, [ids[150]])
    else:
        rows = np.concatenate(list(index.all_rows()), dtype=ROW)
        assert sorted(row_ids(rows)) == ids
        assert not rows["rank"].any()
    assert_one_warning(caplog, index_key(forged))


def test_what_is_merged_is_small_beside_what_stays():
    def chosen(*sizes):
        return [
            len(part) for part in choose_parts([FakeSegment(size, str(at)) for at, size in enumerate(sizes)])
        ]

    few = [1] * (MAX_SEGMENTS - 2)
    assert chosen(1000, *few) == []
    assert chosen(1000, 10, *few, 1) == [*[1] * len(few), 1, 10]
    assert chosen(44, 45, *few, 1) == [*[1] * len(few), 1, 44, 45]
    assert chosen(10**6, 10**5, *few, 1) == [1] * len(few) + [1]
    assert chosen(*[6**power for power in range(MAX_SEGMENTS + 3)]) == []


def test_a_segment_that_goes_while_it_is_read(memory):
    chance = random.Random(13)
    expected = Expected(memory)
    ids = ids_of(chance, 4)
    packs = [expected.write([header(item)]) for item in ids]
    writer = Index(memory)
    writer.publish(packs[:2])

    class Merging(BackendWrapper):
        def read(self, key, *, start=0, length=None):
            if key == first:
                self.inner.delete(first)
                writer.publish(packs)
            return super().read(key, start=start, length=length)

        def local_path(self, key):
            return None

    [first] = segments(memory)
    expected.check(Index(Merging(memory)), ids)


def test_a_gone_pack_means_nothing(memory):
    chance = random.Random(14)
    expected, index = Expected(memory), Index(memory)
    shared, lost, kept = ids_of(chance, 3)
    gone, _ = expected.write([header(shared), header(lost)])
    packs = [
        (gone, footer_of([header(shared), header(lost)])),
        expected.write([header(shared), header(kept)]),
    ]
    index.publish(packs)
    memory.delete(pack_key(gone))
    index.forget_pack(index.number_of(gone))
    expected.check(index, [shared, lost, kept], gone={gone})
    index.refresh()
    expected.check(index, [shared, lost, kept], gone={gone})


class RewritingBackend(BackendWrapper):
    """Moves a pack to another one whenever its footer is about to be read, `times` times."""

    times = 0

    def read(self, key, **options):
        if self.times and key.startswith("packs/"):
            self.times -= 1
            write_pack(self.inner, [header(digest(b"x"))])
            self.inner.delete(key)
        return self.inner.read(key, **options)


@pytest.mark.parametrize("times", [1, 3])
def test_packs_that_are_rewritten_between_a_listing_and_their_footers(memory, times):
    write_pack(memory, [header(digest(b"x"))])
    moving = RewritingBackend(memory)
    moving.times = times
    assert Index(moving).locate_all([digest(b"x")]).found.all()
    assert moving.times == 0


def test_looking_for_packs_that_are_rewritten_again_and_again_ends(memory):
    write_pack(memory, [header(digest(b"x"))])
    moving = RewritingBackend(memory)
    moving.times = 10**6
    with pytest.raises(MissingObject):
        Index(moving).locate_all([digest(b"x")])


def test_reading_what_only_gone_packs_held_ends(memory):
    """Its segment is still there and names the pack for ever."""
    expected, index = Expected(memory), Index(memory)
    [lost] = ids_of(random.Random(15), 1)
    pack = expected.write([header(lost)])
    index.publish([pack])
    memory.delete(pack_key(pack[0]))
    with pytest.raises(MissingObject, match=lost.hex()):
        ObjectStore(memory, index=index).read(lost)


def test_reading_falls_back_to_another_pack(memory):
    plain = noise(3, 9)
    item = FrameHeader(digest(plain), Kind.CHUNK, 0, 9, 9)
    body = [pack_format.encode_header(bytes(16)), encode_header(item), plain]
    index, packs = Index(memory), []
    for nonce in (b"a", b"b", b"c"):
        body[0] = pack_format.encode_header(nonce * 16)
        footer = footer_of([item])
        data = b"".join(body)
        data += b"".join([pack_format.encode_footer(footer, begin=len(data))])
        memory.put(pack_key(digest(data)), [data])
        packs.append((digest(data), footer))
    index.publish(packs[:2])
    index.publish(packs[2:])
    reader = ObjectStore(memory, index=index)
    for left in (3, 2, 1):
        assert reader.read(item.object_id) == plain
        used = index.pack_id(int(index.locate([item.object_id]).rows["pack"][0]))
        memory.delete(pack_key(used))
        assert len(list(memory.list("packs/"))) == left - 1
    with pytest.raises(MissingObject):
        reader.read(item.object_id)


def real_pack(backend, plains):
    """Write a pack whose frames decode; return its id and footer."""
    headers = [FrameHeader(digest(plain), Kind.CHUNK, 0, len(plain), len(plain)) for plain in plains]
    body = [pack_format.encode_header(uuid.uuid4().bytes)]
    for item, plain in zip(headers, plains, strict=True):
        body += [encode_header(item), plain]
    footer = footer_of(headers)
    data = b"".join(body)
    data += b"".join([pack_format.encode_footer(footer, begin=len(data))])
    backend.put(pack_key(digest(data)), [data])
    return digest(data), footer


def test_a_pack_that_comes_back_from_a_backup_is_seen_by_open_processes(backend):
    [plain] = [noise(5, 900)]
    pack = real_pack(backend, [plain])
    index = Index(backend)
    index.publish([pack])
    reader = ObjectStore(backend, index=index)
    data = backend.read(pack_key(pack[0]))
    for _ in range(2):
        backend.delete(pack_key(pack[0]))
        with pytest.raises(MissingObject):
            reader.read(digest(plain))
        backend.put(pack_key(pack[0]), [data])
        assert reader.read(digest(plain)) == plain


@pytest.mark.parametrize("fault", ["gone", "damaged"])
def test_many_stale_packs_cost_one_more_look(memory, fault):
    calls = []

    class Counting(BackendWrapper):
        def list(self, prefix):
            calls.append(prefix)
            return super().list(prefix)

        def list_keys(self, prefix):
            calls.append(prefix)
            return super().list_keys(prefix)

    plains = [noise(number, 9) for number in range(300)]
    index = Index(Counting(memory))
    small = [real_pack(memory, [plain]) for plain in plains]
    index.publish([*small, real_pack(memory, [noise(number, 9) for number in range(300, 900)])])
    index.publish([real_pack(memory, plains)])
    for pack_id, _ in small:
        key = pack_key(pack_id)
        data = memory.read(key)
        memory.delete(key)
        if fault == "damaged":
            memory.put(key, [data[:40] + bytes(len(data) - 40)])
    calls.clear()
    looks = []
    locating = index.locate
    index.locate = lambda ids, **more: looks.append(len(ids)) or locating(ids, **more)
    assert ObjectStore(memory, index=index).read_many([digest(plain) for plain in plains]) == plains
    assert len(calls) <= 2
    assert sum(looks) <= 5 * len(plains)


def test_foreign_files_beside_packs_and_segments_are_ignored(memory):
    expected, index = Expected(memory), Index(memory)
    ids = ids_of(random.Random(55), 3)
    for item in ids[:2]:
        index.publish([expected.write([header(item)])])
    expected.write([header(ids[2])])
    name = "ab" * 32
    foreign = [
        "index/desktop.ini",
        f"index/{name}.orig",
        f"index/x/{name}",
        "packs/readme",
        f"packs/cd/{name}",
    ]
    for key in foreign:
        memory.put(key, [b"x"])
    fresh = Index(memory)
    fresh.refresh()
    assert fresh.read_uncovered()
    expected.check(fresh, ids)
    fresh.publish([expected.write([header(bytes(32))])])
    keys = {entry.key for entry in memory.list("")}
    assert {key for key in keys if is_foreign(key)} == set(foreign)


def test_packs_that_no_segment_covers(backend):
    chance = random.Random(16)
    expected, writer = Expected(backend), Index(backend)
    ids = ids_of(chance, 6)
    packs = [expected.write([header(item)]) for item in ids]
    writer.publish(packs[:3])
    index = Index(backend)
    assert index.locate(ids).found.tolist() == [True] * 3 + [False] * 3
    assert index.read_uncovered()
    expected.check(index, ids)
    assert not index.read_uncovered()
    index.refresh()
    expected.check(index, ids)
    writer.publish(packs[3:])
    index.refresh()
    expected.check(index, ids)
    assert set(index.segments) == set(segments(backend)), "footers read by hand gave way to segments"


def test_a_pack_that_goes_while_footers_are_read(memory):
    """A collector deletes one uncovered pack between the listing and its turn; the others count."""
    chance = random.Random(17)
    expected = Expected(memory)
    packs = [expected.write([header(item)]) for item in ids_of(chance, 6)]

    class Collecting(BackendWrapper):
        def list(self, prefix):
            entries = list(self.inner.list(prefix))
            self.inner.delete(pack_key(packs[0][0]))
            return iter(entries)

    index = Index(Collecting(memory))
    assert index.read_uncovered()
    expected.check(index, list(expected.places), gone={packs[0][0]})


def damaged(backend, change):
    """Replace the only segment by a changed copy, under a name of its own; return its key."""
    [key] = segments(backend)
    data = bytearray(backend.read(key))
    change(data)
    backend.delete(key)
    other = index_key(bytes(data))
    backend.put(other, [data])
    return other


def assert_one_warning(caplog, key):
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert key in warning.getMessage()


@pytest.mark.parametrize("small", [10, 10_000], ids=["large", "small"])
def test_where_a_bucket_is_damaged_the_packs_answer(backend, caplog, monkeypatch, small):
    monkeypatch.setattr(segment, "_SMALL", small)
    chance = random.Random(18)
    expected = Expected(backend)
    ids = ids_of(chance, 300)
    Index(backend).publish([expected.write([header(item) for item in ids])])
    [key] = segments(backend)
    shape = index_format.decode_shape(backend.read(key), key=key)

    def flip(data):
        data[shape.rows_begin + 64 * 150 + 40] ^= 1

    key = damaged(backend, flip)
    index = Index(backend)
    for item in sorted(ids):
        expected.check(index, [item])
    for _ in range(2):
        expected.check(index, ids)
    assert sorted(row_ids(np.concatenate(list(index.all_rows()), dtype=ROW))) == sorted(ids)
    assert_one_warning(caplog, key)
    assert segments(backend) == [key], "reading changes nothing in the store"


def test_no_flipped_byte_gives_a_wrong_answer(memory, caplog):
    """Every byte of a small segment: it is set aside with one warning, and the right answers come from the pack."""
    chance = random.Random(19)
    expected = Expected(memory)
    ids = ids_of(chance, 5)
    Index(memory).publish([expected.write([header(ids[0], rank=1, bases=[ids[1]]), *map(header, ids[1:])])])
    [key] = segments(memory)
    data = memory.read(key)
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        memory.delete(key)
        memory.put(key, [flipped])
        caplog.clear()
        index = Index(memory)
        expected.check(index, ids)
        assert index.locate(ids).bases(0) == (ids[1],)
        assert_one_warning(caplog, key)


@pytest.mark.parametrize("keep", [0, 1, 30, 63, 64, 100, -1])
def test_a_segment_that_is_cut_short(backend, keep, caplog):
    expected = Expected(backend)
    ids = ids_of(random.Random(20), 10)
    Index(backend).publish([expected.write([header(item) for item in ids])])

    def cut(data):
        del data[keep:]

    key = damaged(backend, cut)
    expected.check(Index(backend), ids)
    assert_one_warning(caplog, key)


@pytest.mark.parametrize("fault", ["may not be read", "bad sector", "a directory", "a pipe"])
def test_a_segment_that_cannot_be_read_stops_nobody(tmp_path, monkeypatch, caplog, fault):
    backend = LocalBackend(tmp_path / "store", create=True, durability="none")
    expected = Expected(backend)
    ids = ids_of(random.Random(21), 3)
    Index(backend).publish([expected.write([header(item) for item in ids])])
    [key] = segments(backend)
    path = tmp_path / "store" / key
    opening = os.open
    if fault in ("may not be read", "bad sector"):
        number = errno.EACCES if fault == "may not be read" else errno.EIO

        def refuse(name, *rest, **options):
            if str(name) == str(path):
                raise OSError(number, os.strerror(number))
            return opening(name, *rest, **options)

        monkeypatch.setattr(segment_file.os, "open", refuse)
    else:
        path.unlink()
        path.mkdir() if fault == "a directory" else os.mkfifo(path)
    index = Index(backend)
    index.refresh()
    assert index.locate(ids).found.all() or index.read_uncovered()
    expected.check(index, ids)
    index.publish([expected.write([header(item) for item in ids[:1]])])
    expected.check(Index(backend), ids[:1])
    if fault != "a pipe":
        assert os.path.lexists(path), "what is not damaged is not removed"
    assert key in caplog.text


@pytest.mark.parametrize("how", ["head", "bucket", "cut", "empty", "garbage"])
def test_a_writer_replaces_a_damaged_segment(backend, caplog, how):
    """So one process warns, and reads footers, and no other one after it."""
    chance = random.Random(44)
    expected = Expected(backend)
    ids = ids_of(chance, 300)
    packs = [expected.write([header(item) for item in ids[at : at + 50]]) for at in range(0, 300, 50)]
    Index(backend).publish(packs)

    def change(data):
        if how == "head":
            data[70] ^= 1
        elif how == "bucket":
            data[-3000] ^= 1
        elif how == "cut":
            del data[len(data) // 2 :]
        else:
            data[:] = b"" if how == "empty" else chance.randbytes(3000)

    key = damaged(backend, change)
    writer = Index(backend)
    expected.check(writer, ids)
    [new] = ids_of(chance, 1)
    writer.publish([expected.write([header(new)])])
    assert_one_warning(caplog, key)
    assert key not in segments(backend)
    caplog.clear()
    index = Index(backend)
    expected.check(index, [*ids, new])
    assert not index.read_uncovered()
    assert not caplog.records


def test_a_damaged_segment_is_replaced_under_the_name_that_it_has(backend, caplog):
    """What the footers say may be what the segment said, so the name is the same."""
    expected = Expected(backend)
    ids = ids_of(random.Random(45), 20)
    pack = expected.write([header(item) for item in ids])
    Index(backend).publish([pack])
    [key] = segments(backend)
    data = bytearray(backend.read(key))
    backend.delete(key)
    data[-100] ^= 1
    backend.put(key, [data])
    writer = Index(backend)
    expected.check(writer, ids)
    writer.publish([expected.write([header(bytes(32))])])
    assert digest(backend.read(key)) == bytes.fromhex(key.removeprefix(INDEX_PREFIX))
    expected.check(writer, [*ids, bytes(32)])
    caplog.clear()
    expected.check(Index(backend), ids)
    assert not caplog.records


def test_a_damaged_segment_stays_while_a_pack_is_damaged_too(memory, caplog):
    """What it says of that pack may be all that is known of it."""
    expected = Expected(memory)
    ids = ids_of(random.Random(46), 20)
    pack_id, _ = expected.write([header(item) for item in ids])
    Index(memory).publish([(pack_id, footer_of([header(item) for item in ids]))])
    key = damaged(memory, lambda data: data.__setitem__(70, data[70] ^ 1))
    whole = memory.read(pack_key(pack_id))
    memory.delete(pack_key(pack_id))
    memory.put(pack_key(pack_id), [whole[:-1]])
    writer = Index(memory)
    writer.refresh()
    writer.publish([expected.write([header(bytes(32))])])
    assert key in segments(memory)
    expected.check(writer, [bytes(32)])


def test_a_listing_that_fails_is_an_error(memory):
    class Failing(BackendWrapper):
        def list(self, prefix):
            yield from []
            raise BackendError("no listing")

    for act in (Index.refresh, Index.read_uncovered, lambda index: index.locate([bytes(32)])):
        with pytest.raises(BackendError, match="no listing"):
            act(Index(Failing(memory)))


def test_the_size_of_a_pack_is_known_from_its_segment_and_from_its_footer(backend):
    expected = Expected(backend)
    covered, uncovered = (
        expected.write([header(item, rank=1, bases=[item[::-1]]) for item in ids_of(random.Random(seed), 3)])
        for seed in (40, 41)
    )
    Index(backend).publish([covered])
    index = Index(backend)
    assert index.pack_size(index.number_of(covered[0])) is None
    index.refresh()
    assert index.read_uncovered()
    for pack_id, footer in (covered, uncovered):
        size = backend.stat(pack_key(pack_id)).size
        assert index.pack_size(index.number_of(pack_id)) == size == footer.pack_size
    assert index.pack_size(index.number_of(bytes(32))) is None


def test_merged_segments_know_the_sizes_of_their_packs(memory):
    expected, index = Expected(memory), Index(memory)
    packs = [expected.write([header(item)] * 2) for item in ids_of(random.Random(42), 3 * MAX_SEGMENTS)]
    for pack in packs:
        index.publish([pack])
    fresh = Index(memory)
    fresh.refresh()
    assert len(fresh.segments) <= MAX_SEGMENTS
    sizes = [fresh.pack_size(fresh.number_of(pack_id)) for pack_id, _ in packs]
    assert sizes == [memory.stat(pack_key(pack_id)).size for pack_id, _ in packs]


def test_where_segments_disagree_about_the_size_of_a_pack_its_footer_answers(memory):
    expected = Expected(memory)
    [item] = ids_of(random.Random(43), 1)
    pack_id, footer = expected.write([header(item)])
    for size in (footer.pack_size, footer.pack_size + 1, 1):
        forged = index_format.encode(footer.rows, footer.bases, {pack_id: size})
        memory.put(index_key(forged), [forged])
    index = Index(memory)
    index.refresh()
    number = index.number_of(pack_id)
    assert index.pack_size(number) == footer.pack_size
    memory.delete(pack_key(pack_id))
    assert index.pack_size(number) == footer.pack_size, "it is read once"
    other = Index(memory)
    other.refresh()
    assert other.pack_size(other.number_of(pack_id)) is None
