"""Collectors and writers that are killed at any moment: no acknowledged ref loses a byte, and the next gc frees the rest."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import time

import pytest
from fakes import adder, gc_killed
from fakes.counts import GC_KILLS
from fakes.stores import assert_clean, read_model

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.errors import RefNotFound

_log = logging.getLogger(__name__)

ROLES = ("adder", "adder", "collector", "collector")


def start(place, work, name, role):
    program = [sys.executable, "-W", "error", gc_killed.__file__, str(place), str(work), name, role]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


def killed_after(seconds, processes):
    """Kill all of them, one shortly after the other; return their outputs as lists of lines."""
    first = []
    for process in processes:
        first.append(process.stdout.readline())
        if not first[-1]:
            pytest.fail(process.stderr.read().decode())
    time.sleep(seconds)
    for process in processes:
        process.kill()
    outputs = []
    for line, process in zip(first, processes, strict=True):
        rest, errors = process.communicate(timeout=30)
        assert process.returncode == -9, errors.decode()
        outputs.append([item.split() for item in (line + rest).decode().splitlines()])
    return outputs


def outcomes(lines):
    """Return ref → the seeds that it may have now (None: it is deleted)."""
    now = {}
    for act, ref, seed in lines:
        value = None if seed == "-" else int(seed)
        now[ref] = now.get(ref, {None}) | {value} if act.startswith("?") else {value}
    return now


def content(seed):
    return None if seed is None else adder.model(seed)


def value(store, ref):
    try:
        return read_model(store, ref)
    except RefNotFound:
        return None


def test_collectors_and_writers_that_are_killed_at_any_moment(tmp_path):
    chance = random.Random(GC_KILLS)
    place, work = tmp_path / "store", tmp_path / "work"
    work.mkdir()
    Store(place, create=True).close()
    held = {}
    finished = interrupted = deleted = deltas = 0
    for number in range(-(-GC_KILLS // len(ROLES))):
        processes = [start(place, work, f"w{number}x{at}", role) for at, role in enumerate(ROLES)]
        try:
            outputs = killed_after(chance.uniform(0.05, 0.8), processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
                process.stdout.close()
                process.stderr.close()
        with Store(place) as store:
            assert_clean(store)
            deltas += sum(int((rows["rank"] > 0).sum()) for rows in store.objects.all_rows())
            for lines, role in zip(outputs, ROLES, strict=True):
                if role == "collector":
                    finished += sum(act == "gc" for act, _, _ in lines)
                    deleted += sum(int(count) for act, _, count in lines if act == "gc")
                    interrupted += lines[-1][0] == "?gc"
                    continue
                for ref, seeds in outcomes(lines).items():
                    found = value(store, ref)
                    whole = [seed for seed in seeds if found == content(seed)]
                    assert whole, f"{ref} after {lines[-3:]}"
                    held[ref] = whole[0]
    with Store(place) as store:
        assert_clean(store)
        for ref, seed in held.items():
            same = value(store, ref) == content(seed)
            assert same, ref
        execute_gc(store, plan_gc(store, GcPolicy(orphans_now=True)))
        assert not list(store.backend.list_temporaries())
        assert plan_gc(store, GcPolicy(orphans_now=True)).items == ()
        for ref, seed in held.items():
            same = value(store, ref) == content(seed)
            assert same, ref
        assert_clean(store)
    assert finished > 0
    _log.info(
        "%d kills: %d collections finished, %d interrupted, %d packs deleted, %d deltas met",
        GC_KILLS, finished, interrupted, deleted, deltas,
    )  # fmt: skip
