"""The demo on real weights, and on models that allow few variants."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from click.testing import CliRunner
from fakes.model_files import safetensors_bytes

from casstore import tensors
from casstore.api import demo as demo_module
from casstore.api.demo import run_demo
from casstore.api.store import Store
from casstore.api.variants import FLOATS, from_float32, read_tensors, to_float32, write_variants
from casstore.cli import app
from casstore.errors import ConfigError, IntegrityError
from casstore.ops.check import check


def tensors_in(path):
    data = path.read_bytes()

    class FileBytes:
        size = len(data)

        @staticmethod
        def read(offset, length):
            return data[offset : offset + length]

    return {
        span.name: tensors.as_array(data[span.begin : span.end], span.dtype, span.shape)
        for span in tensors.find_spans(FileBytes)
    }


@pytest.fixture
def two_tensors(tmp_path):
    """A model of a folder: two fp32 tensors of 1 MiB and 512 KiB, an integer one, a config."""
    folder = tmp_path / "model"
    folder.mkdir()
    random = np.random.default_rng(3)
    first = random.standard_normal((1024, 256)).astype("<f4")
    second = random.standard_normal((512, 256)).astype("<f4")
    steps = np.arange(6, dtype="<i8")
    data = safetensors_bytes(
        {
            "first": ("F32", (1024, 256), first.tobytes()),
            "second": ("F32", (512, 256), second.tobytes()),
            "steps": ("I64", (6,), steps.tobytes()),
        }
    )
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text("{}")
    return folder


def make_variants(folder, tmp_path):
    """Return the tensors of each variant's files, by variant and file."""
    with Store(f"memory://{tmp_path.name}", create=True) as store:
        store.add(folder, ref="models/m")
        found = read_tensors(store.model("models/m"), str(folder))
    made = tmp_path / "made"
    made.mkdir()
    variants = {}
    for name, _ in write_variants(found, str(made)):
        variants[name] = {path.name: tensors_in(path) for path in made.iterdir()}
        for path in made.iterdir():
            path.unlink()
    return variants


def test_on_the_real_weights(own_home):
    result = CliRunner().invoke(app, ["demo", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    steps = {step["name"]: step for step in report["steps"]}
    assert list(steps) == ["original", "again", "bf16", "fp32", "retrained", "sharded", "torch"]
    size = steps["original"]["bytes_total"]
    assert size > 16_000_000
    assert steps["again"]["bytes_dedup"] == size
    assert steps["torch"]["bytes_dedup"] > 0.99 * size
    assert steps["retrained"]["bytes_dedup"] > 0.8 * size
    assert steps["fp32"]["bytes_stored"] < 0.6 * steps["fp32"]["bytes_total"]
    for step in steps.values():
        overhead = (
            step["bytes_stored"] + step["bytes_dedup"] + sum(step["saved"].values()) - step["bytes_total"]
        )
        assert 0 <= overhead < 64 << 10
    assert steps["bf16"]["base"] == steps["original"]["ref"]
    assert steps["fp32"]["delta_bases"] == [steps["original"]["ref"]]
    assert steps["fp32"]["saved"]["delta"] > 0.99 * size
    assert steps["original"]["delta_bases"] == []
    assert report["ref"] == steps["retrained"]["ref"]
    assert report["temporary"] is True
    assert not os.path.exists(report["store"].removeprefix("file://"))
    left = [names for _, _, names in os.walk(own_home) if names]
    assert left == []


def test_for_people(two_tensors, monkeypatch, tmp_path):
    monkeypatch.setenv("CASSTORE_STORE", str(tmp_path / "never"))
    result = CliRunner().invoke(app, ["demo", str(two_tensors)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"Model: {two_tensors}"
    assert lines[-1].endswith("equals byte for byte what was added.")
    assert not (tmp_path / "never").exists()


def test_a_store_that_stays(two_tensors, tmp_path):
    place = tmp_path / "store"
    first = run_demo(str(two_tensors), store=str(place))
    assert first.temporary is False
    with Store(place) as store:
        assert set(store.refs()) == {step.ref for step in first.steps}
        record = store.refs()["models/demo/model/retrained"]
        assert record.base.hex() == first.steps[0].model_id
        assert check(store, read_data=True).ok
    again = run_demo(str(two_tensors), store=str(place))
    assert [step.model_id for step in again.steps] == [step.model_id for step in first.steps]
    assert all(step.bytes_dedup == step.bytes_total for step in again.steps)


def test_variants_are_the_same_bytes_at_any_time(two_tensors, tmp_path, monkeypatch):
    first = run_demo(str(two_tensors))
    now = time.localtime()
    monkeypatch.setattr(time, "localtime", lambda *_: time.struct_time((now[0] + 1, *now[1:])))
    assert [step.model_id for step in run_demo(str(two_tensors)).steps] == [
        step.model_id for step in first.steps
    ]


def test_variants_hold_the_right_numbers(two_tensors, tmp_path):
    made = make_variants(two_tensors, tmp_path)
    assert list(made) == ["bf16", "fp16", "retrained", "sharded", "torch"]
    source = tensors_in(two_tensors / "model.safetensors")
    half = made["fp16"]["model.safetensors"]
    assert np.array_equal(half["first"], source["first"].astype("<f2"))
    assert np.array_equal(half["steps"], source["steps"])
    widened = (made["bf16"]["model.safetensors"]["second"].astype("<u4") << 16).view("<f4")
    assert np.allclose(widened, source["second"], rtol=2**-8)
    retrained = made["retrained"]["model.safetensors"]
    changed = np.flatnonzero((retrained["first"] != source["first"]).ravel()) / source["first"].size
    assert 0.399 < changed.min() < changed.max() < 0.501
    assert 0.09 * source["first"].size < len(changed) < 0.101 * source["first"].size
    assert np.array_equal(retrained["second"], source["second"])
    shards = {name: array for part in made["sharded"].values() for name, array in part.items()}
    assert len(made["sharded"]) == 2
    for copy in (made["torch"]["pytorch_model.bin"], shards):
        assert {name: array.tobytes() for name, array in copy.items()} == {
            name: array.tobytes() for name, array in source.items()
        }


@pytest.mark.parametrize(
    "files",
    [
        {"sub/blob.bin": bytes(range(256)) * 1000, "small.txt": b"text"},
        {"m.safetensors": safetensors_bytes({"w": ("F32", (2,), b"\0" * 8), "q": ("F6_E2M3", (4,), b"abc")})},
        {"empty.bin": b""},
    ],
    ids=["no tensors", "types that safetensors lacks", "an empty file"],
)
def test_models_without_variants(files, tmp_path):
    for name, data in files.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    report = run_demo(str(tmp_path / "model"))
    assert [step.name for step in report.steps] == ["original", "again"]


def test_what_ends_it_leaves_nothing_and_what_was_killed_goes(two_tensors, tmp_path, own_home, monkeypatch):
    monkeypatch.setattr(demo_module.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary" / ".casstore-demo.0123456789ab.casstore" / "store").mkdir(parents=True)

    def stop(text):
        if text.startswith("getting"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(str(two_tensors), announce=stop)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [names for _, _, names in os.walk(own_home) if names] == []


def test_a_missing_package_and_a_missing_path(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'casstore\[demo\]'"):
        run_demo()
    with pytest.raises(ConfigError, match="does not exist"):
        run_demo(str(tmp_path / "none"))


def test_a_difference_is_an_error(two_tensors, monkeypatch):
    original = Store.get

    def damage(self, ref, dest, **options):
        model = original(self, ref, dest, **options)
        path = os.path.join(dest, "model.safetensors")
        os.chmod(path, 0o600)
        with open(path, "w", encoding="utf-8") as file:
            file.write("other")
        return model

    monkeypatch.setattr(Store, "get", damage)
    with pytest.raises(IntegrityError, match="differs"):
        run_demo(str(two_tensors))


@pytest.mark.parametrize("dtype", FLOATS)
def test_casts_round_trip_and_round_to_even(dtype):
    values = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, 2.0**-14], np.float32)
    there = from_float32(values, dtype)
    assert np.array_equal(to_float32(there, dtype), values)
    assert np.isnan(to_float32(from_float32(np.array([np.nan], np.float32), dtype), dtype)).all()


def test_bf16_rounding():
    cases = {
        0x3F808000: 0x3F80,
        0x3F818000: 0x3F82,
        0x3F808001: 0x3F81,
        0x7F7FFFFF: 0x7F80,
        0x7F800001: 0x7FC0,
    }
    values = np.array(list(cases), np.uint32).view(np.float32)
    assert from_float32(values, "BF16").tolist() == list(cases.values())
