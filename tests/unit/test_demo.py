"""The demo on real weights, and on models that allow few variants."""

from __future__ import annotations

import json
import os
import zipfile

import numpy as np
import pytest
from fakes.model_files import npy_bytes, safetensors_bytes
from typer.testing import CliRunner

from casstore import tensors
from casstore.cli import app
from casstore.errors import ConfigError, IntegrityError
from casstore.ops import demo as demo_module
from casstore.ops.check import check
from casstore.ops.demo import run_demo
from casstore.ops.variants import plan_variants
from casstore.ops.weights import FLOAT_TYPES, Output, Tensor, from_float32, to_float32, write_torch_zip
from casstore.store.store import Store


class FileBytes:
    def __init__(self, path):
        self._data = path.read_bytes()
        self.size = len(self._data)

    def read(self, offset, length):
        return self._data[offset : offset + length]

    def tensors(self):
        return {
            span.name: tensors.as_array(self._data[span.begin : span.end], span.dtype, span.shape)
            for span in tensors.find_spans(self)
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
    with Store.open(f"memory://{tmp_path.name}", create=True) as store:
        store.add(folder, ref="models/m")
        plan = plan_variants(store.manifest("models/m"), str(folder))
    made = {}
    for variant in plan.variants:
        made[variant.name] = tmp_path / "variants" / variant.name
        made[variant.name].mkdir(parents=True)
        variant.write(str(made[variant.name]))
    return made, {item.name for item in plan.skipped}


def test_on_the_real_weights(own_home):
    result = CliRunner().invoke(app, ["demo", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    steps = {step["name"]: step for step in report["steps"]}
    assert list(steps) == ["original", "again", "bf16", "fp32", "retrained", "sharded", "torch"]
    assert [item["name"] for item in report["skipped"]] == ["fp16"]
    size = steps["original"]["bytes_total"]
    assert size > 16_000_000
    assert steps["again"]["bytes_dedup"] == size
    assert steps["again"]["chunks_new"] == 0
    assert steps["torch"]["bytes_dedup"] > 0.99 * size
    assert steps["retrained"]["bytes_dedup"] > 0.8 * size
    assert steps["fp32"]["bytes_stored"] < 0.6 * steps["fp32"]["bytes_total"]
    for step in steps.values():
        saved = sum(item["bytes_plain"] - item["bytes_stored"] for item in step["encodings"])
        rest = step["bytes_total"] - step["bytes_dedup"] - saved
        assert rest + step["bytes_overhead"] == step["bytes_stored"]
        assert 0 <= step["bytes_overhead"] < 64 << 10
    assert steps["bf16"]["base"] == steps["original"]["ref"]
    assert report["checkout"]["ref"] == steps["retrained"]["ref"]
    assert report["identical"] is True
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
    assert "Skipped fp32: the model is fp32 already." in lines
    assert lines[-1].startswith("Proven: ")
    assert not (tmp_path / "never").exists()


def test_a_store_that_stays(two_tensors, tmp_path):
    place = tmp_path / "store"
    first = run_demo(str(two_tensors), store=str(place))
    assert first.temporary is False
    with Store.open(place) as store:
        assert set(store.refs()) == {step.ref for step in first.steps}
        record = store.refs()["models/demo/model/retrained"]
        assert record.base.hex() == first.steps[0].model_id
        assert check(store, read_data=True).ok
    again = run_demo(str(two_tensors), store=str(place))
    assert [step.model_id for step in again.steps] == [step.model_id for step in first.steps]
    assert again.bytes_dedup == again.bytes_total


def test_variants_hold_the_right_numbers(two_tensors, tmp_path):
    made, skipped = make_variants(two_tensors, tmp_path)
    assert skipped == {"fp32"}
    source = FileBytes(two_tensors / "model.safetensors").tensors()
    half = FileBytes(made["fp16"] / "model.safetensors").tensors()
    assert np.array_equal(half["first"], source["first"].astype("<f2"))
    assert np.array_equal(half["steps"], source["steps"])
    brain = FileBytes(made["bf16"] / "model.safetensors").tensors()
    widened = (brain["second"].astype("<u4") << 16).view("<f4")
    assert np.allclose(widened, source["second"], rtol=2**-8)
    retrained = FileBytes(made["retrained"] / "model.safetensors").tensors()
    changed = np.flatnonzero((retrained["first"] != source["first"]).any(axis=1))
    assert (changed.min(), changed.max(), len(changed)) == (409, 511, 103)
    assert np.array_equal(retrained["second"], source["second"])
    torch_zip = FileBytes(made["torch"] / "pytorch_model.bin").tensors()
    assert {name: array.tobytes() for name, array in torch_zip.items()} == {
        name: array.tobytes() for name, array in source.items()
    }
    index = json.loads((made["sharded"] / "model.safetensors.index.json").read_text())
    shards = {name: FileBytes(made["sharded"] / name).tensors() for name in set(index["weight_map"].values())}
    assert len(shards) == 2
    for name, array in source.items():
        assert np.array_equal(shards[index["weight_map"][name]][name], array)
    assert all((folder / "config.json").read_text() == "{}" for folder in made.values())


def test_one_tensor_is_split_by_rows(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    values = np.arange(35, dtype="<f2").reshape(7, 5)
    (folder / "array.npy").write_bytes(npy_bytes(values))
    made, _ = make_variants(folder, tmp_path)
    parts = [
        FileBytes(made["sharded"] / f"model-0000{number}-of-00002.safetensors").tensors() for number in (1, 2)
    ]
    (first,), (second,) = (list(part.values()) for part in parts)
    assert np.array_equal(np.concatenate([first, second]), values)


def test_models_without_tensors_are_changed_in_place(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "blob.bin").write_bytes(bytes(range(256)) * 1000)
    (folder / "small.txt").write_text("text")
    report = run_demo(str(folder))
    assert [step.name for step in report.steps] == ["original", "again", "changed"]
    assert len({step.model_id for step in report.steps}) == 2
    assert {item.reason for item in report.skipped} == {"no floating-point tensors were found"}
    assert len(report.skipped) == 6


def test_types_that_safetensors_lacks(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.safetensors").write_bytes(
        safetensors_bytes({"w": ("F32", (2,), b"\0" * 8), "q": ("F6_E2M3", (4,), b"abc")})
    )
    report = run_demo(str(folder))
    assert [step.name for step in report.steps] == ["original", "again", "changed"]
    assert "F6_E2M3" in report.skipped[0].reason


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.bin").write_bytes(b"")
    assert run_demo(str(tmp_path / "empty.bin")).bytes_total == 0


def test_a_missing_package_and_a_missing_path(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'casstore\[demo\]'"):
        run_demo()
    with pytest.raises(ConfigError, match="does not exist"):
        run_demo(str(tmp_path / "none"))


def test_a_difference_is_an_error(two_tensors, monkeypatch):
    original = Store.checkout

    def damage(self, ref, dest, **options):
        model = original(self, ref, dest, **options)
        path = os.path.join(dest, "config.json")
        os.chmod(path, 0o600)
        with open(path, "w", encoding="utf-8") as file:
            file.write("[]")
        return model

    monkeypatch.setattr(Store, "checkout", damage)
    with pytest.raises(IntegrityError, match="differs"):
        run_demo(str(two_tensors))


def test_torch_zip_entries_are_aligned(tmp_path, two_tensors):
    made, _ = make_variants(two_tensors, tmp_path)
    path = made["torch"] / "pytorch_model.bin"
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            name = int.from_bytes(data[info.header_offset + 26 :][:2], "little")
            extra = int.from_bytes(data[info.header_offset + 28 :][:2], "little")
            assert (info.header_offset + 30 + name + extra) % 64 == 0


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
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


def test_a_storage_of_every_type_is_recognised(tmp_path):
    data = tmp_path / "data"
    data.write_bytes(bytes(64))
    outputs = [
        Output(Tensor(f"t.{dtype}", dtype, (2, 1), str(data), 0, 2 * width), dtype)
        for dtype, width in {"F64": 8, "BF16": 2, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}.items()
    ]
    write_torch_zip(str(tmp_path / "m.pt"), outputs)
    spans = tensors.find_spans(FileBytes(tmp_path / "m.pt"))
    assert {span.name: (span.dtype, span.shape) for span in spans} == {
        output.tensor.name: (output.dtype, (2, 1)) for output in outputs
    }
