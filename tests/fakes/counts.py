"""How much the tests try: little in the README's command, any amount in long runs, by environment variables.

tests/README.md lists them with commands. A test takes its count from here, so that a long run needs no edit.
"""

from __future__ import annotations

import os


def count(variable, default):
    """Return what the environment says, as a number of one or more."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{variable} is {text!r}: give a number of one or more")
    return int(text)


SEED = int(os.environ.get("CASSTORE_SEED", "0"))
"""Another number lets flips, crash states and schedules be others, so that a long run can come in parts."""

HYPOTHESIS = os.environ.get("CASSTORE_HYPOTHESIS", "ci")
if HYPOTHESIS not in ("ci", "thorough"):
    raise ValueError(f"CASSTORE_HYPOTHESIS is {HYPOTHESIS!r}: it is ci, the default, or thorough")
THOROUGH = HYPOTHESIS == "thorough"

EXAMPLES = count("CASSTORE_EXAMPLES", 3000 if THOROUGH else 40)
"""Inputs of each property test that sets no number of its own."""

STATEFUL = count("CASSTORE_STATEFUL", 600 if THOROUGH else 8)
"""Histories of each machine in tests/stateful."""

STEPS = count("CASSTORE_STEPS", 20)
"""Steps of each history; twice as many where a step is only a call of the catalogue."""

SCHEDULES = count("CASSTORE_SCHEDULES", 200)
"""Orders of writers and collectors, at random; more than 1,000 also lets two of them change places once more."""

PLACES = count("CASSTORE_PLACES", 32 if SCHEDULES > 1000 else 16)
"""Steps of two actors at which they may change places, all of them tried."""

CRASH_SEEDS = count("CASSTORE_CRASH_SEEDS", 2)
"""Choices of what a crash keeps, besides all and nothing; more than 2 also crashes at every call, not at some."""

KILLS = count("CASSTORE_KILLS", 6)
"""Processes that add models and are killed."""

POLICY_REFS = count("CASSTORE_POLICY_REFS", 300)
"""Cache entries of the store that is made to fit a size."""

GC_KILLS = count("CASSTORE_GC_KILLS", 6)
"""Processes that add to one store of each kind, push to it, collect it or read it, six at a time, and are killed."""

SYNC_KILLS = count("CASSTORE_SYNC_KILLS", 6)
"""Syncs that are killed; a third each are pushes, pulls and copies."""

REPAIR_KILLS = count("CASSTORE_REPAIR_KILLS", 5)
"""Repairs that are killed, each at another change of a file."""

SERVER_KILLS = count("CASSTORE_SERVER_KILLS", 2)
"""Times that each server goes away in the middle of a push and of a pull."""

PUSHERS = count("CASSTORE_PUSHERS", 3)
"""Processes that push to one store at the same time."""

FLIPS = count("CASSTORE_FLIPS", 60)
"""Bytes that are flipped in the larger store; the small one is flipped at every byte."""

CRASH_STATES = count("CASSTORE_CRASH_STATES", 300)
"""States of a disk after a crash in one of several operations, taken at random among all that it could be left in."""

FAULTS = count("CASSTORE_FAULTS", 1)
"""Kinds of faults at each call of an operation, of which 10 are all; more than 1 also takes every call of every operation."""

FULL_DISKS = count("CASSTORE_FULL_DISKS", 5)
"""Amounts of free space with which each of four operations meets a full disk."""

FUZZ_INPUTS = count("CASSTORE_FUZZ_INPUTS", 300)
"""Mutated inputs of each fuzz target; tests/fuzz/run.py tries as many as its time allows."""

MIXED_SECONDS = count("CASSTORE_MIXED_SECONDS", 2)
"""How long writers, collectors and readers work on each kind of store at the same time."""

SMOKE_REMOTES = os.environ.get("CASSTORE_SMOKE_REMOTES", "folder,s3")
"""Remotes of the benchmarks' smoke run, of which `folder,s3,azure,sftp` are all."""
