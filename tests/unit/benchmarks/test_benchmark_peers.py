"""Every peer keeps to the protocol, and says how to get it when it is not there."""

from __future__ import annotations

import importlib
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
ALWAYS_HERE = ("casstore", "casstore-cli", "zstd-files", "copy")
NEEDS = {
    "hf-xet": ("hf_xet", "pip install '.[bench]'"),
    "reminis": ("reminis.registry", "pip install '.[bench]'"),
    "lmzip": ("lmz", "pip install '.[bench]'"),
    "zipnn": ("zipnn", "pip install '.[bench]'"),
    "restic": (None, "apt-get install restic"),
    "restic-batch": (None, "apt-get install restic"),
    "borg": (None, "apt-get install borgbackup"),
    "borg-batch": (None, "apt-get install borgbackup"),
}


@pytest.fixture(autouse=True)
def repository_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def models(tmp_path):
    return make_models(tmp_path / "models")


def make_models(folder):
    """A base and two models made from it: equal files, empty ones, folders, odd lengths, all kinds of tensors."""
    model = importlib.import_module("benchmarks.peers.base").Model
    rng = np.random.default_rng(3)
    weights = rng.normal(0, 0.02, 20_000).astype("<f4")
    tuned = weights.copy()
    tuned[:500] += 0.001
    for name, values in (("base", weights), ("tuned", tuned), ("no-tensors", None)):
        top = folder / name
        (top / "sub" / "deeper").mkdir(parents=True)
        (top / "config.json").write_text('{"hidden_size": 8}')
        (top / "sub" / "same.json").write_text('{"hidden_size": 8}')
        (top / "empty").touch()
        (top / "sub" / "deeper" / "empty too").touch()
        (top / "sub" / "lengths.bin").write_bytes(rng.bytes((1 << 20) + 3))
        if values is not None:
            tensors = {
                "w": ("F32", values.tobytes()),
                "h": ("F16", values.astype("<f2").tobytes()),
                "ids": ("I64", np.arange(7, dtype="<i8").tobytes()),
                "none": ("F32", b""),
                "odd": ("U8", rng.bytes(5)),
            }
            (top / "model.safetensors").write_bytes(safetensors(tensors))
            (top / "torch.bin").write_bytes(b"PK" + values.tobytes() * 20 + b"!")
            (top / "broken.safetensors").write_bytes(safetensors(tensors)[:-3])
    return [
        model("base", folder / "base"),
        model("tuned", folder / "tuned", "base"),
        model("no-tensors", folder / "no-tensors", "tuned"),
    ]


def safetensors(tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, value) in tensors.items():
        width = {"F32": 4, "F16": 2, "I64": 8, "U8": 1}[dtype]
        offsets = [len(data), len(data) + len(value)]
        header[name] = {"dtype": dtype, "shape": [len(value) // width], "data_offsets": offsets}
        data += value
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_contract(peer, models, work, *, readings=(True, True, False)):
    """Add, restore, add again with and without reading; nothing may be lost or written elsewhere."""
    assert peer.version()
    assert peer.setting
    store = work / "store"
    peer.prepare(store)
    seen = []
    for number, reread in enumerate(readings):
        receipt = json.loads(json.dumps(peer.add(store, models, reread=reread)))
        seen.append(peer.stored_bytes(store))
        dest = work / f"restored-{number}"
        dest.mkdir()
        peer.restore(store, receipt, dest)
        assert sorted(path.name for path in dest.iterdir()) == sorted(model.name for model in models)
        for model in models:
            assert files(dest / model.name) == files(model.folder)
    plain = sum(len(data) for model in models for data in files(model.folder).values())
    assert 0 < seen[0] <= plain + 100_000
    assert seen[-1] < 1.1 * seen[0]
    assert {path.name for path in work.iterdir()} == {
        "store",
        *(f"restored-{number}" for number in range(len(readings))),
    }


@pytest.mark.parametrize("name", ALWAYS_HERE)
def test_what_goes_in_comes_out(name, models, tmp_path):
    peers = importlib.import_module("benchmarks.peers").PEERS
    work = tmp_path / "work"
    work.mkdir()
    if name == "casstore-cli":  # every step of the command is a process: a few are enough
        check_contract(peers[name](), models[:2], work, readings=(True, False))
    else:
        check_contract(peers[name](), models, work)


def test_equal_files_are_kept_once(models, tmp_path):
    peers = importlib.import_module("benchmarks.peers").PEERS
    peer, store = peers["zstd-files"](), tmp_path / "store"
    peer.prepare(store)
    peer.add(store, models, reread=True)
    contents = {data for model in models for data in files(model.folder).values()}
    assert len(list((store / "objects").iterdir())) == len(contents)


@pytest.mark.parametrize("name", ["casstore", "casstore-cli"])
def test_casstore_is_told_what_a_model_was_made_from(name, models, tmp_path):
    peers = importlib.import_module("benchmarks.peers").PEERS
    store_class = importlib.import_module("casstore").Store
    peer, store = peers[name](), tmp_path / "store"
    peer.prepare(store)
    peer.add(store, models[:2], reread=True)
    with store_class(store) as opened:
        base, tuned = opened.resolve("models/base"), opened.resolve("models/tuned")
    assert base.record.base is None
    assert tuned.record.base.hex() == base.model_id


@pytest.mark.parametrize("name", NEEDS)
def test_a_peer_that_is_not_here_says_how_to_get_it(name, monkeypatch):
    peers = importlib.import_module("benchmarks.peers").PEERS
    missing = importlib.import_module("benchmarks.peers.base").PeerMissing
    module, install = NEEDS[name]
    if module is None:
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(missing, match="is not installed: ") as raised:
        peers[name]()
    assert str(raised.value).endswith(install)


def test_every_peer_is_tested():
    peers = importlib.import_module("benchmarks.peers").PEERS
    assert {*ALWAYS_HERE, *NEEDS} == set(peers)


def test_a_program_that_fails_says_why(tmp_path):
    programs = importlib.import_module("benchmarks.peers.programs")
    failed = importlib.import_module("benchmarks.peers.base").PeerFailed
    with pytest.raises(failed, match=r"exited with 3: no luck"):
        programs.run_program([sys.executable, "-c", "import sys; sys.stderr.write('no luck'); sys.exit(3)"])


def test_programs_see_no_settings_of_the_user(monkeypatch):
    programs = importlib.import_module("benchmarks.peers.programs")
    monkeypatch.setenv("BORG_REPO", "theirs")
    monkeypatch.setenv("RESTIC_REPOSITORY", "theirs")
    program = "import os; print([name for name in os.environ if name.startswith(('BORG', 'RESTIC'))])"
    printed = programs.run_program([sys.executable, "-c", program], variables={"BORG_BASE_DIR": "ours"})
    assert printed.strip() == "['BORG_BASE_DIR']"


def test_runs_of_programs(models):
    programs = importlib.import_module("benchmarks.peers.programs")
    model = importlib.import_module("benchmarks.peers.base").Model
    parent = models[0].folder.parent
    names = [item.name for item in models]
    assert list(programs.runs(models, together=True)) == [(parent, names)]
    assert list(programs.runs(models, together=False)) == [(parent, [name]) for name in names]
    elsewhere = model("other", parent.parent / "other")
    assert list(programs.runs([*models, elsewhere], together=True))[1] == (parent.parent, ["other"])
    with pytest.raises(ValueError, match="not named like"):
        list(programs.runs([model("other", parent / "base")], together=True))


def test_peak_memory_counts_programs_that_a_peer_runs():
    program = (
        "import subprocess, sys; from benchmarks import worker; "
        "run = lambda: subprocess.run([sys.executable, '-c', 'bytearray(200_000_000)'], check=True); "
        "timed = worker._time(run); "
        "assert timed.rss_before < 150e6, timed; assert timed.rss_peak > 200e6, timed; "
        "assert timed.cpu_seconds > 0"
    )
    importlib.import_module("benchmarks.peers.programs").run_program(
        [sys.executable, "-c", program], cwd=ROOT
    )
