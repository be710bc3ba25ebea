"""Olive's engine on casstore, without Olive: hits stay in the store until they are opened, and damage is a miss all the same."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import CasstoreError
from casstore.integrations.olive.engine_cache import EngineCache
from casstore.integrations.olive.install import _with_end, _with_outputs

PASSES = ["Conversion", "Fusion", "Quantization"]


class Cache(EngineCache):
    def pass_version(self, pass_name):
        return "1"


@dataclass
class Node:
    model_config_data: dict[str, Any]


@dataclass
class Footprint:
    nodes: dict[str, Node] = field(default_factory=dict)
    output_model_ids: list[str] = field(default_factory=list)


@dataclass
class Model:
    model_id: str
    olive_model_config: dict[str, Any]


@dataclass
class Output:
    models: list[Model]

    def get_best_candidate(self):
        return self.models[0] if self.models else None


class Engine:
    """What Olive's engine does with its cache, step by step; `outputs` models are the run's, the first one is saved."""

    def __init__(self, cache, model, *, passes=PASSES, outputs=1):
        self.cache, self.model, self.passes, self.outputs = cache, model, passes, outputs
        self.ran = []

    def run(self, output_dir):
        self.footprint = Footprint()
        self.run_accelerator()
        ids = self.footprint.output_model_ids
        output = Output([Model(name, self.footprint.nodes[name].model_config_data) for name in ids])
        if output.models:
            saved = self.cache.save_model(model_id=ids[0], output_dir=output_dir, overwrite=True)
            output.models[0].olive_model_config = saved
        return output

    def run_accelerator(self):
        config, name = {"type": "HfModel", "config": {"model_path": str(self.model)}}, "1a2b3c4d"
        made = []
        try:
            for pass_name in self.passes:
                config, name = self._run_pass(pass_name, config, name)
                made.append(name)
        except CasstoreError:
            logging.getLogger("olive").warning("Failed to run Olive", exc_info=True)
            return
        self.footprint.output_model_ids = made[-self.outputs :][::-1]

    def _run_pass(self, pass_name, config, name):
        made = self.cache.get_output_model_id(pass_name, {}, name, None)
        result = self.cache.load_model(made) if self.cache.load_run_from_model_id(made) else None
        if result is None:
            folder = self.cache.get_model_cache_path(made)
            config = self.cache.with_files(config)
            self._work(pass_name, Path(config["config"]["model_path"]), folder)
            result = {"type": "HfModel", "config": {"model_path": str(folder)}}
            self.cache.cache_model(made, result)
            self.cache.cache_run(pass_name, {}, name, made, None)
        self.footprint.nodes[made] = Node(result)
        return result, made

    def _work(self, pass_name, source, folder):
        self.ran.append(pass_name)
        (folder / "w.bin").write_bytes((source / "w.bin").read_bytes() + pass_name.encode())


Engine.run_accelerator = _with_outputs(Engine.run_accelerator)
Engine.run = _with_end(Engine.run)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "input/w.bin").write_bytes(os.urandom(2000))
    return tmp_path / "input"


@pytest.fixture
def start(tmp_path, model):
    """Return an engine of its own process, as far as the cache is concerned."""
    opened = []

    def make(name="cache", **others):
        places = [str(tmp_path / name), *([others.pop("shared")] if "shared" in others else [])]
        opened.append(Cache({"cache_dir": places}))
        return Engine(opened[-1], model, **others)

    yield make
    for cache in opened:
        cache.close()


def copies(place):
    return [path for path in place.rglob("w.bin") if "store" not in path.relative_to(place).parts]


def test_after_a_run_no_copy_is_left_and_a_warm_run_opens_only_what_it_saves(tmp_path, model, start):
    place, wanted = tmp_path / "cache", (model / "w.bin").read_bytes() + "".join(PASSES).encode()
    for count in range(3):
        engine = start()
        checkouts = []
        check_out = engine.cache.models._check_out
        engine.cache.models._check_out = lambda record: (checkouts.append(record.name), check_out(record))[1]  # noqa: B023
        output = engine.run(tmp_path / f"out-{count}")
        assert engine.ran == (PASSES if count == 0 else [])
        assert (tmp_path / f"out-{count}/model/w.bin").read_bytes() == wanted
        best = output.get_best_candidate()
        for config in (best.olive_model_config, engine.footprint.nodes[best.model_id].model_config_data):
            assert Path(config["config"]["model_path"], "w.bin").read_bytes() == wanted
        assert copies(place) == []
        assert len(checkouts) == (0 if count == 0 else 1)
        assert not engine.cache.problems


def test_outputs_that_nobody_saved_stay_open_to_the_user(tmp_path, model, start):
    for count in range(2):
        engine = start(outputs=2)
        output = engine.run(tmp_path / f"out-{count}")
        config = output.models[1].olive_model_config
        data = (model / "w.bin").read_bytes() + b"ConversionFusion"
        assert Path(config["config"]["model_path"], "w.bin").read_bytes() == data
        engine.cache.close()
        assert [path.read_bytes() for path in copies(tmp_path / "cache")] == [data]


def test_a_new_pass_gets_the_files_of_a_hit(tmp_path, model, start):
    start().run(tmp_path / "out-1")
    engine = start(passes=[*PASSES, "Tuning"])
    engine.run(tmp_path / "out-2")
    assert engine.ran == ["Tuning"]
    assert (tmp_path / "out-2/model/w.bin").read_bytes().endswith(b"QuantizationTuning")
    assert copies(tmp_path / "cache") == []


def test_a_hit_whose_files_do_not_fit_into_the_cache_is_opened_elsewhere(tmp_path, model, start, monkeypatch):
    start().run(tmp_path / "out-1")
    engine = start(passes=[*PASSES, "Tuning"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine.cache.placements, "scratch", full)
    engine.run(tmp_path / "out-2")
    assert engine.ran == ["Tuning"]
    assert (tmp_path / "out-2/model/w.bin").read_bytes().endswith(b"QuantizationTuning")
    assert list(tmp_path.glob("casstore-checkout-*"))
    engine.cache.close()
    assert not list(tmp_path.glob("casstore-checkout-*"))


def test_one_engine_may_run_twice(tmp_path, model, start):
    engine = start()
    for count in range(2):
        engine.run(tmp_path / f"out-{count}")
        assert (tmp_path / f"out-{count}/model/w.bin").read_bytes().endswith(b"Quantization")
    assert engine.ran == PASSES


def damage(place):
    for path in (place / "store/packs").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            data = bytearray(path.read_bytes())
            data[600] ^= 1
            path.write_bytes(data)


@pytest.mark.parametrize("passes", [PASSES, [*PASSES, "Tuning"]])
def test_a_hit_that_turns_out_to_be_damaged_is_made_again_in_the_same_run(tmp_path, model, start, passes):
    start().run(tmp_path / "out-1")
    damage(tmp_path / "cache")
    engine = start(passes=passes)
    engine.run(tmp_path / "out-2")
    wanted = (model / "w.bin").read_bytes() + "".join(passes).encode()
    assert (tmp_path / "out-2/model/w.bin").read_bytes() == wanted
    assert "Quantization" in engine.ran
    assert engine.cache.problems
    engine = start(passes=passes)
    engine.run(tmp_path / "out-3")
    assert engine.ran == []
    assert (tmp_path / "out-3/model/w.bin").read_bytes() == wanted


def test_a_second_machine_fetches_only_the_model_that_is_saved(tmp_path, model, start):
    shared = (tmp_path / "shared").as_uri()
    start(shared=shared).run(tmp_path / "out-1")
    engine = start("second", shared=shared)
    engine.run(tmp_path / "out-2")
    assert engine.ran == []
    assert (tmp_path / "out-2/model/w.bin").read_bytes().endswith(b"Quantization")
    assert list(engine.cache.models.list()) == [engine.footprint.output_model_ids[0]]
    assert copies(tmp_path / "second") == []


def test_a_run_that_fails_leaves_no_copy(tmp_path, model, start):
    engine = start()
    engine._work = None
    with pytest.raises(TypeError):
        engine.run(tmp_path / "out")
    engine = start(passes=PASSES[:2])
    engine.run(tmp_path / "out")
    engine = start()
    engine._work = None
    with pytest.raises(TypeError):
        engine.run(tmp_path / "out")
    assert copies(tmp_path / "cache") == []
