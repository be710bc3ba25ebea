"""Large numbers, once: `python tests/scale/run.py sparse|files|refs [--count N] [--folder DIR]`.

- `sparse`: a file of N GB (100) with a few bytes that are not zero; added, read at random places, verified.
- `files`: a model of N small files (100,000); added twice, checked out, collected.
- `refs`: N refs (100,000), of which half are deleted; listed, collected, checked.

Each step is a process of its own, whose seconds and peak memory are printed. A step that needs more than 1 GiB, or ends with
an error, ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes.stores import assert_clean, noise

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.format import record as record_format
from casstore.format.names import WRITE_ID_SIZE
from casstore.ops.lineage import lineage

MEMORY = 1 << 30
EVERYTHING = GcPolicy(orphans_now=True)


def step(name, work):
    """Do it in a child; print what it took and what it returned."""
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            answer = work()
            if answer is not None:
                say(f"  {answer}")
            code = 0
        except BaseException:  # noqa: BLE001  # a child must never return into its parent's code
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status, used = os.wait4(pid, 0)
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cpu = used.ru_utime + used.ru_stime
    say(f"{name}: {time.monotonic() - begun:.1f} s, {cpu:.1f} s of CPU, peak {peak >> 20} MiB")
    if status or peak > MEMORY:
        raise SystemExit(f"{name} failed" if status else f"{name} needs more than {MEMORY >> 20} MiB")


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def opened(folder, **options):
    return Store(folder / "store", durability="none", **options)


def sparse(folder, gigabytes):
    """Add a file that is nearly all holes."""
    size = gigabytes * 10**9
    islands = {at: noise(at, 100_000) for at in (0, size // 3 + 12_345, size - 100_000)}
    (folder / "model").mkdir()
    with open(folder / "model" / "weights.bin", "wb") as file:
        for at, data in islands.items():
            file.seek(at)
            file.write(data)

    def add():
        with opened(folder, create=True) as store:
            added = store.add(folder / "model", ref="models/sparse")
            return f"{added.bytes_stored} bytes stored"

    def read():
        with opened(folder) as store, store.open_file("models/sparse", "weights.bin") as file:
            for at, data in islands.items():
                file.seek(at)
                assert file.read(len(data)) == data
            for at in random.Random(1).sample(range(200_000, size // 3), 200):
                file.seek(at)
                assert file.read(1000) == bytes(1000)

    step("add", add)
    step("add again", add)
    step("read", read)
    step("check with data", lambda: check(folder))
    step("gc", lambda: collect(folder))


def files(folder, count):
    """Add a folder of many small files."""
    for number in range(count):
        place = folder / "model" / f"{number // 1000:03}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        (place / f"{number:06}.json").write_bytes(
            b'{"number": %d, "noise": "%s"}' % (number, noise(number, 300).hex().encode())
        )

    def add():
        with opened(folder, create=True) as store:
            store.add(folder / "model", ref="models/many")

    def get():
        with opened(folder) as store:
            store.get("models/many", folder / "out")
        found = [path for path in (folder / "out").rglob("*") if path.is_file()]
        assert len(found) == count
        for path in random.Random(1).sample(found, 1000):
            assert path.read_bytes() == (folder / "model" / path.relative_to(folder / "out")).read_bytes()

    step("add", add)
    step("add again", add)
    step("get", get)
    step("check", lambda: check(folder, read_data=False))
    step("gc", lambda: collect(folder))


def refs(folder, count):
    """Make records as `add` makes them, without fsync and without looking for earlier ones of each name."""
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(noise(1, 100_000))

    def build():
        with opened(folder, create=True) as store:
            store.add(folder / "model", ref="models/0")
            first = store.resolve("models/0").record
            for number in range(1, count):
                made = replace(
                    first, name=f"models/{number}", write_id=os.urandom(WRITE_ID_SIZE), metadata={"n": number}
                )
                store.backend.put(made.key, [record_format.encode(made)])
                if number % 2:
                    gone = replace(
                        made, seq=2, target=None, manifest=None, time=made.time - 30 * 86400 * 10**9
                    )
                    store.backend.put(gone.key, [record_format.encode(gone)])

    def list_all():
        with opened(folder) as store:
            assert len(store.refs()) == count - count // 2

    def find():
        with opened(folder) as store:
            assert len(store.ls(where={"n": count - 2})) == 1
            lineage(store, "models/0")

    step("build", build)
    step("list, the first time", list_all)
    step("list", list_all)
    step("filter and lineage", find)
    step("gc", lambda: collect(folder))
    step("gc again", lambda: collect(folder))
    step("check", lambda: check(folder, read_data=False))


def check(folder, *, read_data=True):
    with opened(folder) as store:
        assert_clean(store, read_data=read_data)


def collect(folder):
    with opened(folder) as store:
        report = execute_gc(store, plan_gc(store, EVERYTHING))
        return f"{report.packs_deleted} packs, {report.records_trimmed} records"


DEFAULTS = {"sparse": 100, "files": 100_000, "refs": 100_000}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=sorted(DEFAULTS))
    parser.add_argument("--count", type=int)
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="casstore-scale-", dir=chosen.folder))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        {"sparse": sparse, "files": files, "refs": refs}[chosen.what](
            folder, chosen.count or DEFAULTS[chosen.what]
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
