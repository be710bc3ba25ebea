"""Writers and collectors in all kinds of orders: no acknowledged record loses an object.

The writers are the real publication code. The collectors are the real sweep, without any grace: they condemn
whatever they like, rightly or not. That the search is able to find losses is shown by dropping one
rule at a time.
"""

from __future__ import annotations

import functools
import itertools
import random
import uuid
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from fakes.collector import (
    condemn,
    current_records,
    decoded,
    delta_frame,
    frames_of,
    packs_of,
)
from fakes.counts import PLACES, SCHEDULES, SEED
from fakes.schedule import Schedule, ScheduledBackend
from fakes.stores import commit_inline, repeat_randomness

from casstore.backend import MemoryBackend, memory
from casstore.digest import digest
from casstore.errors import BackendUnavailable, ConflictError, MissingObject
from casstore.format import marks, names
from casstore.format.rows import Kind
from casstore.machine.state import MachineState
from casstore.objects.bases import Resolved
from casstore.objects.collection.table import FrameTable
from casstore.objects.index.index import Index
from casstore.objects.keys import PACK_PREFIX, pack_key
from casstore.objects.object_store import ObjectStore
from casstore.objects.publishing.pack_writer import encode_object
from casstore.objects.publishing.publication import Publication
from casstore.ops.gc.mark import Mark
from casstore.ops.gc.policy import GcPolicy
from casstore.ops.gc.survey import Survey
from casstore.ops.gc.sweep import Sweep
from casstore.refs.refs import Refs
from casstore.store.model_store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Callable

THOROUGH = SCHEDULES > 1000
CHANGES = 3 if THOROUGH else 2

OBJECTS = {
    digest(plain): plain for plain in (b"x" * 40, b"y" * 50, b"z" * 60, b"new" * 9, b"base" * 9, b"delta" * 9)
}
X, Y, Z, NEW, BASE, DELTA = OBJECTS


class Loss(AssertionError):
    """An acknowledged record points at an object that no pack holds."""


class MetadataMark(Mark):
    """Needs what these tests' records say in their metadata."""

    def add(self, records):
        for record in records:
            self._need(sorted(needs(record)), dict.fromkeys(needs(record), record.name))


class Collected(Survey):
    """What a collector knows, of a store whose records say what they need in their metadata."""

    def __init__(self, store, policy):
        super().__init__(store, policy)
        self.mark = MetadataMark(store, self.packs)
        self.own = []


class Rules:
    """What collectors and writers do; subclasses drop a rule."""

    publication = Publication
    Look = Collected
    Act = Sweep

    def expire(self, backend):
        """What time does to tombstones: nothing."""

    def finished(self, survey, sweep):
        """Tombstones that are removed in the end: only those of which every pack is gone, though at once."""
        return [
            item for item in survey.tombstones if not any(survey.packs.is_listed(pack) for pack in item.packs)
        ]


_footers = {}


def read_once(backend, pack):
    """Return the frames of a pack that is there; its id is the hash of what it holds."""
    backend.stat(pack_key(pack))
    if pack not in _footers:
        _footers[pack] = frames_of(backend, pack)
    return _footers[pack]


def ids_of(frames):
    return {item for item, _, _ in frames}


def needs(record):
    return {bytes.fromhex(text) for text in record.metadata["objects"]}


def writer_decides(operation, key):
    """Calls that decide what a writer believes; others only make schedules longer."""
    return operation == "stat" or key.startswith(marks.TOMBSTONE_PREFIX)


def collector_decides(operation, key):
    """Calls that decide what a collector believes."""
    return key.startswith(marks.TOMBSTONE_PREFIX) or key in (PACK_PREFIX, names.PREFIX)


class World:
    """One store, the actors on it, and who was promised what."""

    def __init__(self, rules, schedule, *, forgotten=(), crossed=False):
        self.rules = rules
        self.schedule = schedule
        self.plain = MemoryBackend(uuid.uuid4().hex)
        self.held = {}
        self.frames = {}
        self.stored = 0
        files, promised = _start_without(frozenset(forgotten), crossed=crossed)
        self.plain._objects.update(files)
        self.promised = dict(promised)
        self.check()

    def client(self, decisive):
        return Client(WatchedBackend(self, decisive), self)

    def promise(self, name, objects):
        self.promised[name] = set(objects)
        self.check()

    def check(self):
        """Look at the packs themselves; nobody's turn passes meanwhile."""
        alive = packs_of(self.plain)
        for pack in alive:
            if pack not in self.frames:
                self.frames[pack] = read_once(self.plain, pack)
                self.held[pack] = ids_of(self.frames[pack])
        there = decoded(itertools.chain.from_iterable(self.frames[pack] for pack in alive))
        for name, objects in self.promised.items():
            if not objects <= there:
                raise Loss(name)

    def run(self):
        try:
            self.schedule.run()
            self.check()
        finally:
            memory._stores.pop(self.plain.url.removeprefix("memory://"))


class WatchedBackend(ScheduledBackend):
    """Looks after each delete whether everything promised is still there."""

    def __init__(self, world, decisive):
        super().__init__(world.plain, world.schedule, decisive=decisive)
        self._world = world

    def delete(self, key):
        super().delete(key)
        self._world.check()


class Client:
    """One process: its index grows old while others work."""

    def __init__(self, backend, world):
        self.backend = backend
        self.world = world
        self.index = Index(backend)
        self.refs = Refs(backend, MachineState(None))

    def publication(self):
        return self.world.rules.publication(
            backend=self.backend,
            index=self.index,
            read_present=ObjectStore(self.backend, index=self.index).read_present,
            put_record=self.refs.put,
        )

    def _draft(self, name, objects):
        metadata = {"objects": [item.hex() for item in sorted(objects)]}
        return lambda packs: self.refs.draft(
            name, target=digest(name.encode()), metadata=metadata, packs=packs
        )

    def add(self, name, objects):
        """Publish objects that this process has at hand."""

        def supply(missing):
            for item in sorted(missing & objects):
                yield encode_object(Kind.CHUNK, OBJECTS[item])

        with self.publication() as publication:
            publication.write_objects(Kind.CHUNK, {item: OBJECTS[item] for item in sorted(objects)})
            publication.commit(self._draft(name, objects), supply)
            self.world.stored += publication.bytes_stored > 0
        self.world.promise(name, objects)

    def tag(self, name, objects):
        """Publish a name for objects that the store has, or had."""
        try:
            with self.publication() as publication:
                publication.require(sorted(objects))
                publication.commit(self._draft(name, objects), lambda _: iter(()))
        except (MissingObject, ConflictError):
            return  # not acknowledged
        self.world.promise(name, objects)

    def drop(self, name):
        self.world.promised.pop(name, None)
        self.refs.put(self.refs.draft(name, target=None))

    def collect(self, choose):
        """Condemn the packs that `choose` takes, then finish all tombstones there are, as another run would."""
        packs = choose(packs_of(self.backend))
        if not packs:
            return
        store = ModelStore(self.backend, store_id=bytes(16), machine=MachineState(None))
        survey = self.world.rules.Look(store, GcPolicy(grace=0, superseded=0))
        sweep = self.world.rules.Act(survey)
        sweep.condemn(packs)
        survey.own = sweep.own
        try:
            sweep.look()
        except BackendUnavailable as error:
            # Another one finished with our tombstone, and here it does not wait for a week before it removes it.
            assert "does not list gc/tombstones/" in str(error)  # noqa: PT017
            return
        sweep.finish(survey.condemned())
        survey.packs.read()
        for item in self.world.rules.finished(survey, sweep):
            self.backend.delete(item.key)


REFS = {"models/first": {X, Y}, "models/second": {X}, "models/third": {Y, Z}, "models/fourth": {DELTA}}


@functools.cache
def _start(*, crossed):
    """Return the files of a store in which X and Y lie in two packs each, Z in one; DELTA needs another one's BASE.

    If `crossed`, there are two packs more, with X as a delta of Y and Y as a delta of X.
    """
    plain = MemoryBackend("start")
    first, second, third, fourth = REFS.items()
    world = SimpleNamespace(rules=Rules(), promise=lambda *_: None, stored=0)
    setup = Client(plain, world)
    setup.add(*first)
    tombstone = condemn(plain, packs_of(plain))
    setup.add(*second)
    plain.delete(tombstone)
    setup.add(*third)
    crossing = [(X, Y), (Y, X)] if crossed else []
    for frames in (
        encode_object(Kind.CHUNK, OBJECTS[BASE]),
        delta_frame(OBJECTS[DELTA], 4, [OBJECTS[BASE]]),
        *(delta_frame(OBJECTS[one], 4, [OBJECTS[other]]) for one, other in crossing),
    ):
        with setup.publication() as publication:
            publication.write(frames)
            publication.commit_all([], lambda _: iter(()))
    setup.add(*fourth)
    return dict(memory._stores.pop("start"))


@functools.cache
def _start_without(forgotten, *, crossed):
    """Return such files after these refs were deleted, and what the others were promised.

    What the deleted ones alone reach is garbage that writers still find.
    """
    files = _start(crossed=crossed)
    plain = MemoryBackend("start")
    plain._objects.update(files)
    for name in sorted(forgotten):
        Client(plain, SimpleNamespace(promised={})).drop(name)
    promised = {name: needs(record) for name, record in current_records(plain).items()}
    return dict(memory._stores.pop("start")), promised


@pytest.fixture(autouse=True)
def restart(monkeypatch):
    """Call it, and the next schedule is the same wherever it runs: what is found is found again."""
    commit_inline(monkeypatch)
    restart = repeat_randomness(monkeypatch)
    # All at once, and before the first schedule: their random bytes are not taken from what schedules draw.
    for count in range(len(REFS) + 1):
        for forgotten in itertools.combinations(REFS, count):
            for crossed in (False, True):
                _start_without(frozenset(forgotten), crossed=crossed)
    return restart


# ---- any number of actors, by chance


def crowd(seed, rules):
    """Run one schedule of several writers and collectors; raise Loss if a promise was broken."""
    chance = random.Random(seed)
    forgotten = chance.sample(sorted(REFS), chance.randint(0, 3))
    crossed = random.Random(seed).random() < 0.3
    world = World(rules, Schedule.by_chance(chance), forgotten=forgotten, crossed=crossed)
    everywhere = chance.random() < 0.2

    def client(decisive):
        return world.client((lambda *_: True) if everywhere else decisive)

    def take(packs):
        return packs if chance.random() < 0.5 else chance.sample(packs, chance.randint(0, len(packs)))

    def add(number):
        writer = client(writer_decides)
        if chance.random() < 0.5:
            writer.index.refresh()  # a process that has been running for a while
        objects = chance.choice(({X}, {X, Y}, {X, Y, Z}, {Z, NEW}, {DELTA}, {DELTA, X}))
        kind = chance.choice((writer.add, writer.add, writer.tag))
        world.schedule.add(lambda: kind(f"models/new{number}", objects))

    def collect(_):
        collector = client(collector_decides)
        world.schedule.add(lambda: collector.collect(take))

    def drop():
        dropper = client(writer_decides)
        world.schedule.add(lambda: [dropper.drop(name) for name in sorted(set(REFS) - set(forgotten))])

    actors = [functools.partial(add, number) for number in range(chance.randint(1, 2))]
    actors += [functools.partial(collect, number) for number in range(chance.randint(1, 3))]
    actors += [drop] * chance.randint(0, 1)
    chance.shuffle(actors)
    for actor in actors:
        actor()
    world.run()
    return world


@pytest.mark.parametrize("part", range(4))
def test_no_acknowledged_record_loses_an_object(part, restart):
    acknowledged = rewritten = deleted = 0
    for seed in range(part, SCHEDULES, 4):
        restart()
        world = crowd(seed + 1_000_000 * SEED, Rules())
        acknowledged += any(name.startswith("models/new") for name in world.promised)
        rewritten += world.stored > 0
        deleted += len(packs_of(world.plain)) < len(world.held)
    runs = SCHEDULES // 4
    assert acknowledged > runs / 2
    assert rewritten > runs / 10
    assert deleted > runs / 3


# ---- two actors, in every order that changes at most a few times


@dataclass(frozen=True)
class Duel:
    """Two actors: each is given a world and returns its work."""

    first: Callable
    second: Callable
    forgotten: tuple[str, ...] = tuple(REFS)
    crossed: bool = False

    def play(self, rules, places, *, swapped):
        """Run the schedule that changes at `places`; return at how many steps it could have changed."""
        world = World(rules, Schedule.changing_at(places), forgotten=self.forgotten, crossed=self.crossed)
        for actor in (self.second, self.first) if swapped else (self.first, self.second):
            world.schedule.add(actor(world))
        world.run()
        return world.schedule.choices


def adds(*objects, running=False, late=False):
    def actor(world):
        client = world.client(writer_decides)
        if running:
            client.index.refresh()

        def work():
            if late:
                world.rules.expire(client.backend)
            client.add("models/new", set(objects))

        return work

    return actor


def tags(*objects):
    def actor(world):
        client = world.client(writer_decides)
        return lambda: client.tag("tags/new", set(objects))

    return actor


def collects(*held):
    """Condemn the packs that hold just these objects, all packs if none are given."""

    def actor(world):
        client = world.client(collector_decides)

        def take(packs):
            return [pack for pack in packs if not held or world.held.get(pack) in map(set, held)]

        return lambda: client.collect(take)

    return actor


def collects_plain(*objects):
    """Condemn the packs that hold one of these objects in a frame that decodes alone."""

    def actor(world):
        client = world.client(collector_decides)

        def take(packs):
            frames = {pack: world.frames.get(pack, []) for pack in packs}
            return [
                pack for pack in packs if any(item in objects and not rank for item, rank, _ in frames[pack])
            ]

        return lambda: client.collect(take)

    return actor


DUELS = {
    "an add and a collector": Duel(adds(X), collects()),
    "an add in a process that runs for long": Duel(adds(Y, Z, running=True), collects()),
    "an add of something new": Duel(adds(X, NEW), collects()),
    "an add of a delta": Duel(adds(DELTA), collects({BASE}), forgotten=("models/fourth",)),
    "a tag of a delta": Duel(tags(DELTA), collects({BASE}), forgotten=()),
    "a tag and a collector": Duel(tags(Z), collects(), forgotten=()),
    "a tag of garbage": Duel(tags(X), collects()),
    "two collectors": Duel(collects({X, Y}), collects({X}), forgotten=("models/first", "models/third")),
    "an add after a while": Duel(collects({X}, {X, Y}), adds(X, late=True)),
    "two collectors of the same": Duel(collects({X}), collects({X}), forgotten=("models/first",)),
    "two collectors of crossed deltas": Duel(
        collects_plain(X), collects_plain(Y), forgotten=("models/second",), crossed=True
    ),
    "a tag of crossed deltas": Duel(tags(X, Y), collects_plain(X, Y), forgotten=(), crossed=True),
}


def play_every_order(duel, rules, restart, *, changes):
    """Play each order that changes at most so many times, those with few changes first.

    A change before the first step is the other order, and one after an actor's end is none.
    """
    orders = deque(((), swapped) for swapped in (False, True))
    while orders:
        places, swapped = orders.popleft()
        restart()
        choices = duel.play(rules, places, swapped=swapped)
        if len(places) < changes:
            later = range(places[-1] + 1 if places else 1, min(choices, PLACES))
            orders.extend(((*places, place), swapped) for place in later)


@pytest.mark.parametrize("duel", DUELS.values(), ids=DUELS.keys())
def test_every_order_that_changes_a_few_times(duel, restart):
    play_every_order(duel, Rules(), restart, changes=CHANGES)


# ---- what happens when a rule is dropped


class SkipsTheSecondCheck(Publication):
    def _secure(self, supply):
        if self._checks == 0:
            super()._secure(supply)
        self._checks += 1

    _checks = 0


class SkipsBothChecks(Publication):
    def _secure(self, supply):
        pass


class LooksAtPacksFirst(Publication):
    """Stats packs, then reads tombstones."""

    def _secure(self, supply):
        have = self._present._have
        seen = {pack: have([pack])[0] for pack in self._depends}
        self._present._have = lambda packs: [
            seen[pack] if pack in seen else have([pack])[0] for pack in packs
        ]
        super()._secure(supply)
        del self._present._have


class TrustsItsOwnPacks(Publication):
    """Checks only what others wrote."""

    def _secure(self, supply):
        own = {pack: self._depends.pop(pack) for pack in self._fresh & self._depends.keys()}
        super()._secure(supply)
        self._depends.update(own)

    def _flush(self):
        before = set(self._depends)
        super()._flush()
        self._fresh = getattr(self, "_fresh", set()) | (set(self._depends) - before)


class LeavesBasesOut(Publication):
    """Takes a delta for a copy, wherever its bases are."""

    def _resolve(self, ids):
        located = self._locate(ids)
        return Resolved(located, located.found, located.rows[:0], frozenset())


class ForgetsBases(Publication):
    """Looks for bases once, and does not depend on their packs."""

    def _lean_on(self, bases):
        pass

    def _without_bases(self):
        return []


class IgnoresTombstones(Publication):
    """Checks that packs are there, whatever tombstones say."""

    def _secure(self, supply):
        for _ in range(2):
            super()._secure(supply)

    @property
    def _condemned(self):
        return frozenset()

    @_condemned.setter
    def _condemned(self, value):
        pass


def writer_that(publication):
    return type(publication.__name__, (Rules,), {"publication": publication})()


class TableWithoutBases(FrameTable):
    def decodes(self, usable, *, also=None):
        return usable[self.packs]

    def _bases_of(self, rows):
        return np.zeros(0, np.int64)


class TableWithoutRanks(FrameTable):
    """A delta counts wherever there is any frame of its bases."""

    def decodes(self, usable, *, also=None):
        there = usable[self.packs]
        held = self.covered(there)
        lists = self._lists
        counts = there.copy()
        for row in np.flatnonzero(there & (lists > 0)).tolist():
            bases = self.find(self._bases[self._offsets[lists[row] - 1] : self._offsets[lists[row]]])
            counts[row] = bool((bases >= 0).all() and held[bases].all())
        return counts


class LeavesRanksOut(Rules):
    """Deletes the plain copies of two deltas that need each other, and reads none of what survives."""

    class Look(Collected):
        def __init__(self, store, policy):
            super().__init__(store, policy)
            self.packs.table = TableWithoutRanks()

    class Act(Sweep):
        def look(self):
            super().look()
            table = self._survey.packs.table
            table.prove(np.arange(len(table)))


class LeavesBasesOutOfTheMark(Rules):
    class Look(Collected):
        def __init__(self, store, policy):
            super().__init__(store, policy)
            self.packs.table = TableWithoutBases()


class CountsOthersCandidates(Rules):
    """A pack that another collector condemned counts as a copy."""

    class Look(Collected):
        def condemned(self):
            own = [item for item in self.tombstones if item.key in self.own]
            return {self.packs.number_of(pack) for item in own for pack in item.packs}


class ListsBeforeTombstones(Rules):
    """And never reads what is to survive, which would show that it is gone."""

    class Act(Sweep):
        def look(self):
            super().look()
            table = self._survey.packs.table
            table.prove(np.arange(len(table)))

    class Look(Collected):
        def look(self, *, own=()):
            self.packs.read()
            self.read_tombstones(own)
            self.read_records(self.now())


class NeverReadsRecordsAgain(Rules):
    """Decides by the records that it read before it condemned anything."""

    class Look(Collected):
        def __init__(self, store, policy):
            super().__init__(store, policy)
            super().look()

        def read_records(self, now):
            if not self.own:
                super().read_records(now)


class DeletesWhatOnlyItHas(Rules):
    """Copies nothing out of what it deletes."""

    class Act(Sweep):
        def copy_out(self, *, without=()):
            pass

        def _unsafe(self):
            return np.zeros(len(self._survey.packs.table.live), np.bool_)


class CountsItsOwnCandidates(Rules):
    """What it condemned itself counts as a copy."""

    class Look(Collected):
        def condemned(self):
            others = [item for item in self.tombstones if item.key not in self.own]
            return {self.packs.number_of(pack) for item in others for pack in item.packs}

    class Act(Sweep):
        def finish(self, doomed):
            own = {
                self._survey.packs.number_of(pack)
                for item in self._survey.tombstones
                if item.key in self.own
                for pack in item.packs
            }
            for number in own & set(self._survey.packs.numbers()):
                self._survey.packs.delete([number])


class LetsTombstonesExpire(Rules):
    """Removes tombstones after a while, whoever is about to delete what they name."""

    def expire(self, backend):
        for key in list(backend.list_keys(marks.TOMBSTONE_PREFIX)):
            backend.delete(key)


BROKEN = [
    (writer_that(SkipsTheSecondCheck), "an add and a collector"),
    (writer_that(SkipsBothChecks), "an add and a collector"),
    (writer_that(LooksAtPacksFirst), "an add and a collector"),
    (writer_that(TrustsItsOwnPacks), "an add of something new"),
    (writer_that(IgnoresTombstones), "an add and a collector"),
    (writer_that(LeavesBasesOut), "an add of a delta"),
    (writer_that(ForgetsBases), "an add of a delta"),
    (LeavesBasesOutOfTheMark(), "a tag of a delta"),
    (LeavesRanksOut(), "a tag of crossed deltas"),
    (NeverReadsRecordsAgain(), "a tag of garbage"),
    (CountsOthersCandidates(), "two collectors"),
    (ListsBeforeTombstones(), "two collectors"),
    (DeletesWhatOnlyItHas(), "a tag and a collector"),
    (CountsItsOwnCandidates(), "a tag and a collector"),
    (LetsTombstonesExpire(), "an add after a while"),
]


@pytest.mark.parametrize(("rules", "duel"), BROKEN, ids=[type(rules).__name__ for rules, _ in BROKEN])
def test_the_search_finds_the_loss_when_a_rule_is_dropped(rules, duel, restart):
    with pytest.raises(Loss):
        play_every_order(DUELS[duel], rules, restart, changes=3)
