"""Memory of a sync is that of the blocks on their way, whatever the size of the model."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from casstore.api.store import Store

SIZE = 320 << 20
LIMIT = 140 << 20

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from fakes import syncer
from casstore.ops.sync import execute, plan_sync
from casstore.api.store import Store

def peak():
    # Not getrusage: its maximum comes along from the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

with Store(sys.argv[2]) as src, Store(sys.argv[3], durability="none") as dst:
    execute(plan_sync(src, dst, ["models/small"]))
    before = peak()
    report = execute(plan_sync(src, dst))
    print(peak() - before, report.bytes_missing, report.bytes_moved)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    (folder / "small.bin").write_bytes(b"small" * 100_000)
    np.random.default_rng(5).integers(0, 256, SIZE, np.uint8).tofile(folder / "large.bin")
    with Store(folder / "store", create=True, durability="none") as store:
        store.add(folder / "small.bin", ref="models/small")
        store.add(folder / "large.bin", ref="models/large")
    (folder / "large.bin").unlink()
    return folder / "store"


@pytest.mark.parametrize(("from_scheme", "to_scheme"), [("", ""), ("", "dirfs://"), ("dirfs://", "")])
def test_several_hundred_megabytes_in_a_bounded_memory(source, tmp_path, from_scheme, to_scheme):
    Store(tmp_path / "dst", create=True, durability="none").close()
    tests = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    places = [f"{from_scheme}{source}", f"{to_scheme}{tmp_path / 'dst'}"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tests, *places], capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    grown, missing, moved = map(int, done.stdout.split())
    assert missing >= SIZE
    assert moved <= 1.02 * missing
    assert grown < LIMIT, f"{grown >> 20} MiB"
