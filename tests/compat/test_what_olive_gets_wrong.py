"""What goes wrong with Olive's own cache, each thing shown to go right with this one.

Two machines share one store here, each with a cache directory of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes.faulty_backend import FaultyBackend
from fakes.machines import INPUT, PASS, is_hit, run_pass
from fakes.pipeline_models import composite_config, hf_config, hf_folder, onnx_config, onnx_file, tree, write

from casstore.api.store import Store
from casstore.cache.config import CacheConfig
from casstore.cache.olive.context import evaluating
from casstore.cache.shared_cache import SharedCache
from casstore.errors import BackendError, CasstoreError, ConfigError, IntegrityError, RefNotFound
from casstore.store.model_store import ModelStore


@pytest.fixture
def shared(tmp_path, machines):
    """Let the machines share a folder; return it."""
    machines.shared = (tmp_path / "shared").as_uri()
    return tmp_path / "shared"


def packs(folder):
    return sorted(path for path in (folder / "packs").rglob("*") if path.is_file())


def damage(folder):
    """Flip a byte in the middle of every pack below a folder."""
    found = packs(folder)
    assert found
    for pack in found:
        data = bytearray(pack.read_bytes())
        data[len(data) // 3] ^= 0x40
        pack.chmod(0o644)
        pack.write_bytes(data)


def forget_files(cache, model_id):
    """Delete the plain files of a run, as a full disk or a tidy user would."""
    shutil.rmtree(cache.get_model_cache_path(model_id))


def forget_checkouts(cache):
    shutil.rmtree(cache.dirs.checkouts)
    cache.dirs.checkouts.mkdir()


def loaded_files(cache, model_id):
    config = cache.load_model(model_id)
    if config["config"].get("shared_cache"):
        config = cache.download_shared_cache_model(config, model_id)
    return tree(Path(config["config"]["model_path"]))


# Ids and keys


def test_ids_are_whole_hashes(cache):
    model_id = cache.get_output_model_id(PASS, {}, INPUT, None)
    assert re.fullmatch(r"[0-9a-f]{64}", model_id)


def test_two_models_of_one_short_id_do_not_share_their_results(cache, tmp_path):
    ids = []
    for seed in (1, 2):
        cache.cache_model(INPUT, hf_config(hf_folder(tmp_path / str(seed), seed=seed)))
        ids.append(cache.get_output_model_id(PASS, {"bits": 8}, INPUT, None))
    assert ids[0] != ids[1]


def test_one_model_in_two_places_is_one_input(machines, tmp_path):
    ids = []
    for name in ("here", "there"):
        cache = machines.open(name)
        cache.cache_model(INPUT, hf_config(hf_folder(tmp_path / name / "bert")))
        ids.append(cache.get_output_model_id(PASS, {"bits": 8}, INPUT, None))
    assert ids[0] == ids[1]


def test_a_new_version_of_a_pass_is_run_again(machines):
    old, new = machines.open(pass_version="1.0"), machines.open(pass_version="1.1")
    model_id = run_pass(old, seed=1)
    other = run_pass(new, seed=2)
    assert other != model_id
    assert loaded_files(old, model_id) != loaded_files(new, other)


def test_what_is_named_as_environment_is_part_of_the_key(machines):
    ids = {
        machines.open(environment=environment).get_output_model_id(PASS, {}, INPUT, None)
        for environment in ({}, {"torch": "2.13.0"}, {"torch": "2.14.0"})
    }
    assert len(ids) == 3


def test_a_file_among_the_settings_counts_by_what_it_holds(cache, tmp_path):
    calibration = write(tmp_path / "one" / "calibration.json", "1")
    copy = write(tmp_path / "two" / "tmp4711.json", "1")
    first = cache.get_output_model_id(PASS, {"data_path": str(calibration)}, INPUT, None)
    assert cache.get_output_model_id(PASS, {"data_path": str(copy)}, INPUT, None) == first
    write(calibration, "2")
    assert cache.get_output_model_id(PASS, {"data_path": str(calibration)}, INPUT, None) != first


def test_short_ids_remain_as_names_for_people(cache):
    model_id = run_pass(cache)
    (row,) = cache.runs.list_runs()
    assert re.fullmatch(r"[0-9a-f]{8}", row.alias)
    assert cache.runs.load_run(row.alias).name == model_id


@pytest.mark.parametrize(
    "model_id", ["../evil", "..", "a/../../evil", "/tmp/evil", "a\nb", "a\0", "a@b", "x" * 300]
)
def test_an_id_cannot_leave_its_folder(machines, model_id, tmp_path):
    cache = machines.open()
    before = set(tmp_path.rglob("*"))
    for call in (
        cache.get_run_path,
        cache.get_run_json_path,
        cache.get_model_cache_path,
        cache.get_evaluation_json_path,
        cache.load_model,
        cache.load_run_from_model_id,
        cache.save_model,
        lambda name: cache.cache_model(name, hf_config("hub/name")),
        lambda name: cache.cache_run(PASS, {}, INPUT, name, None),
    ):
        with pytest.raises(ConfigError):
            call(model_id)
    assert set(tmp_path.rglob("*")) == before


def test_making_a_cache_twice_nests_nothing(tmp_path):
    config = CacheConfig(cache_dir=tmp_path / "cache")
    with config.create_cache("flow") as one, config.create_cache("flow") as two:
        assert one.get_cache_dir() == two.get_cache_dir() == (tmp_path / "cache" / "flow").resolve()


# Sharing: crashes and races

UPLOAD_AND_DIE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fakes.faulty_backend import FaultyBackend
from fakes.machines import Machines, run_pass

root, shared, left = Path(sys.argv[2]), Path(sys.argv[3]), [int(sys.argv[4])]

def dies(call):
    def step(*arguments, **named):
        if any(os.fspath(argument).startswith(str(shared)) for argument in arguments if isinstance(argument, (str, Path))):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        return call(*arguments, **named)
    return step

for name in ("link", "rename", "open"):
    setattr(os, name, dies(getattr(os, name)))
cache = Machines(root, shared=shared.as_uri()).open("dying")
run_pass(cache, seed=1)
print(left[0])
"""


def test_an_upload_that_was_killed_is_no_hit_and_is_mended_by_the_next_one(machines, shared, tmp_path):
    tests = str(Path(__file__).parent.parent)
    killed = steps = 0
    while True:
        arguments = [tests, str(tmp_path / "dying"), str(shared), str(steps)]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(UPLOAD_AND_DIE), *arguments],
            check=False, timeout=100, capture_output=True, text=True,
        )  # fmt: skip
        reader = machines.open(f"reader-{steps}")
        model_id = reader.get_output_model_id(PASS, {"bits": 8}, INPUT, None)
        if is_hit(reader, model_id):  # then all of it is there
            assert set(loaded_files(reader, model_id)) == {"graph.onnx", "graph.data"}
        machines.lose(reader)
        if done.returncode == 0:
            break
        killed += 1
        maker = machines.open("maker")
        assert run_pass(maker, seed=1) == model_id
        other = machines.open("other")
        assert is_hit(other, model_id)
        assert loaded_files(other, model_id) == tree(maker.get_model_cache_path(model_id))
        for machine in (maker, other):
            machines.lose(machine)
        shutil.rmtree(shared)
        shutil.rmtree(tmp_path / "dying")
        steps += 7
    assert killed >= 4, done.stderr


def test_a_slower_uploader_takes_nothing_away(machines, shared):
    caches = [machines.open(f"m{number}") for number in range(4)]
    start = threading.Barrier(len(caches), timeout=60)

    def work(cache):
        start.wait()
        return run_pass(cache, seed=1)

    with ThreadPoolExecutor(len(caches)) as pool:
        ids = set(pool.map(work, caches))
    assert len(ids) == 1
    late = machines.open("late")
    assert is_hit(late, *ids)
    assert loaded_files(late, *ids) == tree(caches[0].get_model_cache_path(*ids))


def test_the_second_uploader_of_an_id_waits_for_nothing_and_deletes_nothing(
    machines, shared, tmp_path, caplog
):
    first, second = machines.open("first"), machines.open("second")
    for seed, cache in enumerate((first, second)):
        cache.cache_model("same", onnx_config(onnx_file(tmp_path / str(seed) / "g.onnx", seed=seed)))
        begun = time.monotonic()
        cache.cache_run(PASS, {}, INPUT, "same", None)
        assert time.monotonic() - begun < 10
    late = machines.open("late")
    assert is_hit(late, "same")
    assert "Both are kept" in caplog.text
    config = late.download_shared_cache_model(late.load_model("same"), "same")
    newest = (tmp_path / "1" / "g.onnx").read_bytes()
    assert Path(config["config"]["model_path"]).read_bytes() == newest
    with Store(shared) as store:
        assert len({record.target for record in store.history("models/same")}) == 2  # both are kept


def faulty(cache):
    """Put a backend that fails on demand under a cache's shared store; return it."""
    plain = cache.shared_cache.remote
    backend = FaultyBackend(plain.backend)
    cache.shared_cache._remote = ModelStore(
        backend, store_id=bytes.fromhex(plain.store_id), machine=plain.machine
    )
    return backend


def test_an_upload_that_fails_anywhere_leaves_no_half_model_and_the_next_one_mends_it(tmp_path, machines):
    machines.shared = f"memory://{tmp_path}/count"
    counted = faulty(cache := machines.open("count"))
    run_pass(cache, seed=1)
    operations = counted.calls
    assert len(operations) > 10
    for at in range(0, len(operations), 2):
        machines.shared = f"memory://{tmp_path}/{at}"
        here = machines.open(f"here-{at}")
        faulty(here).fail_at(at, BackendError(f"the block {at} was refused"))
        model_id = run_pass(here, seed=1)
        assert is_hit(here, model_id)
        before = tree(here.get_model_cache_path(model_id))
        reader = machines.open(f"reader-{at}")
        if is_hit(reader, model_id):
            assert loaded_files(reader, model_id) == before
        maker = machines.open(f"maker-{at}")
        assert run_pass(maker, seed=1) == model_id
        other = machines.open(f"other-{at}")
        assert is_hit(other, model_id)
        assert loaded_files(other, model_id) == before
        for machine in (here, reader, maker, other):
            machines.lose(machine)


def test_an_upload_that_failed_is_said(machines, shared, caplog):
    here = machines.open("here")
    faulty(here).fail_next("open_writer", BackendError("the block was refused"))
    run_pass(here)
    assert "the block was refused" in caplog.text


def test_a_shared_name_is_not_a_prefix(machines, shared, tmp_path):
    here = machines.open("here")
    here.cache_model("abcd1234", onnx_config(onnx_file(tmp_path / "g.onnx")))
    there = machines.open("there")
    assert there.load_model("abcd") is None
    assert there.load_model("abcd123") is None
    with pytest.raises(RefNotFound):
        there.shared_cache.delete("models/abcd")
    assert there.load_model("abcd1234") is not None


# Sharing: what comes from elsewhere


def test_a_download_is_verified_and_appears_whole_or_not_at_all(machines, shared, caplog):
    here = machines.open("here")
    model_id = run_pass(here, seed=1)
    there = machines.open("there")
    told = there.load_model(model_id)
    damage(shared)
    with pytest.raises(IntegrityError):
        there.download_shared_cache_model(told, model_id)
    assert not any(path.name.startswith("graph") for path in there.dirs.cache_dir.parent.rglob("*"))
    third = machines.open("third")
    assert not is_hit(third, model_id) or third.load_model(model_id)["config"]["shared_cache"]


BIG_DOWNLOAD = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fakes.faulty_backend import FaultyBackend
from fakes.machines import Machines

cache = Machines(Path(sys.argv[2]), shared=sys.argv[3]).open("there")
told = cache.load_model("big")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cache.download_shared_cache_model(told, "big")
assert Path(told["config"]["model_path"]).stat().st_size == int(sys.argv[4])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_download_is_not_read_whole_into_memory(machines, shared, tmp_path):
    size = 256 << 20
    big = tmp_path / "big.bin"
    block = np.random.default_rng(0).bytes(1 << 20)
    with open(big, "wb") as file:
        file.writelines(number.to_bytes(8, "little") + block[8:] for number in range(size >> 20))
    machines.open("here").cache_model("big", {"type": "PyTorchModel", "config": {"model_path": str(big)}})
    arguments = [str(Path(__file__).parent.parent), str(machines.root), machines.shared, str(size)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BIG_DOWNLOAD), *arguments],
        check=True, timeout=200, capture_output=True, text=True,
    )  # fmt: skip
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < size // 2


@pytest.mark.parametrize(
    "path", ["../../../evil", "/tmp/evil", "model/../../evil", "a\\..\\b", "C:/evil", ""]
)
def test_paths_from_the_shared_cache_are_checked(machines, shared, tmp_path, path):
    document = {
        "version": 1,
        "model": {"type": "ONNXModel", "config": {"model_path": path}},
        "paths": [["config", "model_path"]],
    }
    file = write(tmp_path / "model.json", json.dumps(document))
    with Store(shared, create=True) as store:
        store.add(
            {"model.json": str(file), "model/g.onnx": str(onnx_file(tmp_path / "g.onnx"))}, ref="models/m"
        )
    there = machines.open("there")
    assert there.load_model("m") is None
    with pytest.raises(CasstoreError):
        there.download_shared_cache_model({"config": {}}, "m")
    with contextlib.closing(SharedCache(str(shared))) as alone:
        with pytest.raises(IntegrityError):
            alone.load_model("m", tmp_path / "told.json")
        with pytest.raises(IntegrityError):
            alone.download_model({"config": {}}, "m", tmp_path / "dest")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "dest" / "model").exists()


def test_a_component_from_the_shared_cache_cannot_name_a_place_to_save_to(machines, shared, tmp_path):
    config = composite_config({"part": onnx_config(onnx_file(tmp_path / "g.onnx"))})
    config["config"]["model_component_names"] = ["../../evil"]
    machines.open("here").cache_model("m", config)
    there = machines.open("there")
    with pytest.raises(ConfigError, match="evil"):
        there.save_model("m", tmp_path / "out" / "deep")
    assert not list(tmp_path.rglob("evil*"))


def test_nothing_in_the_shared_cache_tells_where_the_uploader_kept_its_files(machines, shared, tmp_path):
    here = machines.open("here")
    extra = write(tmp_path / "home" / "alice" / "tokenizer.json")
    attributes = {"additional_files": [str(extra)], "_name_or_path": str(tmp_path / "home" / "alice")}
    model_id = run_pass(here, model_attributes=attributes)
    names = [str(path.relative_to(shared)) for path in shared.rglob("*")]
    assert not any("alice" in name or "machines" in name for name in names)
    with Store(shared) as store:
        store.get(f"models/{model_id}", tmp_path / "got")
        records = [repr(record) for record in store.refs().values()]
    text = "".join(data.decode(errors="replace") for data in tree(tmp_path / "got").values()) + "".join(
        records
    )
    assert str(machines.root) not in text
    assert str(tmp_path / "home") not in text


def test_evaluations_are_shared(machines, shared):
    machines.open("here").cache_evaluation("model", {"accuracy": 0.5})
    assert machines.open("there").load_evaluation("model") == {"accuracy": 0.5}


class Remote:
    """A resource elsewhere, that counts how often it was downloaded."""

    downloads = 0

    def is_local_resource_or_string_name(self):
        return False

    def to_json(self):
        return {"type": "azureml_registry_model", "config": {"name": "bert"}}

    def save_to_dir(self, folder):
        type(self).downloads += 1
        return str(hf_folder(Path(folder) / "bert", seed=1))


def test_resources_are_shared(machines, shared, monkeypatch):
    monkeypatch.setattr(Remote, "downloads", 0)
    paths = [machines.open(name).get_local_path(Remote()) for name in ("here", "there", "third")]
    assert Remote.downloads == 1
    assert len(set(paths)) == 3
    assert tree(Path(paths[0])) == tree(Path(paths[1])) == tree(Path(paths[2]))
    assert all(Path(path).name == "bert" for path in paths)


def test_a_damaged_resource_is_downloaded_again(machines, shared, monkeypatch, caplog):
    monkeypatch.setattr(Remote, "downloads", 0)
    path = machines.open("here").get_local_path(Remote())
    damage(shared)
    there = machines.open("there").get_local_path(Remote())
    assert Remote.downloads == 2
    assert tree(Path(there)) == tree(Path(path))
    assert "bert" not in caplog.text  # what it is called may be a secret; its hash is not


def test_an_upload_that_failed_is_made_up_for_by_the_next_one(machines, shared, monkeypatch):
    here = machines.open("here")
    monkeypatch.setattr("casstore.cache.shared.sharing.PAUSE_SECONDS", 0.0)
    faulty(here).fail_next("open_writer", BackendError("the block was refused"))
    first = run_pass(here, seed=1)
    run_pass(here, seed=2, config={"bits": 4})
    there = machines.open("there")
    assert is_hit(there, first)
    assert loaded_files(there, first) == tree(here.get_model_cache_path(first))


def test_the_mark_of_a_lazy_download_reaches_no_output_and_goes_with_the_download(machines, shared, tmp_path):
    model_id = run_pass(machines.open("here"), seed=1)
    there = machines.open("there")
    assert is_hit(there, model_id)
    told = there.load_model(model_id)
    assert told["config"]["shared_cache"] is True
    # A pass that takes its input's config over into its output's, as Olive's do.
    derived = json.loads(json.dumps(told))
    there.download_shared_cache_model(told, model_id)
    derived["config"] = {**told["config"], "shared_cache": True}
    there.cache_model("derived", derived)
    assert "shared_cache" not in json.dumps(there.load_model("derived"))
    saved = there.save_model("derived", tmp_path / "out")
    assert "shared_cache" not in json.dumps(saved)
    assert "shared_cache" not in (tmp_path / "out" / "model_config.json").read_text()
    # The second warm run does without the shared cache.
    shared.rename(tmp_path / "away")
    assert is_hit(there, model_id)
    assert "shared_cache" not in there.load_model(model_id)["config"]
    assert set(loaded_files(there, model_id)) == {"graph.onnx", "graph.data"}


# Files on this machine


@pytest.mark.parametrize("what", ["gone", "flipped", "cut"])
def test_a_file_that_is_gone_or_changed_is_neither_used_nor_saved(cache, tmp_path, what):
    model_id = run_pass(cache, seed=1)
    before = tree(cache.get_model_cache_path(model_id))
    data = cache.get_model_cache_path(model_id) / "graph.data"
    if what == "gone":
        data.unlink()
    else:
        raw = bytearray(data.read_bytes())
        raw[100] ^= 1
        data.write_bytes(raw if what == "flipped" else raw[:100])
    assert is_hit(cache, model_id)
    assert loaded_files(cache, model_id) == before
    cache.save_model(model_id, tmp_path / "out")
    assert (tmp_path / "out" / "graph.data").read_bytes() == before["graph.data"]


def test_damage_in_the_store_is_no_hit_and_heals_when_the_pass_runs_again(machines, tmp_path):
    cache = machines.open()
    model_id = run_pass(cache, seed=1)
    before = tree(cache.get_model_cache_path(model_id))
    forget_files(cache, model_id)
    cache.close()
    damage(cache.dirs.store)
    cache = machines.open()
    with pytest.raises((IntegrityError, RefNotFound)):
        cache.save_model(model_id, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not is_hit(cache, model_id)
    assert cache.problems
    assert run_pass(cache, seed=1) == model_id
    assert is_hit(cache, model_id)
    forget_files(cache, model_id)
    cache.close()
    cache = machines.open()
    assert loaded_files(cache, model_id) == before


def test_damage_here_is_mended_from_the_shared_cache(machines, shared):
    cache = machines.open()
    model_id = run_pass(cache, seed=1)
    before = tree(cache.get_model_cache_path(model_id))
    forget_files(cache, model_id)
    cache.close()
    damage(cache.dirs.store)
    cache = machines.open()
    assert is_hit(cache, model_id)
    assert loaded_files(cache, model_id) == before
    cache.disable_shared_cache()
    forget_checkouts(cache)
    assert loaded_files(cache, model_id) == before  # the store here is whole again


def test_additional_files_of_one_name_do_not_meet(machines, tmp_path, shared):
    files = [write(tmp_path / name / "config.json", name) for name in ("one", "two")]
    here = machines.open("here")
    model_id = run_pass(here, model_attributes={"additional_files": [str(file) for file in files]})
    for file in files:
        file.unlink()
    there = machines.open("there")
    for cache in (here, there):
        config = cache.download_shared_cache_model({"config": {}}, model_id)
        found = config["config"]["model_attributes"]["additional_files"]
        assert [Path(path).read_text() for path in found] == ["one", "two"]
        saved = cache.save_model(model_id, tmp_path / "out" / cache.dirs.cache_dir.parent.name)
        found = saved["config"]["model_attributes"]["additional_files"]
        assert [Path(path).read_text() for path in found] == ["one", "two"]


def test_outputs_that_are_alike_are_kept_once(machines, tmp_path):
    """Five passes that each change one tensor of ten: Olive keeps five whole models."""
    random = np.random.default_rng(0)
    layers = [random.bytes(400_000) for _ in range(10)]
    cache = machines.open(max_checkout_bytes=0)
    whole = sum(map(len, layers))
    for number in range(5):
        layers[number] = random.bytes(400_000)
        model_id = cache.get_output_model_id(PASS, {"step": number}, INPUT, None)
        folder = cache.get_model_cache_path(model_id)
        for at, layer in enumerate(layers):
            write(folder / f"layer{at}.bin", layer)
        cache.cache_model(model_id, {"type": "PyTorchModel", "config": {"model_path": str(folder)}})
        cache.cache_run(PASS, {"step": number}, INPUT, model_id, None)
    cache.close()
    kept = sum(path.stat().st_blocks * 512 for path in cache.dirs.store.parent.rglob("*") if path.is_file())
    assert kept < 1.7 * whole  # one model and four changed layers, instead of five models
    assert len(loaded_files(machines.open(), model_id)) == 10


def test_an_evaluation_belongs_to_its_evaluator(cache):
    latency, accuracy = {"metrics": [{"name": "latency"}]}, {"metrics": [{"name": "accuracy"}]}
    with evaluating(latency):
        cache.cache_evaluation("model", {"latency": 1.5})
    with evaluating(accuracy):
        assert cache.load_evaluation("model") is None
        assert not cache.get_evaluation_json_path("model").exists()
        cache.cache_evaluation("model", {"accuracy": 0.5})
        assert json.loads(cache.get_evaluation_json_path("model").read_bytes()) == {"accuracy": 0.5}
    assert cache.load_evaluation("model", evaluator=latency) == {"latency": 1.5}
    assert cache.load_evaluation("model") is None


# Errors


def test_what_fails_can_be_seen(cache, caplog, tmp_path):
    cache.cache_model("model", onnx_config(tmp_path / "gone.onnx"))
    assert "gone.onnx" in cache.problems[-1]
    assert "gone.onnx" in caplog.text
    assert cache.local.record("models/model") is None
