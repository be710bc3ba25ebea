"""Bases are dependencies like any other: what counts as a copy, what a record depends on, what is sent and checked."""

from __future__ import annotations

import itertools
import time
import uuid

import numpy as np
import pytest
from fakes.collector import condemn, decoded, delete_packs, delta_frame, frames_of, packs_of, write_frames
from fakes.stores import model_of, noise, read_model, write_model
from hypothesis import given
from hypothesis import strategies as st

from casstore.backend import MemoryBackend
from casstore.digest import digest
from casstore.errors import MissingObject
from casstore.format import rows
from casstore.format.rows import MAX_RANK, ROW, BaseLists, Kind
from casstore.machine.state import MachineState
from casstore.objects.bases import decodable, resolve
from casstore.objects.index.located import NOT_FOUND, Located
from casstore.objects.publishing.pack_writer import EncodedFrames, encode_object, encode_objects
from casstore.objects.reading import frames as frame_reader
from casstore.ops.check import check
from casstore.ops.sync import execute, plan_sync
from casstore.store.identity import create_format
from casstore.store.model_store import ModelStore

BASE = noise(1, 3_000)
DELTA = noise(2, 3_000)
ABOVE = noise(3, 3_000)


def new_store():
    backend = MemoryBackend(uuid.uuid4().hex)
    return ModelStore(backend, store_id=create_format(backend).store_id, machine=MachineState(None))


def again(store):
    """Return the store as another process sees it."""
    return ModelStore(store.backend, store_id=bytes.fromhex(store.store_id), machine=MachineState(None))


def plain(data):
    return encode_object(Kind.CHUNK, data)


def known(store, data):
    with again(store).publication() as publication:
        return bool(publication.known([digest(data)])[0])


@pytest.fixture
def store():
    return new_store()


@pytest.fixture
def chain(store):
    """ABOVE on DELTA on BASE, each in a pack of its own."""
    return [
        write_frames(store, plain(BASE)),
        write_frames(store, delta_frame(DELTA, 4, [BASE])),
        write_frames(store, delta_frame(ABOVE, 8, [DELTA])),
    ]


@pytest.fixture
def model(store, chain, tmp_path):
    """A model of which the only chunk is ABOVE."""
    store.add(write_model(model_of(f=ABOVE), tmp_path / "model"), ref="models/m")
    return store.record("models/m")


def test_a_delta_is_a_copy_while_its_bases_are(store, chain):
    assert known(store, ABOVE)


@pytest.mark.parametrize("act", [condemn, delete_packs])
@pytest.mark.parametrize("which", [0, 1])
def test_a_delta_without_a_base_is_no_copy(store, chain, which, act):
    act(store.backend, [chain[which]])
    assert not known(store, ABOVE)
    with again(store).publication() as publication:
        assert publication.claim([digest(ABOVE), digest(ABOVE)]) == [0]


def test_what_is_hashed_needs_no_hash_of_its_bases(store, chain, monkeypatch):
    hashed = []
    monkeypatch.setattr(frame_reader, "digest", lambda plain: hashed.append(digest(plain)) or hashed[-1])
    [base] = again(store).objects.read_bases([digest(ABOVE)])
    assert bytes(base.plain) == ABOVE
    assert hashed == [digest(ABOVE)]


def test_what_needs_a_base_that_is_gone_cannot_be_required(store, chain):
    delete_packs(store.backend, [chain[0]])
    with again(store).publication() as publication, pytest.raises(MissingObject):
        publication.require([digest(BASE)])


def test_another_copy_of_a_base_does(store, chain):
    write_frames(store, plain(BASE))
    delete_packs(store.backend, [chain[0]])
    assert known(store, ABOVE)


def test_a_copy_of_no_lower_rank_does_not(store, chain):
    other = noise(9, 900)
    write_frames(store, plain(other), delta_frame(BASE, 4, [other]))
    delete_packs(store.backend, [chain[0]])
    assert known(store, BASE)
    assert not known(store, DELTA)


def test_a_plain_copy_is_found_beside_a_delta_that_does_not_decode(store, chain):
    delete_packs(store.backend, [chain[0]])
    write_frames(store, plain(ABOVE))
    assert known(store, ABOVE)
    assert not known(store, DELTA)


def test_a_record_depends_on_the_packs_of_bases(store, chain):
    with again(store).publication() as publication:
        publication.known([digest(ABOVE)])
        assert set(publication._depends) == set(chain)


def test_what_a_writer_writes_itself_depends_on_them_too(store):
    pack = write_frames(store, plain(BASE))
    with again(store).publication() as publication:
        publication.write(delta_frame(DELTA, 4, [BASE]))
        publication._flush()
        [own] = publication._depends
        assert publication._check_packs() == (False, [])
        assert set(publication._depends) == {own, pack}


def test_deltas_are_looked_at_again_once_a_pack_of_their_bases_is_gone(store, chain, monkeypatch):
    with again(store).publication() as publication:
        publication.known([digest(ABOVE)])
        assert publication._check_packs() == (False, [])
        with monkeypatch.context() as patched:
            patched.setattr(publication, "_without_bases", lambda: pytest.fail("nothing has changed"))
            assert publication._check_packs() == (False, [])
        condemn(store.backend, [chain[0]])
        lost, stranded = publication._check_packs()
        assert lost
        assert digest(ABOVE) in stranded


def test_deltas_that_come_later_are_looked_at(store, chain):
    with again(store).publication() as publication:
        publication.known([digest(DELTA)])
        assert publication._check_packs() == (False, [])
        publication.write(delta_frame(noise(9, 900), 4, [noise(8, 900)]))
        assert publication._check_packs() == (False, [digest(noise(9, 900))])


@pytest.mark.parametrize("where", ["same pack", "before", "after"])
def test_a_delta_may_be_written_in_any_order(store, where):
    frames = [plain(BASE), delta_frame(DELTA, 4, [BASE])]
    if where == "before":
        write_frames(store, frames.pop(0))
    write_frames(store, *(reversed(frames) if where == "after" else frames))
    assert known(store, DELTA)


def test_a_delta_whose_base_nobody_has_is_made_again_without(store):
    asked = []

    def supply(missing):
        asked.append(set(missing))
        yield plain(DELTA)

    with store.publication() as publication:
        publication.write(delta_frame(DELTA, 4, [BASE]))
        publication.commit_all([], supply)
    assert asked == [{digest(DELTA)}]
    assert known(store, DELTA)
    assert int(store.objects._index.locate([digest(DELTA)]).rows["rank"][0]) == 0


def test_a_delta_whose_base_nobody_has_is_not_acknowledged(store):
    with store.publication() as publication:
        publication.write(delta_frame(DELTA, 4, [BASE]))
        with pytest.raises(MissingObject):
            publication.commit_all([], lambda _: iter(()))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_a_collector_condemns_is_copied(store, chain, model, which):
    """A tag has no files: bases, or what lacks them, are copied while they can be read."""
    condemn(store.backend, [chain[which]])
    writer = again(store)
    writer.tag("best", "models/m")
    delete_packs(store.backend, [chain[which]])
    assert read_model(again(store), "tags/best") == model_of(f=ABOVE)
    frames = [item for pack in packs_of(store.backend) for item in frames_of(store.backend, pack)]
    assert digest(ABOVE) in decoded(frames)


@pytest.mark.parametrize("which", [0, 1])
def test_who_asks_for_a_model_is_told_that_a_base_is_gone(store, chain, model, which):
    assert set(map(digest, (BASE, DELTA, ABOVE))) <= set(store.objects_of(model))
    assert again(store).lacks(model) == 0
    assert check(again(store)).ok
    delete_packs(store.backend, [chain[which]])
    assert again(store).lacks(model) > 0
    [problem] = check(again(store)).problems
    assert digest(ABOVE).hex() in problem.message


@pytest.mark.parametrize("which", [0, 1])
def test_adding_the_files_again_mends_it(store, chain, model, which, tmp_path):
    delete_packs(store.backend, [chain[which]])
    writer = again(store)
    added = writer.add(write_model(model_of(f=ABOVE), tmp_path / "again"), ref="models/m")
    assert added.chunks_new == 1
    assert again(store).lacks(model) == 0
    assert check(again(store)).ok


def test_a_sync_sends_what_the_other_side_has_only_without_its_base(store, chain, tmp_path):
    src = new_store()
    src.add(write_model(model_of(f=ABOVE), tmp_path / "model"), ref="models/m")
    delete_packs(store.backend, [chain[0]])
    execute(plan_sync(src, again(store)))
    assert again(store).lacks(store.record("models/m")) == 0


# ---- the search itself, with lists from anywhere


def located_in(frames):
    """Return what finds these frames as an index does: of each object the one of lowest rank."""

    def locate(ids):
        ids = [ids[at : at + 32] for at in range(0, len(ids), 32)] if isinstance(ids, bytes) else ids
        asked.append(len(ids))
        table = np.zeros(len(ids), ROW)
        table["pack"] = NOT_FOUND
        lists = []
        for at, object_id in enumerate(ids):
            copies = sorted((rank, bases) for item, rank, bases in frames if item == object_id)
            if copies:
                rank, bases = copies[0]
                table["id"][at] = np.frombuffer(object_id, ">u8")
                table["pack"][at], table["rank"][at] = 0, rank
                if bases:
                    lists.append(bases)
                    table["bases"][at] = len(lists)
        return Located(table, np.zeros(len(ids), np.int32), (BaseLists.of(lists),))

    asked = []
    locate.asked = asked
    return locate


names = [bytes([number]) * 32 for number in range(6)]
frames = st.lists(
    st.tuples(
        st.sampled_from(names),
        st.integers(1, MAX_RANK),
        st.lists(st.sampled_from(names), min_size=1, max_size=3),
    )
    | st.tuples(st.sampled_from(names), st.just(0), st.just([])),
    max_size=12,
    unique_by=lambda item: item[0],
)


@given(frames)
def test_any_lists(frames):
    """Circles, objects that name themselves, ranks that rise: the answer is that of trying everything."""
    frames = [(item, rank, tuple(bases)) for item, rank, bases in frames]
    expected = decoded(frames)
    resolved = resolve(located_in(frames), names)
    assert {name for name, good in zip(names, resolved.found, strict=True) if good} == expected
    assert set(decodable(frames)) == expected
    held = {item: bases for item, _, bases in frames}
    needed = {base for name in expected for base in held[name]}
    asked = {name for name in names if held.get(name)}
    assert needed - asked <= set(rows.row_ids(resolved.needed)) <= needed


def test_a_long_chain_ends_after_as_many_steps_as_there_are_ranks():
    ids = [digest(b"%d" % number) for number in range(1000)]
    locate = located_in([(one, MAX_RANK, (other,)) for one, other in itertools.pairwise(ids)])
    assert not resolve(locate, ids[:1]).found.any()
    assert len(locate.asked) <= MAX_RANK + 1


def test_ten_thousand_deltas_are_resolved_in_a_moment(store):
    bases = {digest(item): item for item in (b"base %d" % number for number in range(2_000))}
    names, deltas = list(bases), [b"delta %d" % number for number in range(10_000)]
    frames = [delta_frame(item, 4, [bases[names[at % 2_000]]]) for at, item in enumerate(deltas)]
    joined = EncodedFrames(
        [item.headers[0] for item in frames], memoryview(b"".join(item.data for item in frames))
    )
    write_frames(store, encode_objects(Kind.CHUNK, bases), joined)
    ids = [digest(item) for item in deltas]
    with again(store).publication() as publication:
        started = time.perf_counter()
        assert publication.known(ids).all()
        assert time.perf_counter() - started < 3
