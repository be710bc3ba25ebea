"""Two stores that people write to and sync both ways, against two plain dicts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fakes.counts import STATEFUL, STEPS
from fakes.derivations import derivations, together
from fakes.predicting import predicting, relative
from fakes.stores import assert_clean, model_of, noise
from fakes.sync_stores import Side, shown
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from casstore.errors import RefNotFound
from casstore.format import names
from casstore.ops.sync import execute, plan_sync

PARTS = [noise(at, 70_000) for at in range(3)]
CONTENTS = [
    model_of(a=PARTS[0], b=b"1"),
    model_of(a=PARTS[0], c=PARTS[1]),
    model_of(c=PARTS[1] + PARTS[2]),
    model_of(nothing=b""),
    model_of(near=relative(0)),
    model_of(near=relative(1), a=PARTS[0]),
    model_of(near=relative(2), other=relative(0)),
    *(derivations()[name].content for name in ("tuned", "transposed", "Q8_0")),
    together(),
]
MANIFESTS = [b"first", b"second", noise(9, 12_000)]

SIDES = st.integers(0, 1)
MODELS = st.sampled_from(["models/x", "models/y", "models/deep/z"])
TAGS = st.sampled_from(["tags/s", "tags/t"])
OTHERS = st.sampled_from(["runs/r", "evaluations/e"])


class SyncMachine(RuleBasedStateMachine):
    """`told[side]` is what its refs say; `written_since[side]` those that its people wrote since a copy was made.

    Two sides that came to say the same by themselves agree by chance: later, nobody can tell who moved.
    """

    @initialize(kinds=st.sampled_from([("memory", "memory"), ("local", "objects"), ("objects", "memory")]))
    def start(self, kinds):
        self.folder = Path(tempfile.mkdtemp(prefix="casstore-test-"))
        self.sides = [Side(kind, self.folder) for kind in kinds]
        self.told = [{}, {}]
        self.written_since = [set(), set()]

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def _note(self, side, name):
        self.told[side][name] = shown(self.sides[side].plain)[name]
        self.written_since[side].add(name)

    @rule(side=SIDES, name=MODELS, content=st.sampled_from(CONTENTS), note=st.sampled_from(["", "n"]))
    def add(self, side, name, content, note):
        with predicting():
            self.sides[side].add(name, content, metadata={"note": note} if note else {})
        self._note(side, name)

    @rule(side=SIDES, name=TAGS, model=MODELS)
    def tag(self, side, name, model):
        if model in self.told[side]:
            self.sides[side].plain.tag(name, model)
            self._note(side, name)

    @rule(side=SIDES, name=OTHERS, manifest=st.sampled_from(MANIFESTS))
    def put(self, side, name, manifest):
        self.sides[side].plain.put_manifest(name, manifest)
        self._note(side, name)

    @rule(side=SIDES, name=st.one_of(MODELS, TAGS, OTHERS))
    def delete(self, side, name):
        try:
            self.sides[side].plain.rm(name)
        except RefNotFound:
            assert name not in self.told[side]
        self.told[side].pop(name, None)
        self.written_since[side].add(name)

    @rule(
        side=SIDES,
        refs=st.sampled_from([None, None, ["models/"], ["tags/", "runs/"]]),
        overwrite=st.sampled_from([False, False, True]),
    )
    def sync(self, side, refs, overwrite):
        src, dst = self.sides[side].plain, self.sides[1 - side].plain
        ours, theirs = self.told[side], self.told[1 - side]
        plan = plan_sync(src, dst, refs, overwrite=overwrite)
        report = execute(plan)
        meant = {name for name in ours if refs is None or name.startswith(tuple(refs))}
        left = {*report.ahead, *(found.name for found in report.conflicts)}
        assert {*report.refs, *report.equal, *left} == meant
        assert (report.objects, report.bytes_missing) == (plan.objects, plan.bytes_stored)
        assert {name for name in meant if ours[name] == theirs.get(name)} <= {*report.equal, *report.refs}
        assert not (left and overwrite)
        for name in meant - left:
            if name not in theirs or name not in self.written_since[1 - side]:
                assert name in report.equal or name in report.refs
            theirs[name] = ours[name]
            if name in report.refs:
                self.written_since[side].discard(name)
                self.written_since[1 - side].discard(name)
        for name in left:
            # Only what its own people wrote since the last copy keeps a ref from being written.
            assert name in self.written_since[1 - side], name
            assert ours[name] != theirs[name]
        again = plan_sync(src, dst, refs, overwrite=False)
        assert again.empty
        assert {*again.ahead, *(found.name for found in again.conflicts)} == left

    @rule()
    def sync_both_ways(self):
        self.sync(0, None, overwrite=False)
        self.sync(1, None, overwrite=False)
        here, there = self.told
        differing = {name for name in here.keys() & there.keys() if here[name] != there[name]}
        plan = plan_sync(self.sides[0].plain, self.sides[1].plain)
        assert {found.name for found in plan.conflicts} == differing
        assert here.keys() == there.keys()

    @invariant()
    def each_store_says_what_its_dict_says(self):
        for side, told in zip(getattr(self, "sides", ()), getattr(self, "told", ()), strict=True):
            store = side.open(side.backend)
            assert shown(store) == told
            assert_clean(store, read_data=False)
            assert set(store.refs()) == {name for name in told if names.check_name(name) is None}


TestSync = SyncMachine.TestCase
TestSync.settings = settings(max_examples=STATEFUL, stateful_step_count=STEPS)
