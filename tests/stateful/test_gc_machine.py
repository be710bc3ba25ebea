"""A store that is collected against a dict: whatever is done in whatever order, refs keep their models and the rest goes."""

from __future__ import annotations

import shutil
import time

import hypothesis.strategies as st
import pytest
from fakes.collector import condemn, packs_of
from fakes.counts import STATEFUL
from fakes.predicting import predicting, relative
from fakes.stores import assert_clean, noise, write_model
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test
from stateful.test_store_machine import WHICH, Content, StoreMachine

from casstore import GcPolicy, execute_gc, plan_gc
from casstore.format.rows import Kind
from casstore.objects.keys import PACK_PREFIX
from casstore.objects.pack_writer import encode_object
from casstore.ops.gc.policy import DAY

POLICIES = st.builds(
    GcPolicy,
    keep_last=st.integers(1, 3),
    orphans_now=st.just(True),
    grace=st.just(0.0),
    superseded=st.just(0.0),
    repack=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)


class CollectedMachine(StoreMachine):
    """Two processes in turn add, delete and collect; each of them has an index of its own."""

    @invariant()
    def is_sound(self):
        """Whole; a model that was added with other executable bits is described twice, and check counts that."""
        if hasattr(self, "stores"):
            report = assert_clean(self.stores[0], read_data=False)
            assert report.models >= len({held.model_id for held in self.held.values()})

    @rule(which=WHICH, policy=POLICIES)
    def collect(self, which, policy):
        store = self.stores[which]
        before = packs_size(store)
        plan = plan_gc(store, policy)
        assert packs_size(store) == before
        report = execute_gc(store, plan, wait=0)
        assert report.ok, report
        assert before - packs_size(store) == report.bytes_freed == plan.bytes_freed
        assert plan_gc(store, policy).items == ()

    @rule(which=WHICH, days=st.integers(0, 20))
    def collect_later(self, which, days):
        """With the policy that nobody changed, after some days."""
        store = self.stores[which]
        execute_gc(store, plan_gc(store, now=time.time() + days * DAY), wait=0)
        # Each pack may have been condemned, so a tag may copy.
        self.index_whole = False

    @rule(which=WHICH, seed=st.integers(0, 5))
    def leave_an_orphan(self, which, seed):
        """As an add does that fails when its pack is durable."""
        with self.stores[which].publication() as publication:
            publication.write(encode_object(Kind.CHUNK, noise(50 + seed, 3_000)))
            publication.commit_all([], lambda _: iter(()))

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
        self._hold(tag, type(held)(held.content, held.model_id, held.base))

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
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
