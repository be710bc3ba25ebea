"""A sync that is killed at any moment, on either machine: both stores are clean, and a second run completes."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import time

import pytest
from fakes import syncer
from fakes.counts import SYNC_KILLS as KILLS
from fakes.stores import assert_clean, model_of, noise, write_model
from fakes.sync_stores import shown

from casstore.api.store import Store
from casstore.ops.sync import execute, plan_sync

_log = logging.getLogger(__name__)

LONGEST = 0.25
SCHEMES = {"push": ("", "dirfs://"), "pull": ("dirfs://", ""), "copy": ("", "")}


def start(src, dst, home):
    program = [sys.executable, "-W", "error", syncer.__file__, src, dst]
    environment = {**os.environ, "XDG_CACHE_HOME": str(home)}
    return subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=environment
    )


def killed(process, seconds):
    """Kill a process that has begun, after so long; return whether it was still at work, and what it said."""
    if process.stdout.readline() != b"go\n":
        pytest.fail(process.stderr.read().decode())
    time.sleep(seconds)
    process.kill()
    output, errors = process.communicate(timeout=30)
    assert process.returncode in (0, -9), errors.decode()
    return process.returncode == -9, output.decode().split()


def fill(store, work, number):
    """Add models that share chunks with each other and with those of other rounds, a tag and runs."""
    chance = random.Random(number)
    for at in range(5):
        content = model_of(
            common=noise(chance.randrange(3), 200_000),
            own=noise(1000 * number + at, 300_000),
            config=b'{"round": %d}' % number,
        )
        store.add(write_model(content, work / f"{number}-{at}"), ref=f"models/{number}/{at}")
    store.tag("latest", f"models/{number}/0")
    store.put_manifest(f"runs/{number}", b"run %d" % number)
    store.put_manifest(f"evaluations/{number}", noise(number, 10_000))


def test_killed_at_any_moment(tmp_path):
    chance = random.Random(KILLS)
    interrupted = leftovers = 0
    kept: list[float] = []
    for kind, schemes in SCHEMES.items():
        places = [tmp_path / f"{kind}-src", tmp_path / f"{kind}-dst"]
        urls = [f"{scheme}{place}" for scheme, place in zip(schemes, places, strict=True)]
        for place in places:
            Store(place, create=True, durability="none").close()
        for number in range(-(-KILLS // len(SCHEMES))):
            with Store(places[0], durability="none") as src, Store(places[1]) as dst:
                fill(src, tmp_path / f"{kind}-work", number)
                before = plan_sync(src, dst).bytes_stored
            process = start(*urls, tmp_path / f"{kind}-home")
            try:
                was_killed, said = killed(process, chance.uniform(0, LONGEST))
            finally:
                process.kill()
                process.wait()
                process.stdout.close()
                process.stderr.close()
            interrupted += was_killed
            with Store(places[0]) as src, Store(places[1]) as dst:
                assert_clean(src)
                assert_clean(dst)
                for name, record in dst.refs().items():
                    assert record.target in {older.target for older in src.history(name)}
                assert set(said) <= set(dst.refs())
                if was_killed:
                    kept.append(1 - plan_sync(src, dst).bytes_stored / before)
                leftovers += len(list(dst.backend.list_temporaries()))
        with Store(places[0]) as src, Store(places[1]) as dst:
            execute(plan_sync(src, dst))
            assert shown(dst) == shown(src)
            assert_clean(dst)
            assert plan_sync(src, dst).empty
    assert interrupted >= KILLS / 3
    assert max(kept) > 0.2  # progress outlives the process
    _log.info("%d syncs interrupted, %d leftovers, kept %s", interrupted, leftovers, sorted(kept))
