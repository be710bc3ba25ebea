"""A process that adds, deletes and collects in a loop, and says what the store acknowledged. It ends by being killed.

    python gc_killed.py STORE WORK NAME adder|collector

An adder prints what adder.py prints. A collector prints a line for each collection that it finished.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from fakes import adder

from casstore import GcPolicy, Store, execute_gc, plan_gc

POLICY = GcPolicy(orphans_now=True, repack=0.9)
"""Everything goes that can, so that every add meets collections."""


def collect(place):
    """Collect again and again; what an add that is under way needs must survive."""
    with Store(place) as store:
        while True:
            adder.say("?gc", "-", "-")
            report = execute_gc(store, plan_gc(store, POLICY), wait=0.05)
            adder.say("gc", report.mode or "-", report.packs_deleted)


if __name__ == "__main__":
    place, work, name, what = sys.argv[1:]
    if what == "collector":
        collect(place)
    else:
        adder.main(place, work, name)
