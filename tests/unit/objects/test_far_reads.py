"""Reading from a store that is a network away: what is asked for, how often, how much is kept, what goes wrong."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fakes.far_stores import far_store, of_packs, total
from fakes.stores import model_of, noise, write_model
from safetensors.numpy import save

from casstore.api.store import Store
from casstore.errors import BackendUnavailable, ConfigError, FormatError, IntegrityError
from casstore.objects.reading import chunk_cache
from casstore.objects.reading.chunk_cache import ChunkCache
from casstore.store.reading import files

MB = 1 << 20
random = np.random.default_rng(7)
TENSORS = {f"layer{at}": random.integers(0, 256, (4, MB), np.uint8) for at in range(6)}
WEIGHTS = save(TENSORS)
NOISE = noise(3, 24 * MB)
REF, FILE = "models/m", "model.safetensors"


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    folder = tmp_path_factory.mktemp("far")
    with Store(folder / "store", create=True, durability="none") as store:
        store.add(write_model(model_of(noise=NOISE), folder / "noise"), ref="models/noise")
        folder = folder / "weights"
        os.makedirs(folder)
        (folder / FILE).write_bytes(WEIGHTS)
        store.add(folder, ref=REF)
        yield store


@pytest.fixture
def opened(near):
    stores = []

    def open_far(**options):
        store, backend = far_store(near, **options)
        stores.append(store)
        store.model(REF)
        store.model("models/noise")
        backend.take()
        return store, backend

    yield open_far
    for store in stores:
        store.objects.chunks.close()


def settle(store):
    """Wait until nothing is on its way."""
    deadline = time.monotonic() + 30
    while not all(block.arrival.done() for block in list(store.objects.chunks._blocks)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_tensor_costs_its_own_frames_and_few_requests(opened):
    store, backend = opened()
    tensor = store.read_tensor(REF, "layer3", file=FILE)
    assert np.array_equal(tensor, TENSORS["layer3"])
    assert tensor.flags.writeable
    assert tensor.flags.aligned
    fetched = of_packs(backend.take())
    assert tensor.nbytes <= total(fetched) <= tensor.nbytes * 1.01
    assert len(fetched) <= tensor.nbytes / chunk_cache.FETCH + 2
    assert np.array_equal(store.read_tensor(REF, "layer3", file=FILE), tensor)
    with store.open_file(REF, FILE) as file:
        span = next(s for s in store.model(REF).layout(FILE).spans if s.name == "layer3")
        file.seek(span.begin)
        assert file.read(span.end - span.begin) == tensor.tobytes()
    assert of_packs(backend.take()) == []


def test_a_tensor_read_through_a_file_costs_no_more(opened):
    store, backend = opened()
    span = next(s for s in store.model(REF).layout(FILE).spans if s.name == "layer4")
    with store.open_file(REF, FILE) as file:
        header = int.from_bytes(file.read(8), "little")
        file.read(header)
        file.seek(span.begin)
        assert file.read(span.end - span.begin) == TENSORS["layer4"].tobytes()
    settle(store)
    assert total(of_packs(backend.take())) <= 1.01 * (span.end - span.begin) + (64 << 10)


def test_ranges_are_fetched_at_once(opened):
    store, backend = opened()
    backend.hold = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: store.open_file("models/noise", "noise").read())
        deadline = time.monotonic() + 30
        while backend.most_at_once < 8:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        backend.hold.set()
        assert reading.result() == NOISE
    assert backend.most_at_once == 8


@pytest.mark.parametrize("size", [1000, 1 << 16, MB, 4 * MB, -1])
def test_reading_in_order_fetches_everything_once_in_large_ranges(opened, size):
    store, backend = opened()
    got = io.BytesIO()
    with store.open_file("models/noise", "noise") as file:
        while data := file.read(size):
            got.write(data)
    assert got.getvalue() == NOISE
    fetched = of_packs(backend.take())
    assert len(NOISE) <= total(fetched) <= 1.01 * len(NOISE)
    assert len(fetched) <= 2 * len(NOISE) / chunk_cache.FETCH + 8


def test_the_line_is_used_while_the_reader_is_busy(opened):
    store, backend = opened()
    with store.open_file("models/noise", "noise") as file:
        for _ in range(64):
            file.read(1 << 16)
        settle(store)
        backend.take()
        for _ in range(16):
            file.read(1 << 16)  # has been fetched ahead
        ahead = of_packs(backend.take())
    assert all(request.start > 5 * MB for request in ahead)


def test_who_stops_has_fetched_little_more_than_he_read(opened):
    for count in (1, 3, 10, 40):
        store, backend = opened()
        with store.open_file("models/noise", "noise") as file:
            for _ in range(count):
                file.read(1 << 16)
            settle(store)
        read = count << 16
        # Twice as much, and the chunks at the ends, of up to a megabyte each.
        assert total(of_packs(backend.take())) <= 2 * read + 2 * MB


def test_random_reads_fetch_only_their_chunks(opened):
    store, backend = opened()
    longest = int(store.model("models/noise").layout("noise").lengths.max())
    with store.open_file("models/noise", "noise") as file:
        for at in (20 * MB, 3 * MB, 11 * MB):
            file.seek(at)
            assert file.read(500) == NOISE[at : at + 500]
    fetched = of_packs(backend.take())
    assert 3 <= len(fetched) <= 6
    assert total(fetched) <= 6 * (longest + 100)


def test_two_readers_of_the_same_bytes_fetch_them_once(opened):
    store, backend = opened()
    together = threading.Barrier(4)

    def read(_):
        with store.open_file("models/noise", "noise") as file:
            together.wait(30)
            return file.read(6 * MB)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [NOISE[: 6 * MB]] * 4
    settle(store)
    # Two that look up the same chunk in the same moment agree on one request for it.
    assert total(of_packs(backend.take())) <= 6.6 * MB


def test_what_is_kept_is_bounded(opened):
    store, backend = opened(chunk_cache=8 * MB)
    cache = store.objects.chunks
    most = 0
    with store.open_file("models/noise", "noise") as file:
        while file.read(1 << 16):
            settled = sum(block.size for block in list(cache._blocks) if block.arrival.done())
            most = max(most, settled)
    assert most <= 8 * MB
    settle(store)
    for name in TENSORS:
        store.read_tensor(REF, name, file=FILE)
    settle(store)
    cache._evict()
    assert cache.size == sum(block.size for block in cache._blocks) <= 8 * MB
    assert sum(len(block.ids) for block in cache._blocks) == len(cache._places)
    backend.take()
    store.read_tensor(REF, "layer5", file=FILE)
    assert of_packs(backend.take()) == []  # the newest stays
    store.read_tensor(REF, "layer0", file=FILE)
    assert total(of_packs(backend.take())) >= 4 * MB  # the oldest went


def test_many_readers_in_order_share_what_is_fetched_ahead(opened):
    store, backend = opened(chunk_cache=16 * MB)
    open_files = [store.open_file("models/noise", "noise") for _ in range(3)]
    starts = [0, 8 * MB, 16 * MB]
    for file, start in zip(open_files, starts, strict=True):
        file.seek(start)
    for step in range(8 * MB >> 16):
        for file, start in zip(open_files, starts, strict=True):
            at = start + (step << 16)
            assert file.read(1 << 16) == NOISE[at : at + (1 << 16)]
    for file in open_files:
        file.close()
    settle(store)
    # Each may have fetched a share beyond where it stopped.
    assert total(of_packs(backend.take())) <= 1.02 * len(NOISE) + 3 * chunk_cache.FETCH
    assert len(store.objects.chunks._readers) == 0


def frame_of(store, path, at, ref="models/noise"):
    """Return the pack and the payload's offset of the chunk that holds byte `at`."""
    layout = store.model(ref).layout(path)
    number = int(np.searchsorted(layout.offsets(), at, side="right")) - 1
    located = store.objects._index.locate([layout.chunk_ids()[number]])
    pack = store.objects._index.pack_id(int(located.rows["pack"][0])).hex()
    begin = int(layout.offsets()[number])
    return (
        f"packs/{pack[:2]}/{pack}",
        int(located.rows["offset"][0]) + 100,
        begin,
        begin + len_of(layout, number),
    )


def len_of(layout, number):
    return int(layout.lengths[number])


def test_damage_is_told_to_who_reads_what_is_damaged(opened):
    store, backend = opened()
    key, offset, begin, end = frame_of(store, "noise", 5 * MB)
    backend.flip(key, offset)
    with store.open_file("models/noise", "noise") as file:
        got = b""
        while len(got) < begin:  # fetched ahead together with what is damaged
            got += file.read(min(1 << 16, begin - len(got)))
        assert got == NOISE[:begin]
        with pytest.raises(IntegrityError, match=key):
            file.read(100)
        with pytest.raises(IntegrityError):
            file.read(100)
        file.seek(end)
        assert file.read(3 * MB) == NOISE[end : end + 3 * MB]
        file.seek(begin - 100)
        with pytest.raises(IntegrityError):
            file.read(3 * MB)
        backend.mend()
        file.seek(begin - 100)
        assert file.read(3 * MB) == NOISE[begin - 100 :][: 3 * MB]
    backend.flip(*frame_of(store, FILE, 13 * MB, REF)[:2])
    with pytest.raises(IntegrityError):
        store.read_tensor(REF, "layer3", file=FILE)


def test_the_network_goes_and_comes_back(opened):
    store, backend = opened()
    with store.open_file("models/noise", "noise") as file:
        start = file.read(2 * MB)
        for _ in range(8):
            start += file.read(1 << 16)
        settle(store)
        backend.unplugged = True
        with contextlib.suppress(BackendUnavailable):
            for data in iter(lambda: file.read(1 << 16), b""):
                start += data
        settle(store)
        assert len(start) < len(NOISE)
        assert start == NOISE[: len(start)]
        backend.unplugged = False
        file.seek(len(start))
        assert start + file.read() == NOISE


def test_what_failed_ahead_is_asked_for_again(opened):
    store, backend = opened()
    with store.open_file("models/noise", "noise") as file:
        got = file.read(MB)
        layout = store.model("models/noise").layout("noise")
        backend.unplugged = True
        pieces = store.objects.chunks.request(layout.chunk_ids()[:40], ahead=True)
        settle(store)
        backend.unplugged = False
        assert any(piece.block.arrival.exception() for piece in pieces)
        for object_id, piece in zip(layout.chunk_ids()[:40], pieces, strict=True):
            got_chunk = store.objects.chunks.wait(object_id, piece)
            assert len(got_chunk) == piece.end - piece.begin
        assert got + file.read() == NOISE


def test_a_layout_that_lies_about_a_length_is_refused(opened):
    store, _ = opened()
    layout = store.model("models/noise").layout("noise")
    lengths = layout.lengths.copy()
    lengths[0] += 100
    lengths[1] -= 100
    lying = type(layout)(layout.file_id, layout.size, layout.ids, lengths)
    with pytest.raises(FormatError, match="another length"):
        files.read_range(files.open_chunks(lying, store.objects), 0, 3 * MB)


def test_a_pack_that_was_rewritten_meanwhile_is_found_elsewhere(tmp_path):
    content = model_of(a=noise(9, 3 * MB))
    with Store(tmp_path / "store", create=True, durability="none") as near:
        near.add(write_model(content, tmp_path / "m"), ref="models/m")
        store, _ = far_store(near)
        store.model("models/m")
        first = {entry.key for entry in near.backend.list("packs/")}
        near.backend.delete(next(iter(near.backend.list("index/"))).key)
        for key in first:
            near.backend.delete(key)
        with Store(tmp_path / "store", durability="none") as again:
            again.add(tmp_path / "m", ref="models/again", stat_cache=False)
        with store.open_file("models/m", "a") as file:
            assert file.read() == content.files["a"][0]
        store.objects.chunks.close()


def test_near_stores_keep_no_cache(near):
    assert near.objects.chunks is None
    with near.open_file("models/noise", "noise") as file:
        assert file.size == len(NOISE)
        file.seek(7 * MB)
        assert file.read() == NOISE[7 * MB :]


def test_a_cache_must_be_large_enough_to_read_with(near):
    with pytest.raises(ConfigError, match="too small"):
        ChunkCache(near.objects, limit=MB)
