"""Writers and collectors in every order that a seed can think of: no acknowledged record loses an object.

The writers are the real publication code. The collectors follow design §8, without any grace: they may
condemn whatever they like, rightly or not. That the search is able to find losses is shown by dropping one
rule at a time.
"""

from __future__ import annotations

import functools
import os
import uuid

import pytest

from casstore.backend import MemoryBackend, memory
from casstore.digest import digest
from casstore.errors import ConflictError, MissingObject, ObjectNotFound
from casstore.format import marks, names
from casstore.format.rows import Kind, row_ids
from casstore.store.index import Index, read_footer
from casstore.store.keys import PACK_PREFIX, pack_key
from casstore.store.machine import MachineState
from casstore.store.objects import ObjectReader
from casstore.store.packs import encode_object
from casstore.store.publish import Publication
from casstore.store.refs import Refs
from fakes.collector import condemn, condemned_in, current_records, packs_of
from fakes.schedule import Schedule, ScheduledBackend
from fakes.stores import commit_inline, repeat_randomness

SCHEDULES = int(os.environ.get("CASSTORE_SCHEDULES", "400"))
LIMIT = 5000

OBJECTS = {digest(plain): plain for plain in (b"x" * 40, b"y" * 50, b"z" * 60)}
X, Y, Z = OBJECTS


class Loss(AssertionError):
    """An acknowledged record points at an object that no pack holds."""


class Rules:
    """What collectors and writers do; subclasses drop a rule."""

    publication = Publication

    def doomed(self, tombstones, own):
        """Packs that do not count as survivors."""
        return {pack for packs in tombstones.values() for pack in packs}

    def look(self, backend):
        """Tombstones first, then packs, then records."""
        tombstones = condemned_in(backend)
        listed = contents(backend)
        return tombstones, listed, current_records(backend)


def contents(backend):
    held = {}
    for pack in packs_of(backend):
        try:
            held[pack] = set(row_ids(read_footer(backend, pack).rows))
        except ObjectNotFound:
            continue
    return held


def needs(record):
    return {bytes.fromhex(text) for text in record.metadata["objects"]}


def decisive(operation, key):
    """Calls that decide what a writer or collector believes; others only make schedules longer."""
    return operation == "stat" or key.startswith(marks.TOMBSTONE_PREFIX) or key in (PACK_PREFIX, names.PREFIX)


class World:
    """One store, the actors on it, and who was promised what."""

    def __init__(self, seed, rules):
        self.rules = rules
        self.schedule = Schedule(seed)
        self.plain = MemoryBackend(uuid.uuid4().hex)
        self.promised = {}
        self.held = {}
        self.stored = 0
        everywhere = self.schedule.random.random() < 0.3
        self._decisive = (lambda *_: True) if everywhere else decisive

    def client(self):
        return Client(ScheduledBackend(self.plain, self.schedule, decisive=self._decisive), self)

    def promise(self, name, objects):
        self.promised[name] = set(objects)
        self.check()

    def check(self):
        """Look at the packs themselves; nobody's turn passes meanwhile."""
        alive = packs_of(self.plain)
        for pack in alive:
            if pack not in self.held:
                self.held[pack] = set(row_ids(read_footer(self.plain, pack).rows))
        there = set().union(*(self.held[pack] for pack in alive))
        for name, objects in self.promised.items():
            if not objects <= there:
                raise Loss(name)


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
            reader=ObjectReader(self.backend, self.index),
            refs=self.refs,
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
            for item in sorted(objects):
                publication.write_object(Kind.CHUNK, item, OBJECTS[item])
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
        """Condemn some packs, then finish that as another run would."""
        packs = packs_of(self.backend)
        if not packs:
            return
        some = choose.sample(packs, choose.randint(1, len(packs)))
        own = condemn(self.backend, some, name=f"{choose.getrandbits(64):016x}")
        tombstones, listed, records = self.world.rules.look(self.backend)
        wanted = set().union(*(needs(record) for record in records.values()))
        doomed = self.world.rules.doomed(tombstones, own)
        safe = set().union(*(held for pack, held in listed.items() if pack not in doomed))
        for pack in tombstones.get(own, ()):
            if pack not in listed or not (listed[pack] & wanted) <= safe:
                continue
            self.backend.stat(own)
            self.backend.delete(pack_key(pack))
            self.world.check()
        self.backend.delete(own)


@functools.cache
def _start():
    """Return the files of a store in which X lies in two packs, Y in two, Z in one."""
    world = World(0, Rules())
    setup = Client(world.plain, world)
    setup.add("models/first", {X, Y})
    tombstone = condemn(world.plain, packs_of(world.plain))
    setup.add("models/second", {X})
    world.plain.delete(tombstone)
    setup.add("models/third", {Y, Z})
    return dict(world.plain._objects)


def play(seed, rules):
    """Run one schedule; raise Loss if an acknowledged record lost something."""
    world = World(seed, rules)
    choose = world.schedule.random
    writers, collectors, drops = choose.choice(((1, 1, 0), (1, 1, 0), (0, 2, 0), (2, 2, 1), (1, 3, 1)))
    world.plain._objects.update(_start())
    records = current_records(world.plain)
    forgotten = set(choose.choice(((), sorted(records), choose.sample(sorted(records), 2))))
    for name in sorted(forgotten):  # what they alone reach is garbage that writers still find
        Client(world.plain, world).drop(name)
    for name in records.keys() - forgotten:
        world.promise(name, needs(records[name]))

    def writer(number):
        client = world.client()
        if choose.random() < 0.5:
            client.index.refresh()  # a process that has been running for a while
        objects = choose.choice(({X}, {X, Y}, {X, Y, Z}, {Z}))
        kind = choose.choice((client.add, client.add, client.tag))

        def work():
            kind(f"models/new{number}", objects)

        return work

    def collector():
        client = world.client()
        return lambda: client.collect(choose)

    def dropper():
        client = world.client()

        def work():
            for name in sorted(records.keys() - forgotten):
                client.drop(name)

        return work

    for number in range(writers):
        world.schedule.add(writer(number))
    for _ in range(collectors):
        world.schedule.add(collector())
    if drops:
        world.schedule.add(dropper())
    try:
        world.schedule.run()
        world.check()
    finally:
        memory._stores.pop(world.plain.url.removeprefix("memory://"))
    return world


@pytest.fixture(autouse=True)
def restart(monkeypatch):
    """Call it, and the next schedule is the same wherever it runs: what a seed finds, it finds again."""
    commit_inline(monkeypatch)
    _start.cache_clear()
    restart = repeat_randomness(monkeypatch)
    _start()
    return restart


@pytest.mark.parametrize("part", range(4))
def test_no_acknowledged_record_loses_an_object(part, restart):
    acknowledged = rewritten = deleted = 0
    for seed in range(part, SCHEDULES, 4):
        restart()
        world = play(seed, Rules())
        acknowledged += any(name.startswith("models/new") for name in world.promised)
        rewritten += world.stored > 0
        deleted += len(packs_of(world.plain)) < len(world.held)
    runs = SCHEDULES // 4
    assert acknowledged > runs / 2
    assert rewritten > runs / 10
    assert deleted > runs / 3


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
        seen = {pack: self._has_pack(pack) for pack in self._depends}
        self._has_pack = lambda pack: seen[pack] if pack in seen else Publication._has_pack(self, pack)
        super()._secure(supply)
        del self._has_pack


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


class CountsOthersCandidates(Rules):
    """A pack that another collector condemned counts as a copy."""

    def doomed(self, tombstones, own):
        return set(tombstones.get(own, ()))


class ListsBeforeTombstones(Rules):
    def look(self, backend):
        listed = contents(backend)
        return condemned_in(backend), listed, current_records(backend)


class ReadsRecordsFirst(Rules):
    """Confirms against records as they were before it condemned and looked."""

    def look(self, backend):
        records = current_records(backend)
        backend.list(marks.TOMBSTONE_PREFIX)
        return condemned_in(backend), contents(backend), records


class NeverReadsRecordsAgain(Rules):
    def look(self, backend):
        tombstones, listed, _ = super().look(backend)
        return tombstones, listed, {}


BROKEN = [
    writer_that(SkipsTheSecondCheck),
    writer_that(SkipsBothChecks),
    writer_that(LooksAtPacksFirst),
    writer_that(TrustsItsOwnPacks),
    writer_that(IgnoresTombstones),
    CountsOthersCandidates(),
    NeverReadsRecordsAgain(),
]


@pytest.mark.parametrize("rules", BROKEN, ids=lambda rules: type(rules).__name__)
def test_the_search_finds_the_loss_when_a_rule_is_dropped(rules, restart):
    for seed in range(LIMIT):
        restart()
        try:
            play(seed, rules)
        except Loss:
            return
    pytest.fail(f"no loss in {LIMIT} schedules")
