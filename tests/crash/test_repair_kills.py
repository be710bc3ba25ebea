"""A repair that is killed at any change of a file: nothing that was readable is lost, and the next repair finishes."""

from __future__ import annotations

import shutil
import subprocess
import sys

from fakes import repair_killed
from fakes.counts import REPAIR_KILLS
from fakes.stores import model_of, noise, read_model, small_packs, write_model

from casstore import Store
from casstore.ops.repair import Health

MODELS = {
    "models/whole": model_of(a=noise(1, 200_000)),
    "models/damaged": model_of(a=noise(2, 300_000), b=noise(3, 900)),
    "models/lost": model_of(a=noise(4, 150_000)),
}


def build(top, monkeypatch):
    """Make a store of which one model is damaged, one is gone and a segment is torn, and a hub that has all."""
    small_packs(monkeypatch, 100_000)
    packs = {}
    with Store(top / "store", create=True, durability="none") as store:
        for number, (ref, model) in enumerate(MODELS.items()):
            before = set((top / "store/packs").rglob("*/*"))
            store.add(write_model(model, top / f"m{number}"), ref=ref)
            packs[ref] = set((top / "store/packs").rglob("*/*")) - before
        store.push(top / "hub", create=True)
    for path in packs["models/lost"]:
        path.unlink()
    damaged = [*packs["models/damaged"], next((top / "store/index").iterdir())]
    for path in damaged:
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        for at in range(50, len(data) - 200, 5_000):
            data[at] ^= 1
        path.write_bytes(data)


def run(top, last):
    program = [
        sys.executable,
        "-W",
        "error",
        repair_killed.__file__,
        str(top / "work"),
        str(top / "hub"),
        str(last),
    ]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)


def test_repairs_that_are_killed(tmp_path, monkeypatch):
    build(tmp_path, monkeypatch)
    shutil.copytree(tmp_path / "store", tmp_path / "work")
    ended = run(tmp_path, 0)
    assert ended.returncode == 0, ended.stderr
    changes = int(ended.stdout)
    assert changes > 20
    for number in range(REPAIR_KILLS):
        shutil.rmtree(tmp_path / "work")
        shutil.copytree(tmp_path / "store", tmp_path / "work")
        last = 1 + number * (changes - 1) // max(1, REPAIR_KILLS - 1)
        killed = run(tmp_path, last)
        assert killed.returncode == -9, (last, killed.stderr)
        with Store(tmp_path / "work") as store:
            assert read_model(store, "models/whole") == MODELS["models/whole"]
            report = store.repair(source=tmp_path / "hub", dry_run=False)
            assert report.ok, (last, report)
        with Store(tmp_path / "work") as store:
            for ref, model in MODELS.items():
                assert read_model(store, ref) == model, last
                assert store.lacks(store.record(ref)) == 0
            again = store.repair(source=tmp_path / "hub")
            assert (again.packs, again.sources, again.segments, again.uncovered) == ({}, {}, {}, 0)
            assert all(ref.health is Health.WHOLE for ref in again.refs)
