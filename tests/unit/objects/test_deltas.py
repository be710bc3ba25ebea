"""Chunks that are made of other ones, in real stores: read everywhere, from wherever they can be, and never wrong."""

from __future__ import annotations

import dataclasses
import uuid

import numpy as np
import pytest
from contract.backends import ObjectDriver
from fakes.collector import condemn, delete_packs, delta_frame, packs_of, write_frames
from fakes.model_files import safetensors_bytes
from fakes.predicting import FAMILY, predicting, relative
from fakes.stores import assert_clean, model_of, noise, read_folder, read_model, write_model

from casstore import GcPolicy, execute_gc, plan_gc
from casstore.backend import LocalBackend, MemoryBackend
from casstore.backend.fsspec.backend import FsspecBackend
from casstore.codecs.delta import Extent, Order, Residual, encoder, same
from casstore.codecs.delta.residual import Outcome
from casstore.digest import digest
from casstore.errors import DigestMismatch, FormatError, IntegrityError, MissingObject
from casstore.format import frame
from casstore.format.rows import Kind
from casstore.machine.state import MachineState
from casstore.objects import Base, BaseCache, encode_delta
from casstore.objects.index.index import Index
from casstore.objects.keys import pack_key
from casstore.objects.publishing.pack_writer import EncodedFrames, PackWriter, encode_object
from casstore.ops.check import check
from casstore.ops.quarantine import quarantine_damaged
from casstore.ops.sync import execute, plan_sync
from casstore.store.identity import create_format
from casstore.store.model_store import ModelStore

MIB = 1 << 20
BASE, OTHER, DELTA, ABOVE = (noise(number, 3_000) for number in range(4))


def opened(backend):
    """Return the store as another process sees it."""
    return ModelStore(backend, store_id=bytes(16), machine=MachineState(None))


def made(kind, tmp_path):
    name = uuid.uuid4().hex
    backend = {
        "memory": lambda: MemoryBackend(name),
        "local": lambda: LocalBackend(tmp_path / name, create=True, durability="none"),
        "far": lambda: FsspecBackend(f"objects://{name}/store", create=True, driver=ObjectDriver),
    }[kind]()
    create_format(backend)
    return opened(backend)


@pytest.fixture(params=["memory", "local", "far"])
def store(request, tmp_path):
    return made(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path):
    return made("memory", tmp_path)


def forge(store, *frames):
    """Write frames that no publish would: with an index, and no check of their bases."""
    with PackWriter(store.backend) as writer:
        for item in frames:
            writer.append(item)
        store.objects.cover([(item.pack_id, item.footer) for item in writer.finish()])


def plain(data):
    return encode_object(Kind.CHUNK, data)


def flip(store, pack, at):
    """Flip a byte of a pack, counted from its start or end."""
    data = bytearray(store.backend.read(pack_key(pack)))
    data[at] ^= 0x10
    store.backend.delete(pack_key(pack))
    store.backend.put(pack_key(pack), [bytes(data)])


def place_of(store, pack, object_id):
    """Return where the payload of an object begins and ends in a pack."""
    located = store.objects.located_in(pack, store.objects.footer(pack))
    [at] = [at for at, item in enumerate(located.ids(range(len(located.rows)))) if item == object_id]
    begin = int(located.rows["offset"][at])
    bases = len(located.bases(at))
    payload = begin + 52 + (2 + 32 * bases if bases else 0)
    return begin, payload, payload + int(located.rows["stored"][at])


def read(store, data):
    return opened(store.backend).objects.read(digest(data)) == data


# ---- reading


def test_a_chain_reads_whatever_is_asked_for(store):
    write_frames(store, plain(BASE), plain(OTHER))
    write_frames(store, delta_frame(DELTA, 4, [BASE, OTHER]))
    write_frames(store, delta_frame(ABOVE, 8, [DELTA, BASE]))
    everything = [ABOVE, BASE, DELTA, OTHER, ABOVE]
    assert opened(store.backend).objects.read_many(list(map(digest, everything))) == everything
    for data in everything:
        assert read(store, data)
    assert_clean(opened(store.backend))


def test_bases_that_are_known_are_not_looked_up_again(memory, monkeypatch):
    write_frames(memory, plain(BASE), plain(OTHER))
    write_frames(memory, delta_frame(DELTA, 4, [BASE, OTHER]))
    write_frames(memory, delta_frame(ABOVE, 8, [DELTA, BASE]))
    store = opened(memory.backend)
    located, cache = store.objects.locate([digest(ABOVE), digest(OTHER)]), BaseCache()
    store.objects.know_bases(located, [0, 1], cache)
    monkeypatch.setattr(Index, "_locate", lambda *_, **__: pytest.fail("it is looked up"))
    buffer = memoryview(bytearray(3_000))
    store.objects.fill(located, [0], buffer, [0, 3_000], cache=cache)
    assert buffer == ABOVE


def test_bases_that_moved_since_they_became_known_are_found(memory):
    gone = write_frames(memory, plain(BASE))
    write_frames(memory, delta_frame(DELTA, 4, [BASE]))
    store = opened(memory.backend)
    located, cache = store.objects.locate([digest(DELTA)]), BaseCache()
    store.objects.know_bases(located, [0], cache)
    forge(memory, plain(BASE))
    memory.backend.delete(pack_key(gone))
    for _ in range(2):
        buffer = memoryview(bytearray(3_000))
        store.objects.fill(located, [0], buffer, [0, 3_000], cache=cache)
        assert buffer == DELTA


def test_a_base_of_too_high_a_rank_is_no_base_though_it_is_known(memory):
    write_frames(memory, plain(BASE), plain(OTHER))
    forge(memory, delta_frame(DELTA, 8, [BASE]), delta_frame(ABOVE, 8, [DELTA, OTHER]))
    store = opened(memory.backend)
    located, cache = store.objects.locate([digest(ABOVE)]), BaseCache()
    store.objects.know_bases(located, [0], cache)
    with pytest.raises(MissingObject, match=digest(DELTA).hex()):
        store.objects.fill(located, [0], memoryview(bytearray(3_000)), [0, 3_000], cache=cache)


def test_a_base_that_is_read_from_another_copy_has_the_bases_of_that(memory):
    write_frames(memory, plain(BASE), plain(OTHER))
    damaged = write_frames(memory, delta_frame(DELTA, 4, [BASE]))
    forge(memory, delta_frame(DELTA, 8, [BASE, OTHER]))
    assert [item.below for item in opened(memory.backend).objects.read_bases([digest(DELTA)])] == [3_000]
    flip(memory, damaged, place_of(memory, damaged, digest(DELTA))[1] + 5)
    [found] = opened(memory.backend).objects.read_bases([digest(DELTA)])
    assert (found.plain, found.below) == (DELTA, 6_000)


TENSORS = {name: np.random.default_rng(7).normal(0, 0.02, (300, 500)).astype(np.float32) for name in "ab"}


def tuned(step):
    """Return tensors that differ from TENSORS by a little."""
    return {name: (data * np.float32(1 + 1e-5 * step)).astype(np.float32) for name, data in TENSORS.items()}


def test_models_of_deltas_are_read_in_every_way(store, tmp_path):
    """The chunks of the second model are predicted from those of the first, with real residuals."""
    first, second = (model_of(m__safetensors=safetensors_bytes(tuned(step)), c=b"config") for step in (0, 1))
    store.add(write_model(first, tmp_path / "first"), ref="models/first")
    below = store.model("models/first").layouts
    store.add(write_model(second, tmp_path / "second"), ref="models/second")
    ids = {}
    for one, other in zip(below, store.model("models/second").layouts, strict=True):
        ids.update(zip(other.chunk_ids(), one.chunk_ids(), strict=True))
    far = made("memory", tmp_path)
    far.add(str(tmp_path / "first"), ref="models/first")
    frames = []
    for new, old in ids.items():
        bases = far.objects.read_bases([old])
        data = store.objects.read(new)
        made_of = (
            encode_delta(data, bases=bases, pieces=predict(data, bases[0].plain)) if new != old else None
        )
        if made_of is not None:
            frames.append(made_of)
            assert len(made_of.data) < 0.7 * len(data)
    assert frames
    write_frames(far, *frames)
    far.add(str(tmp_path / "second"), ref="models/second")
    reader = opened(far.backend)
    assert read_model(reader, "models/second") == second
    reader.get("models/second", str(tmp_path / "out"))
    assert read_folder(tmp_path / "out") == second
    for name, expected in tuned(1).items():
        assert np.array_equal(reader.read_tensor("models/second", name), expected)


def predict(data, base):
    size = min(len(data), len(base)) // 4 * 4
    return [same(0, [Extent(0, 0, size)], Residual(Order.FLOAT, 4))]


def test_each_base_is_decoded_once(memory, monkeypatch):
    """Eight levels of ten chunks, each made of all ten below: as many frames are read as there are."""
    levels = [[noise(100 * level + at, 600) for at in range(10)] for level in range(9)]
    write_frames(memory, *map(plain, levels[0]))
    for level in range(1, 9):
        write_frames(memory, *(delta_frame(data, 4 * level, levels[level - 1]) for data in levels[level]))
    reader = opened(memory.backend)
    count = 0
    inner = reader.backend.read_into

    def read_into(key, buffer, *, start=0):
        nonlocal count
        count += len(buffer)
        return inner(key, buffer, start=start)

    monkeypatch.setattr(reader.backend, "read_into", read_into)
    stored = sum(entry.size for entry in memory.backend.list("packs/"))
    assert reader.objects.read_many([digest(data) for data in levels[8]]) == levels[8]
    assert count <= stored


# ---- what is missing or damaged


def test_a_missing_base_is_named(store):
    base = write_frames(store, plain(BASE))
    write_frames(store, delta_frame(DELTA, 4, [BASE]))
    write_frames(store, delta_frame(ABOVE, 8, [DELTA]), plain(OTHER))
    delete_packs(store.backend, [base])
    for data in (DELTA, ABOVE):
        with pytest.raises(MissingObject, match=digest(BASE).hex()):
            read(store, data)
    found, failed = opened(store.backend).objects.read_present([digest(item) for item in (OTHER, ABOVE)])
    assert found == {digest(OTHER): OTHER}
    assert failed.keys() == {digest(ABOVE)}
    write_frames(store, plain(BASE))
    assert read(store, ABOVE)


def test_another_delta_is_read_where_the_first_lacks_its_base(store):
    base = write_frames(store, plain(BASE))
    write_frames(store, plain(OTHER))
    write_frames(store, delta_frame(DELTA, 4, [BASE]))
    write_frames(store, delta_frame(DELTA, 8, [OTHER]), delta_frame(ABOVE, 12, [DELTA]))
    reader = opened(store.backend)
    assert reader.objects.read(digest(DELTA)) == DELTA
    delete_packs(store.backend, [base])
    for data in (DELTA, ABOVE):
        assert read(store, data)
        assert reader.objects.read(digest(data)) == data


def test_a_copy_that_ranks_too_high_is_no_base(store):
    base = write_frames(store, plain(BASE))
    write_frames(store, plain(OTHER))
    write_frames(store, delta_frame(DELTA, 4, [BASE]))
    write_frames(store, delta_frame(BASE, 4, [OTHER]))
    delete_packs(store.backend, [base])
    assert read(store, BASE)
    with pytest.raises(MissingObject, match="lower rank"):
        read(store, DELTA)


@pytest.mark.parametrize("where", ["base", "delta"])
def test_a_damaged_frame_is_read_from_another_copy(store, where):
    packs = {
        "base": write_frames(store, plain(BASE)),
        "delta": write_frames(store, delta_frame(DELTA, 4, [BASE])),
    }
    write_frames(store, delta_frame(DELTA, 8, [BASE]))
    write_frames(store, plain(BASE))
    _, begin, _ = place_of(store, packs[where], digest({"base": BASE, "delta": DELTA}[where]))
    flip(store, packs[where], begin + 40)
    assert read(store, DELTA)


def test_a_damaged_base_is_named_and_so_is_its_pack(store):
    base = write_frames(store, plain(BASE))
    write_frames(store, delta_frame(DELTA, 4, [BASE]))
    flip(store, base, place_of(store, base, digest(BASE))[1])
    with pytest.raises(DigestMismatch, match=base.hex()):
        read(store, DELTA)
    [problem] = check(opened(store.backend), read_data=True).problems
    assert base.hex() in problem.key, "only the base is damaged"


def test_a_plain_copy_is_used_instead_of_a_delta_whose_base_is_damaged(store):
    base = write_frames(store, plain(BASE))
    delta = write_frames(store, delta_frame(DELTA, 4, [BASE]))
    hidden = write_frames(store, plain(DELTA))
    reader = opened(store.backend)
    # The reader's index was read before the plain copy was there.
    saved = store.backend.read(pack_key(hidden))
    delete_packs(store.backend, [hidden])
    assert reader.objects.read(digest(DELTA)) == DELTA
    store.backend.put(pack_key(hidden), [saved])
    flip(store, base, place_of(store, base, digest(BASE))[1])
    assert reader.objects.read(digest(DELTA)) == DELTA
    assert delta in packs_of(store.backend)


def test_every_flip_in_a_delta_is_seen(memory):
    write_frames(memory, plain(BASE))
    data = bytearray(BASE[:400])
    data[7] ^= 1
    delta = encode_delta(
        bytes(data),
        bases=[Base(digest(BASE), BASE)],
        pieces=[same(0, [Extent(0, 0, 400)], Residual(Order.INTEGER, 1))],
    )
    pack = write_frames(memory, delta)
    whole = bytes(memory.backend.read(pack_key(pack)))
    begin, _, end = place_of(memory, pack, digest(data))
    seen, silent = set(), 0
    for at in range(begin, end):
        flip(memory, pack, at)
        try:
            silent += read(memory, bytes(data))
        except IntegrityError as error:
            seen.add(type(error))
        report = check(opened(memory.backend), read_data=True)
        assert not report.ok
        memory.backend.delete(pack_key(pack))
        memory.backend.put(pack_key(pack), [whole])
    assert {FormatError, DigestMismatch} <= seen
    assert silent <= 2, "a bit of zstd's own header may mean nothing"
    assert read(memory, bytes(data))


# ---- hostile packs


def test_circles_and_deltas_of_themselves_end(memory):
    forge(memory, delta_frame(DELTA, 4, [DELTA]))
    forge(memory, delta_frame(ABOVE, 4, [OTHER]), delta_frame(OTHER, 4, [ABOVE]))
    forge(memory, delta_frame(BASE, 32, [BASE, DELTA]))
    for data in (DELTA, ABOVE, OTHER, BASE):
        with pytest.raises(MissingObject):
            read(memory, data)
    assert check(opened(memory.backend), read_data=True).ok, "garbage that lacks a base is no damage"


def test_a_chain_of_all_ranks_is_read(memory):
    chain = [noise(200 + at, 500) for at in range(33)]
    write_frames(
        memory, plain(chain[0]), *(delta_frame(chain[rank], rank, [chain[rank - 1]]) for rank in range(1, 33))
    )
    assert read(memory, chain[32])


def test_bases_without_end_are_refused_before_they_are_read(memory):
    """A small pack of large chunks that compress to nothing, and one that needs all of them."""
    zeros = [bytes([at & 255, at >> 8]) + bytes(MIB - 2) for at in range(257)]
    write_frames(memory, *map(plain, zeros))
    names = [Base(digest(item), item) for item in zeros]
    pieces = [same(at, [Extent(at, 0, 1)]) for at in range(257)]
    assert encode_delta(bytes(at & 255 for at in range(257)), bases=names, pieces=pieces) is None
    wanted = bytes(at & 255 for at in range(257))
    write_frames(memory, delta_frame(wanted, 4, zeros))
    with pytest.raises(FormatError, match="256 MiB is the limit"):
        read(memory, wanted)
    [problem] = check(opened(memory.backend), read_data=True).problems
    assert "256 MiB" in problem.message


@pytest.mark.parametrize("change", [{"encoding": 0}, {"encoding": 1}, {"encoding": 9}])
def test_bases_and_encoding_have_to_fit(memory, change):
    write_frames(memory, plain(BASE))
    delta = delta_frame(DELTA, 4, [BASE])
    header = dataclasses.replace(delta.headers[0], **change)
    payload = bytes(delta.data[header.size :])
    write_frames(memory, EncodedFrames([header], memoryview(frame.encode_header(header) + payload)))
    with pytest.raises(FormatError):
        read(memory, DELTA)


# ---- writing


def pieces_of(size):
    return [same(0, [Extent(0, 0, size)], Residual(Order.INTEGER, 1))]


def test_a_writer_gets_ranks_in_steps_and_ends_after_eight(memory):
    write_frames(memory, plain(relative(0)))
    ranks = []
    for number in range(1, 10):
        bases = memory.objects.read_bases([digest(relative(number - 1))])
        frames = encode_delta(relative(number), bases=bases, pieces=pieces_of(40_000))
        if frames is None:
            break
        assert bases[0].below == 40_000 * (number - 1)
        write_frames(memory, frames)
        ranks.append(frames.headers[0].rank)
    assert ranks == [4, 8, 12, 16, 20, 24, 28, 32]
    assert read(memory, relative(8))
    assert_clean(opened(memory.backend))


def test_a_delta_that_saves_nothing_is_not_written():
    assert encode_delta(DELTA, bases=[Base(digest(BASE), BASE)], pieces=pieces_of(3_000)) is None


def test_a_wrong_encoder_is_found_before_anything_is_written(monkeypatch):
    subtract = encoder.subtract_each

    def wrong(tasks, out):
        outcomes = subtract(tasks, out)
        out[5] ^= 1
        return [Outcome.LOST] * len(outcomes)

    monkeypatch.setattr(encoder, "subtract_each", wrong)
    base = Base(digest(relative(0)), relative(0))
    with pytest.raises(DigestMismatch, match="Nothing was added"):
        encode_delta(relative(1), bases=[base], pieces=pieces_of(40_000))


# ---- whole stores


@pytest.fixture
def family(store, tmp_path):
    """Models whose chunks are deltas of one another, as adds write them."""
    contents = {}
    with predicting():
        for number in range(4):
            content = model_of(near=relative(number), own=noise(number, 2_000))
            store.add(write_model(content, tmp_path / f"m{number}"), ref=f"models/m{number}")
            contents[f"models/m{number}"] = content
    assert ranks_in(store)[0] == 0
    assert len(set(ranks_in(store))) > 1
    return contents


def ranks_in(store):
    located = opened(store.backend).objects.find([digest(relative(number)) for number in range(FAMILY)])
    return sorted(located.rows["rank"][located.found].tolist())


def assert_whole(store, contents):
    for ref, content in contents.items():
        assert read_model(opened(store.backend), ref) == content
    assert_clean(opened(store.backend))


def test_what_a_collector_frees_and_what_it_keeps(store, family):
    policy = GcPolicy(orphans_now=True, grace=0, superseded=0, repack=1.0)
    for ref in list(family):
        store.rm(ref)
        del family[ref]
        execute_gc(store, plan_gc(store, policy), wait=0)
        assert_whole(store, family)
    execute_gc(store, plan_gc(store, policy), wait=0)
    assert packs_of(store.backend) == []


def test_a_condemned_base_is_copied_or_its_deltas_written_anew(store, family):
    for pack in packs_of(store.backend):
        condemn(store.backend, [pack])
        with predicting():
            for ref in family:
                opened(store.backend).tag(ref.removeprefix("models/"), ref)
    assert_whole(store, family)


@pytest.mark.parametrize("kind", ["memory", "local", "far"])
def test_a_sync_brings_everything(store, family, kind, tmp_path):
    other = made(kind, tmp_path)
    report = execute(plan_sync(store, other))
    assert report.reencoded == 0
    assert ranks_in(other) == ranks_in(store)
    assert_whole(other, family)


def test_a_sync_of_one_model_brings_no_base(store, family, memory):
    for ref, content in family.items():
        target = made("memory", None)
        execute(plan_sync(store, target, [ref]))
        assert ranks_in(target) == [0]
        assert_whole(target, {ref: content})


def test_a_pull_reads_bases_from_the_store_that_has_them(memory, tmp_path):
    """Deltas are verified against the bases that are here, so that only the deltas travel."""
    far, near = made("far", tmp_path), memory
    base, new = noise(1, 900_000), bytearray(noise(1, 900_000))
    new[5] ^= 1
    folders = [
        write_model(model_of(f=data), tmp_path / f"{at}") for at, data in enumerate((base, bytes(new)))
    ]
    for store in (far, near):
        store.add(folders[0], ref="models/base")
    scratch = made("memory", tmp_path)
    scratch.add(folders[1], ref="models/new")
    olds = far.model("models/base").layouts[0].chunk_ids()
    news = scratch.model("models/new").layouts[0].chunk_ids()
    for one, other in zip(olds, news, strict=True):
        if one != other:
            data = scratch.objects.read(other)
            write_frames(
                far, encode_delta(data, bases=far.objects.read_bases([one]), pieces=pieces_of(len(data)))
            )
    far.add(folders[1], ref="models/new")
    plan = plan_sync(opened(far.backend), near, ["models/new"])
    report = execute(plan)
    assert report.reencoded == 0
    assert report.bytes_moved < 20_000
    assert read_model(opened(near.backend), "models/new") == model_of(f=bytes(new))


def test_quarantine_condemns_the_base_and_not_what_needs_it(store, family):
    objects = opened(store.backend).objects
    located = objects.find([digest(relative(number)) for number in range(4)])
    by_pack = objects.packs_of(located)
    [lowest] = [at for at in range(4) if located.rows["rank"][at] == 0]
    [pack] = [pack for pack, positions in by_pack.items() if lowest in positions]
    flip(store, pack, place_of(store, pack, digest(relative(lowest)))[1] + 9)
    highest = int(np.argmax(located.rows["rank"]))
    reader = opened(store.backend)
    assert quarantine_damaged(reader, reader.record(f"models/m{highest}")).keys() == {pack.hex()}
    assert reader.objects.quarantined() == {pack}
