"""A fault at every call of every operation: success or an error of casstore's, never wrong data, and a retry completes."""

from __future__ import annotations

import errno
import itertools
import logging

import pytest
from fakes import counts
from fakes.faults import FAULTS, Rig
from fakes.operations import OPERATIONS, READERS, STAYS, judge, retry
from fakes.stores import repeat_randomness, visible

from casstore.errors import CasstoreError

THOROUGH = counts.FAULTS > 1
MAX_CALLS = 3000

WHOLE = ("add", "gc")
"""Operations of which every call fails once, also in short runs."""

pytestmark = pytest.mark.usefixtures("work_small")

_log = logging.getLogger(__name__)


@pytest.mark.parametrize("level", ["calls", "backend"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fault_at_every_call(setting, name, level, monkeypatch):
    operation, changes = OPERATIONS[name]
    allowed = STAYS | changes
    faults = [fault for fault in FAULTS if level == "calls" or fault.number is not None]
    every = 1 if THOROUGH or name in WHOLE else 9
    restart = repeat_randomness(monkeypatch)
    judged, retried, failed, tried = set(), set(), 0, 0
    for k in itertools.count(0, every):
        assert k < MAX_CALLS
        reached = False
        for turn in range(min(counts.FAULTS, len(faults))):
            fault = faults[(k // every + turn) % len(faults)]
            where = f"{fault} at call {k} of {name}"
            restart()
            rig = Rig(setting.disk, level)
            rig.arm(fault, k)
            acknowledged = True
            try:
                operation(rig.store, setting)
            except CasstoreError:
                acknowledged = False
                failed += 1
            assert rig.disk.open_descriptors() == 0, f"a descriptor leaked: {where}"
            tried += rig.was_reached
            reached |= rig.was_reached
            if not acknowledged and not fault.lasting:
                assert not rig.records_after_the_fault(), where
            rig.heal()
            if name in READERS:
                assert visible(rig.disk) == visible(setting.disk), where
            syncs = not (fault.lasting and fault.number == errno.EACCES)
            judge(rig.disk, acknowledged, allowed, where, judged, syncs=syncs)
            state = visible(rig.disk)
            if state not in retried:
                retried.add(state)
                retry(rig.disk, operation, setting, allowed, where)
        if not reached:
            assert acknowledged
            break
    _log.info("%s, %s: %d faults, %d failures, %d states", name, level, tried, failed, len(judged))
    assert failed
