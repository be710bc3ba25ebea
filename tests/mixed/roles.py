"""What each process of a mixed run does until a file appears: write, collect, or read. Adds write deltas where they can."""

from __future__ import annotations

import os
import shutil
import time

from fakes import adder
from fakes.predicting import predict_from_now_on
from fakes.stores import read_folder, read_model, write_model

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.errors import BackendError, CasstoreError, RefNotFound
from casstore.ops.check import check
from casstore.ops.sync import execute, plan_sync

SEEDS = 16
"""Different models: so few that what one writer deletes another one adds again at the same moment."""

REST = (0.5, 2.0)
"""For so long, in each so many seconds, no writer begins anything: else no collector would ever get the publishers' lock."""

MODELS = [adder.model(seed) for seed in range(SEEDS)]

REFS = 2
"""Refs of each writer, beside a tag."""


def refs_of(writer):
    return [f"models/{writer}/{number}" for number in range(REFS)]


def writer(store, log, chance, *, name, work, going, **_):
    """Add, tag and delete, and read some of it at once. An add that fails ends the process: upkeep must not make it fail."""
    predict_from_now_on()
    mine = set()
    folder = os.path.join(work, name)
    while going():
        if time.monotonic() % REST[1] < REST[0]:
            time.sleep(0.01)
            continue
        ref, seed = chance.choice(refs_of(name)), chance.randrange(SEEDS)
        write_model(MODELS[seed], folder)
        log.begin("add", ref, seed)
        store.add(folder, ref=ref, stat_cache=False)
        log.end("add", ref, seed)
        shutil.rmtree(folder)
        if chance.random() < 0.5:
            look_at(store, log, ref)
        mine.add(ref)
        if chance.random() < 0.2:
            log.begin("tag", f"tags/{name}", seed)
            store.tag(name, ref)
            log.end("tag", f"tags/{name}", seed)
            mine.add(f"tags/{name}")
        if chance.random() < 0.6:
            gone = chance.choice(sorted(mine))
            mine.discard(gone)
            log.begin("delete", gone)
            store.rm(gone)
            log.end("delete", gone)


def pusher(store, log, chance, *, name, work, going, **_):
    """Push models from a store of its own."""
    predict_from_now_on()
    folder = os.path.join(work, name)
    with Store(os.path.join(work, f"{name}-store"), create=True, durability="none") as own:
        while going():
            ref, seed = chance.choice(refs_of(name)), chance.randrange(SEEDS)
            write_model(MODELS[seed], folder)
            own.add(folder, ref=ref, stat_cache=False)
            shutil.rmtree(folder)
            log.begin("add", ref, seed)
            execute(plan_sync(own, store))
            log.end("add", ref, seed)


def collector(store, log, chance, *, grace, going, **_):
    """Collect as much as may be without harm. On a local folder, that is everything at once."""
    while going():
        local = store.backend.url.startswith("file:") and not store.backend.has_lockless_writers()
        policy = GcPolicy(
            orphans_now=local, grace=grace, superseded=grace, repack=chance.choice([0.0, 0.5, 0.9])
        )
        log.begin("gc")
        try:
            report = execute_gc(store, plan_gc(store, policy), wait=chance.choice([0.0, 0.2, 1.0]))
        except BackendError as error:
            # Another collector takes packs away while this one copies from them, and it says so.
            log.end("gc", error=f"{type(error).__name__}: {error}")
        else:
            log.end("gc", value=report.packs_deleted, error="; ".join([*report.problems, *report.missing]))


def reader(store, log, chance, *, name, work, writers, going, **_):
    """Read what somebody wrote, by a store that is kept open, and check all of it now and then."""
    while going():
        if chance.random() < 0.03:
            log.begin("check")
            report = check(store, read_data=chance.random() < 0.5)
            log.end("check", error="; ".join(map(str, report.problems)))
        other = chance.choice(writers)
        ref = chance.choice([*refs_of(other), f"tags/{other}"])
        look_at(store, log, ref, target=os.path.join(work, name) if chance.random() < 0.3 else None)


def look_at(store, log, ref, *, target=None):
    """Read a model whole, by a checkout to `target` or from the store, and say which one it was."""
    log.begin("read", ref)
    try:
        if target is None:
            content = read_model(store, ref)
        else:
            store.get(ref, target)
            content = read_folder(target)
            shutil.rmtree(target)
    except RefNotFound:
        log.end("read", ref)
    except CasstoreError as error:
        if target is not None:
            shutil.rmtree(target, ignore_errors=True)
        log.end("read", ref, error=f"{type(error).__name__}: {error}")
    else:
        known = content in MODELS
        log.end("read", ref, MODELS.index(content) if known else None, "" if known else "WRONG BYTES")
