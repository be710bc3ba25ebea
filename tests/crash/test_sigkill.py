"""Real processes, a real directory, real SIGKILLs: what was acknowledged is there, the rest does no harm."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import time

import pytest
from fakes import adder
from fakes.counts import KILLS
from fakes.stores import assert_clean, read_model

from casstore.api.store import Store
from casstore.errors import RefNotFound

_log = logging.getLogger(__name__)

WRITERS = 2
READY = 30.0


def start(place, work, name):
    program = [sys.executable, "-W", "error", adder.__file__, str(place), str(work), name]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


def wait_for_first_line(process):
    """Return once the process is at work: what it printed first."""
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.stderr.read().decode())
    return line


def kill_after(seconds, processes):
    """Kill all of them, one shortly after the other; return their outputs as lists of lines."""
    first = [wait_for_first_line(process) for process in processes]
    time.sleep(seconds)
    for process in processes:
        process.kill()
    outputs = []
    for line, process in zip(first, processes, strict=True):
        rest, errors = process.communicate(timeout=READY)
        assert process.returncode == -9, errors.decode()
        outputs.append((line + rest).decode().splitlines())
    return outputs


def outcomes(lines):
    """Follow one process's lines; return ref → the seeds that it may have now (None: it is deleted)."""
    now = {}
    for line in lines:
        act, ref, seed = line.split()
        value = None if seed == "-" else int(seed)
        if act.startswith("?"):
            now[ref] = now.get(ref, {None}) | {value}
        else:
            now[ref] = {value}
    return now


def value(store, ref):
    try:
        return read_model(store, ref)
    except RefNotFound:
        return None


def content(seed):
    return None if seed is None else adder.model(seed)


def test_processes_that_are_killed_at_any_moment(tmp_path):
    chance = random.Random(KILLS)
    place, work = tmp_path / "store", tmp_path / "work"
    work.mkdir()
    Store(place, create=True).close()
    held = {}
    acknowledged = interrupted = leftovers = 0
    for number in range(-(-KILLS // WRITERS)):
        names = [f"w{number}x{writer}" for writer in range(WRITERS)]
        processes = [start(place, work, name) for name in names]
        try:
            outputs = kill_after(chance.uniform(0, 0.5), processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
                process.stdout.close()
                process.stderr.close()
        with Store(place) as store:
            assert_clean(store)
            for lines in outputs:
                acknowledged += sum(not line.startswith("?") for line in lines)
                interrupted += lines[-1].startswith("?")
                for ref, seeds in outcomes(lines).items():
                    found = value(store, ref)
                    whole = [seed for seed in seeds if found == content(seed)]
                    assert whole, f"{ref} after {lines[-3:]}"
                    held[ref] = whole[0]
            leftovers += len(list(store.backend.list_temporaries()))
    with Store(place) as store:
        assert_clean(store)
        for ref, seed in held.items():
            same = value(store, ref) == content(seed)
            assert same, ref
        folder = adder.write_model(adder.model(1), work / "last")
        store.add(folder, ref="models/last", stat_cache=False)
        assert read_model(store, "models/last") == adder.model(1)
        assert_clean(store)
    assert acknowledged >= KILLS
    assert interrupted > 0
    _log.info(
        "%d kills: %d acts acknowledged, %d interrupted, %d leftovers",
        KILLS,
        acknowledged,
        interrupted,
        leftovers,
    )
