"""Memory of reading from a store that is a network away is the cache and what is on its way, whatever the file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fakes.stores import noise

from casstore.api.store import Store

SIZE = 224 << 20
CACHE = 64 << 20
ON_THE_WAY = 64 << 20  # eight requests: stored bytes as they came, a copy to decode from, plain bytes

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from fakes import syncer
from casstore.api.store import Store

def peak():
    # Not getrusage: its maximum comes along from the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

size = int(sys.argv[3])
with Store(sys.argv[2]) as store:
    with store.open_file("models/large", "large.bin") as file:
        file.read(100)
        before = peak()
        file.seek(0)
        if sys.argv[4] == "in order":
            done = 0
            while data := file.read(1 << 18):
                done += len(data)
            assert done == size
        elif sys.argv[4] == "anywhere":
            for at in range(500):
                file.seek(at * 7919 * 4096 % (size - (1 << 20)))
                assert len(file.read(1 << 20)) == 1 << 20
        else:
            assert len(memoryview(buffer := bytearray(size))) == file.readinto(buffer)
            before += size
    print(peak() - before)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    with open(folder / "large.bin", "wb") as file:
        file.writelines(noise(at, 1 << 20) for at in range(SIZE >> 20))
    with Store(folder / "store", create=True, durability="none") as store:
        store.add(folder / "large.bin", ref="models/large")
    (folder / "large.bin").unlink()
    return folder / "store"


@pytest.mark.parametrize("how", ["in order", "anywhere", "at once"])
def test_many_megabytes_in_a_bounded_memory(place, how):
    tests = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tests, f"dirfs://{place}", str(SIZE), how],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    grown = int(done.stdout)
    assert grown < CACHE + ON_THE_WAY, f"{grown >> 20} MiB"
