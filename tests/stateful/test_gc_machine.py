"""A store that is collected against a dict: whatever is done in whatever order, refs keep their models and the rest goes."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from fakes.cache_entries import STAMP, bytes_of
from fakes.collector import condemn, packs_of
from fakes.counts import STATEFUL, STEPS
from fakes.derivations import derivations, ref_of, together
from fakes.families import fine_tune
from fakes.faulty_backend import FaultyBackend
from fakes.posix_model import SimulatedCrash
from fakes.predicting import predicting, relative
from fakes.stores import assert_clean, model_of, noise, read_model, write_model
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test
from stateful.test_store_machine import WHICH, Content, Held, StoreMachine, assert_same, pick

from casstore import GcPolicy, execute_gc, plan_gc
from casstore.errors import ConfigError, IntegrityError, MissingObject, RefNotFound
from casstore.format.rows import Kind
from casstore.machine.state import MachineState
from casstore.objects.keys import PACK_PREFIX
from casstore.objects.publishing.pack_writer import encode_object
from casstore.ops.gc.policy import DAY
from casstore.store.model_store import ModelStore

POLICIES = st.builds(
    GcPolicy,
    keep_last=st.integers(1, 3),
    orphans_now=st.just(True),
    grace=st.just(0.0),
    superseded=st.just(0.0),
    repack=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)


class CollectedMachine(StoreMachine):
    """Two processes in turn add, delete and collect; each of them has an index of its own.

    `deleted` are refs that can be undeleted, since nothing was collected after they went; `past` is what any ref last was.
    """

    def __init__(self):
        super().__init__()
        self.deleted = set()
        self.past = {}

    @initialize()
    def open(self):
        super().open()
        self.stores[0].mark_private()

    def _hold(self, name, held):
        super()._hold(name, held)
        self.past[name] = self.held[name]
        self.deleted.discard(name)

    @invariant()
    def is_sound(self):
        """Whole; a model that was added with other executable bits is described twice, and check counts that."""
        files = self._files()
        if files != self.checked:
            self.checked = files
            report = assert_clean(self.stores[0], read_data=False)
            assert report.models >= len({held.model_id for held in self.held.values()})

    @rule(which=WHICH, policy=POLICIES)
    def collect(self, which, policy):
        store = self.stores[which]
        before = packs_size(store)
        deltas = sum(item.bytes_plain for item in store.stats().frames if item.encoding == "delta")
        plan = plan_gc(store, policy)
        assert packs_size(store) == before
        report = execute_gc(store, plan, wait=0)
        assert report.ok, report
        assert before - packs_size(store) == report.bytes_freed
        # How large a delta is without its bases is known only once it is encoded: at most as large as the chunk. The plan takes it for as
        # large as its bases, whose elements may be four times as wide, and which may be deltas themselves.
        assert -8 * deltas <= plan.bytes_freed - report.bytes_freed <= deltas
        assert plan_gc(store, policy).items == ()
        self.deleted.clear()

    def _forget(self, names):
        for name in names:
            del self.held[name]
            self.folders.pop(name, None)

    def _is_tagged(self, name):
        tagged = {held.model_id for tag, held in self.held.items() if tag.startswith("tags/")}
        return self.held[name].model_id in tagged

    @rule(which=WHICH, days=st.integers(1, 20), unused=st.booleans())
    def collect_by_age(self, which, days, unused):
        """All models that no tag names go, and can be taken back; what was deleted before is freed."""
        store = self.stores[which]
        age = {"unused_for" if unused else "older_than": DAY}
        policy = GcPolicy(**age, grace=0.0, superseded=0.0, orphans_now=True)
        wanted = {name for name in self.held if name.startswith("models/") and not self._is_tagged(name)}
        plan = plan_gc(store, policy, now=time.time() + (days + 1) * DAY)
        assert set(plan.refs) == wanted
        # Only by the plan's clock, and so are the times of its tombstones: nothing is ripe that should not be.
        report = execute_gc(store, plan, wait=0)
        assert set(report.refs_deleted) == wanted
        self._forget(wanted)
        self.deleted = set(wanted)
        self.index_whole = False

    @rule(which=WHICH, share=st.integers(0, 110))
    def fit_a_size(self, which, share):
        """Only entries go, in both halves of a store no more than it takes, and never what a tag names."""
        store = self.stores[which]
        limit = bytes_of(store.backend) * share // 100
        plan = plan_gc(store, GcPolicy(max_size=limit, grace=0.0, superseded=0.0))
        for name in plan.refs:
            assert dict(self.held[name].metadata).keys() >= STAMP.keys()
            assert not self._is_tagged(name)
        report = execute_gc(store, plan, wait=0)
        assert report.refs_deleted == list(plan.refs)
        if self.kind == "local":
            assert bytes_of(store.backend) <= limit or plan.notes
        self._forget(plan.refs)
        self.deleted.clear()
        self.index_whole = False

    @rule(which=WHICH, seed=st.integers(0, 3), more=st.integers(0, 3))
    def add_an_entry(self, which, seed, more):
        """As a pipeline's cache does: models that share parts."""
        content = model_of(**{f"f{number}": noise(90 + number, 20_000) for number in {seed, more}})
        name = f"models/entry{seed}"
        self._add(which, write_model(content, self._new_folder()), content, name, metadata=STAMP)
        shutil.rmtree(self.folders.pop(name))

    @precondition(lambda self: self.held)
    @rule(which=WHICH, data=st.data())
    def pin(self, which, data):
        name = self._some_ref(data)
        pin = self.stores[which].pin(name)
        assert pin == (name if name.startswith("tags/pins/") else f"tags/pins/{name}")
        self._hold(pin, replace(self.held[name], metadata=()))
        self.index_whole = False

    @precondition(lambda self: any(name.startswith("tags/pins/") for name in self.held))
    @rule(which=WHICH, data=st.data())
    def unpin(self, which, data):
        pins = sorted(name for name in self.held if name.startswith("tags/pins/"))
        pin = pick(data, pins, "pin")
        assert self.stores[which].unpin(pin) == [pin]
        del self.held[pin]
        self.deleted.add(pin)

    def delete_ref(self, which, data):
        """As the base does, and it can be undone."""

    @precondition(lambda self: self.held)
    @rule(which=WHICH, data=st.data())
    def delete_a_ref(self, which, data):
        name = self._some_ref(data)
        self.stores[which].rm(name)
        del self.held[name]
        self.deleted.add(name)

    @precondition(lambda self: self.past)
    @rule(which=WHICH, data=st.data())
    def undelete(self, which, data):
        name = pick(data, sorted(self.past), "ref")
        try:
            self.stores[which].undelete(name)
        except ConfigError:
            assert name in self.held
        except (MissingObject, RefNotFound):
            assert name not in self.held
            assert name not in self.deleted
        else:
            # What was freed may be there again, with another model.
            assert name not in self.held
            self._hold(name, self.past[name])

    @rule(which=WHICH, days=st.integers(0, 20))
    def collect_later(self, which, days):
        """With the policy that nobody changed, after some days."""
        store = self.stores[which]
        execute_gc(store, plan_gc(store, now=time.time() + days * DAY), wait=0)
        self.deleted.clear()
        # Each pack may have been condemned, so a tag may copy.
        self.index_whole = False

    @rule(which=WHICH, seed=st.integers(0, 5))
    def leave_an_orphan(self, which, seed):
        """As an add does that fails when its pack is durable."""
        with self.stores[which].publication() as publication:
            publication.write(encode_object(Kind.CHUNK, noise(50 + seed, 3_000)))
            publication.commit_all([], lambda _: iter(()))

    @rule(which=WHICH, seed=st.integers(0, 3), call=st.integers(0, 60))
    def crash_in_an_add(self, which, seed, call):
        """The process is gone at one of its calls; the ref has the new value, or what it had before."""
        content = model_of(own=noise(80 + seed, 40_000), shared=noise(70, 30_000))
        name, folder = f"models/crashed{seed}", write_model(content, self._new_folder())
        faulty = FaultyBackend(self.stores[which].backend)
        faulty.stop_at(call)
        store_id = bytes.fromhex(self.stores[which].store_id)
        with suppress(SimulatedCrash):
            ModelStore(faulty, store_id=store_id, machine=MachineState(None)).add(folder, ref=name)
        for entry in self.stores[which].backend.list_temporaries():
            self.stores[which].backend.remove_temporary(
                entry.key
            )  # This process lives, and may hold its locks.
        found = self.stores[which].refs(name)
        if found:
            model_id = self.stores[which].model(name).model_id
            if name not in self.held or self.held[name].model_id != model_id:
                self._hold(name, Held(content, model_id))
        else:
            assert name not in self.held
        shutil.rmtree(folder)
        self.index_whole = False

    @precondition(lambda self: self.held)
    @rule(which=WHICH, number=st.integers(0, 255), share=st.floats(0, 1, exclude_max=True))
    def damage_and_repair(self, which, number, share):
        """A byte of a pack is wrong: no wrong byte is returned, and what another store has is read again after a repair."""
        store, backend = self.stores[which], self.stores[which].backend
        keys = sorted(entry.key for entry in backend.list(PACK_PREFIX))
        key = keys[number % len(keys)]
        hub = os.path.join(self.work, f"hub{next(self.numbers)}")
        store.push(hub, create=True)
        data = bytearray(backend.read(key))
        data[int(share * len(data))] ^= 1 + number % 255
        backend.delete(key)
        backend.put(key, [bytes(data)])
        for name, held in self.held.items():
            with suppress(IntegrityError):
                assert_same(read_model(self.stores[1 - which], name), held.content)
        report = store.repair(source=hub, dry_run=False)
        assert report.ok, report
        policy = GcPolicy(orphans_now=True, grace=0.0, superseded=0.0)
        collected = execute_gc(store, plan_gc(store, policy), wait=0)
        assert collected.ok, collected
        assert_clean(store)
        shutil.rmtree(hub)
        self.deleted.clear()
        self.index_whole = False

    @precondition(lambda self: self.held)
    @rule(which=WHICH, data=st.data())
    def condemn_anything(self, which, data):
        """As a collector does whose picture is wrong, and which then stops."""
        packs = sorted(packs_of(self.stores[which].backend))
        # How chunks are divided into packs depends on threads: no draw may depend on how many there are.
        bits = data.draw(st.integers(0, 255))
        chosen = [pack for at, pack in enumerate(packs) if bits >> at % 8 & 1]
        if chosen:
            condemn(self.stores[which].backend, chosen)
            self.index_whole = False

    def tag(self, which, tag, data):
        """As the base does, but objects of condemned packs are copied."""

    @precondition(lambda self: self.held)
    @rule(which=WHICH, tag=st.sampled_from(("tags/stable", "tags/v1")), data=st.data())
    def tag_something(self, which, tag, data):
        name = self._some_ref(data)
        assert self.stores[which].tag(tag.removeprefix("tags/"), name) == tag
        held = self.held[name]
        self._hold(tag, replace(held, metadata=()))

    @rule(which=WHICH)
    def add_sharing(self, which):
        """A model of which another one has half: so packs become sparse."""
        for name, seeds in (("models/whole", (1, 2, 3, 4)), ("models/half", (1, 2))):
            content = Content({f"f{seed}": (noise(70 + seed, 30_000), False) for seed in seeds})
            self._add(which, write_model(content, self._new_folder()), content, name)
            shutil.rmtree(self.folders.pop(name))

    @rule(which=WHICH, number=st.integers(0, 3))
    def add_a_relative(self, which, number):
        """A model that becomes a delta, if the store holds another one of these."""
        content = Content({"near": (relative(number), False)})
        name = f"models/relative{number}"
        with predicting():
            self._add(which, write_model(content, self._new_folder()), content, name)
        shutil.rmtree(self.folders.pop(name))

    @rule(which=WHICH, number=st.integers(0, 3), data=st.data())
    def add_a_fine_tune(self, which, number, data):
        """A model that an add stores as its difference from another one, if the store holds one."""
        content = Content({"model.safetensors": (fine_tune(number), False)})
        bases = [name for name in sorted(self.held) if name.startswith("models/tuned")]
        base = pick(data, [None, *bases], "base")
        name = f"models/tuned{number}"
        self._add(which, write_model(content, self._new_folder()), content, name, base=base)
        shutil.rmtree(self.folders.pop(name))

    @rule(which=WHICH, derived=st.sampled_from(["base", "cast", "transposed", "Q8_0", "cast of tuned", None]))
    def add_a_derivation(self, which, derived):
        """A model of which deltas of all kinds may be made, or rest on what others are made of; or several in one."""
        content = together() if derived is None else derivations()[derived].content
        name = f"models/{ref_of(derived or 'together')}"
        self._add(which, write_model(content, self._new_folder()), content, name)
        shutil.rmtree(self.folders.pop(name))


def packs_size(store):
    return sum(entry.size for entry in store.backend.list(PACK_PREFIX))


@pytest.mark.parametrize(("kind", "trusting"), [("local", False), ("memory", False), ("local", True)])
def test_a_collected_store_is_a_dict(kind, trusting, tmp_path):
    """`trusting` lets the stat cache answer for files whose chunks may have been collected."""
    facts = {"folder": str(tmp_path), "kind": kind, "trusting": trusting}
    machine = type("Machine", (CollectedMachine,), facts)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=STATEFUL,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
