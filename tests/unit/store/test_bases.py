"""Models that are made of others take a fraction of their size, and are as safe as any."""

from __future__ import annotations

import dataclasses
import shutil
import uuid

import ml_dtypes
import numpy as np
import pytest
from contract.backends import ObjectDriver
from fakes.damage import flipped
from fakes.families import base_tensors, encodings, tuned, write_family_model
from fakes.folders import tree_of
from fakes.ladders import write_ladder
from fakes.model_files import safetensors_bytes

from casstore import GcPolicy, Store
from casstore.backend.fsspec.backend import FsspecBackend
from casstore.codecs import Encoding
from casstore.codecs.delta.operations.gguf_blocks import BLOCKS
from casstore.digest import digest
from casstore.errors import ConfigError, IntegrityError
from casstore.format.layout import encode as encode_layout
from casstore.format.manifest import ModelManifest, encode_model
from casstore.format.rows import RANK_STEP, Kind
from casstore.format.spans import pack_spans
from casstore.machine.state import MachineState
from casstore.ops.sync import execution
from casstore.store.adding.bases import encoding
from casstore.store.adding.bases.files.base_chunks import BaseChunks
from casstore.store.adding.bases.planning.base_sketches import BaseSketches
from casstore.store.adding.bases.planning.judge import Judge
from casstore.store.adding.bases.planning.search import BaseSearch
from casstore.store.identity import create_format
from casstore.store.model_store import ModelStore

BASE = base_tensors()


@pytest.fixture
def base(tmp_path):
    return write_family_model(tmp_path / "base", BASE)


@pytest.fixture
def fine_tune(tmp_path):
    return write_family_model(tmp_path / "tuned", tuned(BASE))


def made(tmp_path, name="store", **options):
    return Store(tmp_path / name, create=True, durability="none", **options)


def assert_same(store, ref, folder, out):
    store.get(ref, out)
    assert tree_of(out) == tree_of(folder)


def share(result):
    return result.bytes_stored / result.bytes_new


def test_a_fine_tune_is_stored_as_its_difference_from_its_base(tmp_path, base, fine_tune):
    with made(tmp_path) as store, made(tmp_path, "other", delta="off") as other:
        store.add(base, ref="base")
        added = store.add(fine_tune, ref="tuned", base="base")
        alone = other.add(fine_tune, ref="tuned")
        assert encodings(store, "tuned")["delta"] > 0.95 * added.bytes_new
        assert "delta" not in encodings(other, "tuned")
        assert share(added) < 0.75 * share(alone)
        assert added.model_id == alone.model_id
        assert_same(store, "tuned", fine_tune, tmp_path / "out")
        array = store.read_tensor("tuned", "layer.1.value.weight")
        assert np.array_equal(array, tuned(BASE)["layer.1.value.weight"])
        assert store.check(read_data=True).ok


def test_a_base_need_not_be_named(tmp_path, base, fine_tune):
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(write_family_model(tmp_path / "stranger", base_tensors(9)), ref="stranger")
        added = store.add(fine_tune, ref="tuned")
        assert encodings(store, "tuned")["delta"] > 0.9 * added.bytes_new
        assert "delta" not in encodings(store, "stranger")
        assert_same(store, "tuned", fine_tune, tmp_path / "out")


def test_the_nearest_relative_is_the_base(tmp_path, base):
    near = tuned(BASE, 5, 1e-3)
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(write_family_model(tmp_path / "near", near), ref="near")
        first = store.add(write_family_model(tmp_path / "next", tuned(near, 6, 1e-6)), ref="next")
        with made(tmp_path, "other") as other:
            other.add(base, ref="base")
            second = other.add(tmp_path / "next", ref="next")
        assert first.bytes_stored < 0.6 * second.bytes_stored


def test_what_the_machine_forgot_is_read_from_the_store(tmp_path, base, fine_tune, monkeypatch):
    with made(tmp_path) as store:
        store.add(base, ref="base")
    with Store(tmp_path / "store") as store:
        store.machine = MachineState(None)
        added = store.add(fine_tune, ref="tuned", base="base")
        assert encodings(store, "tuned")["delta"] > 0.95 * added.bytes_new
        assert_same(store, "tuned", fine_tune, tmp_path / "out")


def test_a_machine_that_forgot_everything_looks_at_the_newest_models(tmp_path, base, fine_tune):
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(write_family_model(tmp_path / "stranger", base_tensors(9)), ref="stranger")
        store.machine.run(lambda state: state.execute("DELETE FROM sketches"), None, writes=True)
        added = store.add(fine_tune, ref="tuned")
        assert encodings(store, "tuned")["delta"] > 0.9 * added.bytes_new
        assert_same(store, "tuned", fine_tune, tmp_path / "out")


def test_a_model_from_before_the_machine_forgot_is_found_among_newer_ones(tmp_path, base, fine_tune):
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.machine.run(lambda state: state.execute("DELETE FROM sketches"), None, writes=True)
        store.add(write_family_model(tmp_path / "stranger", base_tensors(9)), ref="stranger")
        added = store.add(fine_tune, ref="tuned")
        assert encodings(store, "tuned")["delta"] > 0.9 * added.bytes_new


def test_the_sketches_of_a_cast_are_kept_for_those_who_name_it(tmp_path, base, fine_tune, monkeypatch):
    cast = {name: array.astype("<f2") for name, array in BASE.items()}
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(write_family_model(tmp_path / "cast", cast), ref="cast", base="base")
        monkeypatch.setattr(BaseSketches, "_read_sketch", lambda *_: pytest.fail("a sketch was read"))
        after = {name: array.astype("<f2") for name, array in tuned(BASE, 3, 1e-4).items()}
        store.add(write_family_model(tmp_path / "after", after), ref="after", base="cast")
        assert "delta" in encodings(store, "after")


def test_little_is_read_of_a_stranger_without_sketches(tmp_path, monkeypatch):
    def tensors(seed):
        rng = np.random.default_rng(seed)
        return {
            f"layer.{number}.weight": rng.normal(0, 0.1, (1024, 1024)).astype("<f4") for number in range(12)
        }

    read = []
    read_chunks = BaseChunks.read

    def counted(self, ids, *, again=False):
        found = read_chunks(self, ids, again=again)
        read.extend(found)
        return found

    with made(tmp_path) as store:
        store.add(write_family_model(tmp_path / "base", tensors(1)), ref="base")
        store.machine.run(lambda state: state.execute("DELETE FROM sketches"), None, writes=True)
        monkeypatch.setattr(BaseChunks, "read", counted)
        store.add(write_family_model(tmp_path / "other", tensors(2)), ref="other", base="base")
        assert "delta" not in encodings(store, "other")
    # Of 96 chunks: of eight tensors four, and nothing of the others.
    assert len(set(read)) <= 32


def test_what_a_delta_surely_saves_is_not_encoded_twice(tmp_path, monkeypatch):
    """Chunks of many small tensors, of which nobody knows what they take alone."""
    chance = np.random.default_rng(0)
    tensors = {f"small.{at}": chance.normal(size=(90, 90)).astype("<f4") for at in range(40)}
    moved = {name: array * np.float32(1 + 1e-5) for name, array in tensors.items()}
    alone = []
    encode = encoding.encode_frames
    monkeypatch.setattr(encoding, "encode_frames", lambda *parts: alone.append(parts) or encode(*parts))
    with made(tmp_path) as store:
        store.add(write_family_model(tmp_path / "base", tensors), ref="base")
        added = store.add(write_family_model(tmp_path / "moved", moved), ref="moved", base="base")
        assert encodings(store, "moved")["delta"] > 0.95 * added.bytes_new
        assert not alone


def test_other_names_do_not_hide_a_base(tmp_path, base):
    renamed = {f"model.{number}": array for number, array in enumerate(tuned(BASE).values())}
    with made(tmp_path) as store:
        store.add(base, ref="base")
        folder = write_family_model(tmp_path / "renamed", renamed)
        added = store.add(folder, ref="renamed", base="base")
        assert encodings(store, "renamed")["delta"] > 0.9 * added.bytes_new
        assert_same(store, "renamed", folder, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["F16", "I8"])
def test_few_of_many_tensors_of_one_shape_are_compared(tmp_path, monkeypatch, dtype):
    """Signs tell which one of a model's layers it is, whatever its name and type."""
    count = 24
    floats = [np.random.default_rng(at).normal(size=(320, 240)).astype("<f4") for at in range(count)]
    made_of = {f"matmul.{at}": array for at, array in enumerate(reversed(floats))}
    if dtype == "F16":
        made_of = {name: array.astype("<f2") for name, array in made_of.items()}
    else:
        scales = {
            f"{name}_scale": np.full(1, abs(array).max() / 127, "<f4") for name, array in made_of.items()
        }
        made_of = {
            f"{name}_quantized": np.rint(array / scales[f"{name}_scale"]).astype("i1")
            for name, array in made_of.items()
        } | scales
    compared = []
    compare = Judge.compare

    def counted(judge, tensor):
        compared.append(tensor)
        return compare(judge, tensor)

    with made(tmp_path) as store:
        store.add(
            write_family_model(tmp_path / "base", {f"layer.{at}": a for at, a in enumerate(floats)}),
            ref="base",
        )
        monkeypatch.setattr(Judge, "compare", counted)
        added = store.add(write_family_model(tmp_path / "made", made_of), ref="made", base="base")
        assert added.bytes_stored < 0.1 * added.bytes_new
        assert len(compared) <= 2 * count


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_work_grows_with_the_tensors_of_one_shape_and_not_with_their_square(tmp_path, monkeypatch, dtype):
    """Tensors of other names are looked at once for a file, and only few of them for each of its tensors."""
    count = 40
    rng = np.random.default_rng(3)
    floats = [rng.normal(size=(192, 192)).astype("<f4") for _ in range(count)]
    made_of = [array + rng.normal(0, 1e-3, array.shape).astype("<f4") for array in reversed(floats)]
    others = [rng.normal(size=(192, 192)).astype("<f4") for _ in range(count)]
    if dtype == "F16":
        made_of, others = ([array.astype("<f2") for array in some] for some in (made_of, others))
    looked_at = []
    for name in ("of", "first_of"):
        method = getattr(BaseSketches, name)

        def counted(sketches, tensor, method=method):
            looked_at.append(tensor)
            return method(sketches, tensor)

        monkeypatch.setattr(BaseSketches, name, counted)
    with made(tmp_path) as store:
        for name, arrays in (("base", floats), ("made", made_of), ("others", others)):
            tensors = {f"{name}.{at}": array for at, array in enumerate(arrays)}
            looked_at.clear()
            added = store.add(
                write_family_model(tmp_path / name, tensors),
                ref=name,
                base="base" if name != "base" else None,
            )
            assert len(looked_at) <= (12 if name == "others" else 6) * count
            if name == "made":
                assert encodings(store, name)["delta"] > 0.9 * added.bytes_new


def test_a_chain_does_not_grow(tmp_path):
    tensors = BASE
    with made(tmp_path) as store:
        for number in range(6):
            folder = write_family_model(tmp_path / f"step-{number}", tensors)
            store.add(folder, ref=f"step-{number}", base=f"step-{number - 1}" if number else None)
            # From the second on, the last model is much nearer than the first: worth a delta of a delta, but no more.
            tensors = tuned(tensors, number, 1e-6 if number else 1e-3)
        ranks = set()
        for number in range(6):
            layouts = store.model(f"step-{number}").layouts
            ids = b"".join(layout.ids for layout in layouts)
            ranks |= set(store.objects.locate(ids).rows["rank"].tolist())
            assert number == 0 or "delta" in encodings(store, f"step-{number}")
            assert_same(store, f"step-{number}", tmp_path / f"step-{number}", tmp_path / f"out-{number}")
        assert ranks == {0, 4, 8}


@pytest.mark.parametrize("named", [True, False])
def test_quants_of_a_cast_rest_on_what_the_cast_rests_on(tmp_path, named):
    whole = {name: array.astype("<f4") * np.float32(1.0001) for name, array in _floats().items()}
    write_ladder(tmp_path, whole, ["F32", "F16"])
    write_ladder(tmp_path, {name: array.astype("<f2") for name, array in whole.items()}, ["Q8_0"])
    with made(tmp_path) as store:
        store.add(tmp_path / "F32", ref="whole")
        store.add(tmp_path / "F16", ref="cast", base="whole" if named else None)
        added = store.add(tmp_path / "Q8_0", ref="quants", base="cast" if named else None)
        assert added.bytes_stored < 0.01 * added.bytes_total
        (layout,) = store.model("quants").layouts
        assert store.objects.locate(layout.ids).rows["rank"].max() == RANK_STEP
        assert_same(store, "quants", tmp_path / "Q8_0", tmp_path / "out")


def test_a_stranger_is_stored_as_if_there_was_no_base(tmp_path, base):
    stranger = write_family_model(tmp_path / "stranger", base_tensors(3))
    with made(tmp_path) as store, made(tmp_path, "other", delta="off") as other:
        store.add(base, ref="base")
        named = store.add(stranger, ref="stranger", base="base")
        alone = other.add(stranger, ref="stranger")
        assert share(named) == pytest.approx(share(alone), rel=1e-3)
        assert "delta" not in encodings(store, "stranger")


@pytest.mark.parametrize("is_relative", [True, False])
def test_small_tensors_among_strangers_are_soon_left_alone(tmp_path, monkeypatch, is_relative):
    rng = np.random.default_rng(5)
    tensors = {}
    for layer in range(40):
        tensors[f"layer.{layer:02}.0.weight"] = rng.normal(0, 1, (128, 160)).astype("<f4")
        tensors[f"layer.{layer:02}.1.bias"] = rng.normal(0, 1, 192).astype("<f4")
    strangers = {name: rng.normal(0, 1, array.shape).astype("<f4") for name, array in tensors.items()}
    write_family_model(tmp_path / "one", tensors)
    write_family_model(tmp_path / "other", tuned(tensors) if is_relative else strangers)
    found = {}
    by_name = BaseSearch.by_name

    def noted(self, span, data):
        found[span.name] = by_name(self, span, data)
        return found[span.name]

    with made(tmp_path) as store:
        store.add(tmp_path / "one", ref="one")
        monkeypatch.setattr(BaseSearch, "by_name", noted)
        store.add(tmp_path / "other", ref="other", base="one")
        assert_same(store, "other", tmp_path / "other", tmp_path / "out")
    tried = sum(relation is not None for relation in found.values())
    # Three blocks at most are looked at together.
    assert len(found) == 40
    assert tried == 40 if is_relative else tried <= 8 + 3


def test_a_base_of_another_architecture_changes_nothing(tmp_path, base):
    rng = np.random.default_rng(1)
    tensors = {
        "embeddings.weight": rng.normal(0, 1, (300, 200)).astype("<f4"),
        "layer.0.query.weight": rng.normal(0, 1, (192, 256)).astype("<f2"),
        "ids": np.arange(40_000, dtype="<i8"),
    }
    folder = write_family_model(tmp_path / "odd", tensors)
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(folder, ref="odd", base="base")
        assert "delta" not in encodings(store, "odd")
        assert_same(store, "odd", folder, tmp_path / "out")


def test_a_base_that_is_gone_for_the_collector_stays_for_what_needs_it(tmp_path, base, fine_tune):
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(fine_tune, ref="tuned", base="base")
        store.rm("models/base")
        store.gc(GcPolicy())
        assert store.check(read_data=True).ok
        assert_same(store, "tuned", fine_tune, tmp_path / "out")
        again = store.add(base, ref="base")
        assert again.bytes_new < 0.2 * again.bytes_total


def _bfloat16(array):
    return ("BF16", array.shape, array.astype(ml_dtypes.bfloat16).tobytes())


DERIVED = {
    "in half the precision": lambda array: array.astype("<f2"),
    "in bfloat16": _bfloat16,
    "transposed": lambda array: np.ascontiguousarray(array.T),
    "transposed and cast": lambda array: np.ascontiguousarray(array.T).astype("<f2"),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("how", DERIVED)
def test_what_follows_from_the_base_takes_nothing(tmp_path, base, how, named):
    derived = {f"onnx::MatMul_{name}": DERIVED[how](array) for name, array in BASE.items()}
    folder = write_family_model(tmp_path / "derived", derived)
    with made(tmp_path) as store:
        store.add(base, ref="base")
        added = store.add(folder, ref="derived", base="base" if named else None)
        large = sum(array.nbytes for array in BASE.values() if array.ndim == 2)
        assert added.bytes_stored < 0.02 * large
        assert_same(store, "derived", folder, tmp_path / "out")
        assert store.check(read_data=True).ok


def test_a_wider_copy_follows_from_a_narrow_one(tmp_path):
    narrow = {name: array.astype("<f2") for name, array in BASE.items()}
    folder = write_family_model(
        tmp_path / "wide", {name: array.astype("<f4") for name, array in narrow.items()}
    )
    with made(tmp_path) as store:
        store.add(write_family_model(tmp_path / "narrow", narrow), ref="narrow")
        added = store.add(folder, ref="wide", base="narrow")
        assert added.bytes_stored < 0.02 * added.bytes_new
        assert_same(store, "wide", folder, tmp_path / "out")


@pytest.mark.parametrize(("before", "after"), [("F16", "BF16"), ("BF16", "F16")])
@pytest.mark.parametrize("named", [True, False])
def test_one_half_precision_follows_from_the_other(tmp_path, before, after, named):
    forms = {"F16": lambda array: array.astype("<f2"), "BF16": _bfloat16}
    if before == "BF16":
        rounded = {name: array.astype(ml_dtypes.bfloat16).astype("<f4") for name, array in BASE.items()}
    else:
        rounded = {name: array.astype("<f2").astype("<f4") for name, array in BASE.items()}
    folders = [
        write_family_model(tmp_path / form, {name: forms[form](array) for name, array in rounded.items()})
        for form in (before, after)
    ]
    with made(tmp_path) as store:
        store.add(folders[0], ref="before")
        added = store.add(folders[1], ref="after", base="before" if named else None)
        assert added.bytes_stored < 0.03 * added.bytes_total
        assert_same(store, "after", folders[1], tmp_path / "out")


@pytest.mark.parametrize("is_base", [True, False])
def test_whatever_wraps_a_model_its_small_tensors_are_found_too(tmp_path, is_base):
    tensors = {
        f"layers.{n}.bias": np.random.default_rng(n).normal(0, 1, 9000).astype("<f4") for n in range(9)
    }
    tensors["layers.0.weight"] = np.random.default_rng(9).normal(0, 1, (300, 200)).astype("<f4")
    wrapped = {f"inner.net.{name}": array for name, array in tensors.items()}
    one, other = (wrapped, tensors) if is_base else (tensors, wrapped)
    folder = write_family_model(tmp_path / "other", tuned(other, 1, 1e-6))
    with made(tmp_path) as store:
        before = store.add(write_family_model(tmp_path / "one", one), ref="one")
        added = store.add(folder, ref="other", base="one")
        assert added.bytes_stored < 0.5 * before.bytes_stored
        assert_same(store, "other", folder, tmp_path / "out")


SUMS = {
    "the mean": lambda one, other, _: (one + other) / np.float32(2),
    "a weighted sum": lambda one, other, _: one * np.float32(0.3) + other * np.float32(0.7),
    "task arithmetic": lambda one, other, third: one + np.float32(0.4) * (other - third),
    "a mean of three": lambda one, other, third: (one + other + third) / np.float32(3),
    "a mean in another order": lambda one, other, third: (other + third + one) / np.float32(3),
    "two tasks": lambda one, other, third: (
        np.float32(0.4) * (other - one) + np.float32(0.4) * (third - one) + one
    ),
    "task vectors that are added first": lambda one, other, third: (
        one + np.float32(0.8) * ((other - one) + (third - one))
    ),
}


@pytest.mark.parametrize("how", SUMS)
def test_sums_of_models_take_nothing(tmp_path, base, how):
    models = [BASE, tuned(BASE, 1, 1e-3), tuned(BASE, 2, 1e-3)]
    summed = {name: SUMS[how](*(model[name] for model in models)) for name in BASE}
    folder = write_family_model(tmp_path / "sum", summed)
    with made(tmp_path) as store:
        store.add(base, ref="base")
        for number in (1, 2):
            other = write_family_model(tmp_path / f"other{number}", models[number])
            store.add(other, ref=f"other{number}", base="base")
        added = store.add(folder, ref="sum", base="base")
        assert added.bytes_stored < 0.01 * added.bytes_total
        assert_same(store, "sum", folder, tmp_path / "out")


@pytest.mark.parametrize("named", ["base", "adapter"])
def test_a_merged_adapter_takes_nothing(tmp_path, base, named):
    rng = np.random.default_rng(6)
    adapter, tensors = {}, dict(BASE)
    for name, array in BASE.items():
        if "query" in name and array.ndim == 2:
            a = rng.normal(0, 0.1, (8, array.shape[1])).astype("<f4")
            b = rng.normal(0, 0.01, (array.shape[0], 8)).astype("<f4")
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            adapter |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            tensors[name] = array + np.float32(2) * (b @ a)
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(write_family_model(tmp_path / "adapter", adapter), ref="adapter", base="base")
        folder = write_family_model(tmp_path / "merged", tensors)
        added = store.add(folder, ref="merged", base=named)
        assert added.bytes_new > 300_000
        assert added.bytes_stored < 0.02 * added.bytes_new
        assert_same(store, "merged", folder, tmp_path / "out")


def _quantised(array, kind):
    """Quantise a matrix as onnxruntime does: for the tensor, or for each column, signed or not."""
    if kind == "unsigned":
        scale = np.float32((array.max() - array.min()) / 255)
        zero = np.uint8(np.rint(-array.min() / scale))
        found = np.clip(np.rint(array / scale) + zero, 0, 255).astype(np.uint8)
        return found, np.array([scale]), np.array([zero])
    axis = 0 if kind == "by column" else None
    scale = (np.abs(array).max(axis=axis) / np.float32(127)).astype("<f4").reshape(-1)
    return np.clip(np.rint(array / scale), -127, 127).astype(np.int8), scale, None


@pytest.mark.parametrize("kind", ["signed", "unsigned", "by column"])
@pytest.mark.parametrize("known_zeros", [True, False])
def test_quantised_models_take_nothing(tmp_path, base, kind, known_zeros):
    rng = np.random.default_rng(4)
    whole = {name: rng.normal(0, 0.05, shape).astype("<f4") for name, shape in MATRICES.items()}
    tensors = {}
    for name, array in whole.items():
        found, scale, zero = _quantised(np.ascontiguousarray(array.T) if name == "layer" else array, kind)
        tensors |= {f"{name}_quantized": found, f"{name}_scale": scale}
        if zero is not None and known_zeros:
            tensors[f"{name}_zero_point"] = zero
    folder = write_family_model(tmp_path / "quantised", tensors)
    with made(tmp_path) as store:
        store.add(write_family_model(tmp_path / "whole", whole), ref="whole")
        added = store.add(folder, ref="quantised", base="whole")
        assert added.bytes_stored < 0.05 * added.bytes_total
        assert_same(store, "quantised", folder, tmp_path / "out")


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("across", [0, 1])
def test_zero_points_of_channels_that_nobody_tells_are_learnt(tmp_path, is_transposed, across):
    rng = np.random.default_rng(4)
    whole = rng.normal(0, 0.05, (400, 300)).astype("<f4") + rng.normal(0, 0.05, (400, 1)).astype("<f4")
    array = np.ascontiguousarray(whole.T) if is_transposed else whole
    low, high = array.min(axis=across, keepdims=True), array.max(axis=across, keepdims=True)
    scale = ((high - low) / 255).astype("<f4")
    found = np.clip(np.rint(array / scale) + np.rint(-low / scale), 0, 255).astype(np.uint8)
    folder = tmp_path / "quantised"
    write_family_model(folder, {"layer_quantized": found, "layer_scale": scale.ravel()})
    with made(tmp_path) as store:
        store.add(write_family_model(tmp_path / "whole", {"layer": whole}), ref="whole")
        added = store.add(folder, ref="quantised", base="whole")
        assert added.bytes_stored < 0.05 * added.bytes_total
        assert_same(store, "quantised", folder, tmp_path / "out")


@pytest.mark.parametrize("known_zeros", [True, False])
def test_floats_of_unsigned_integers_are_found_without_lineage(tmp_path, known_zeros):
    whole = np.random.default_rng(4).normal(0, 0.05, (700, 512)).astype("<f4")
    found, scale, zero = _quantised(whole, "unsigned")
    tensors = {"t_quantized": found, "t_scale": scale} | ({"t_zero_point": zero} if known_zeros else {})
    folder = write_family_model(tmp_path / "quantised", tensors)
    with made(tmp_path) as store:
        store.add(write_family_model(tmp_path / "whole", {"another name": whole}), ref="whole")
        added = store.add(folder, ref="quantised")
        assert added.bytes_stored < 0.05 * added.bytes_total
        assert_same(store, "quantised", folder, tmp_path / "out")


def test_chunks_of_a_quantised_embedding_take_the_scales_of_their_own_rows(tmp_path):
    rng = np.random.default_rng(4)
    whole = rng.normal(0, 0.05, (20_000, 96)).astype("<f4")
    scale = np.abs(whole).max(axis=1, keepdims=True) / np.float32(127)
    quantised = {"table_q": np.rint(whole / scale).astype(np.int8), "table_scale": scale}
    folder = write_family_model(tmp_path / "quantised", quantised)
    with made(tmp_path) as store:
        store.add(write_family_model(tmp_path / "whole", {"table": whole}), ref="whole")
        added = store.add(folder, ref="quantised", base="whole")
        assert added.bytes_stored < 2.2 * scale.nbytes
        assert_same(store, "quantised", folder, tmp_path / "out")


def _floats(names=("attn_q", "ffn_up")):
    rng = np.random.default_rng(4)
    return {f"blk.0.{name}.weight": rng.normal(0, 0.05, (700, 512)).astype("<f2") for name in names}


@pytest.mark.parametrize(("kind", "left"), [("Q8_0", 0.01), ("Q4_0", 0.01), ("Q4_K", 0.13), ("Q6_K", 0.13)])
def test_a_ladder_of_quants_follows_from_its_floats(tmp_path, kind, left):
    write_ladder(tmp_path, _floats(), ["F16", kind])
    with made(tmp_path) as store:
        store.add(tmp_path / "F16", ref="whole")
        added = store.add(tmp_path / kind, ref="blocks", base="whole")
        assert added.bytes_stored < left * added.bytes_total
        assert_same(store, "blocks", tmp_path / kind, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "forgotten", "renamed"),
    [
        *((kind, False, True) for kind in ("Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K", "Q2_K", "IQ4_NL")),
        ("Q8_0", True, False),
        ("Q4_K", False, False),
    ],
)
def test_floats_of_quants_are_found_without_lineage(tmp_path, kind, forgotten, renamed):
    write_ladder(tmp_path, _floats(), ["F16"])
    write_ladder(tmp_path / "other", _floats(("ffn_gate", "attn_k")) if renamed else _floats(), [kind])
    folder = tmp_path / "other" / kind
    with made(tmp_path) as store:
        store.add(write_family_model(tmp_path / "stranger", base_tensors(9)), ref="stranger")
        store.add(tmp_path / "F16", ref="whole")
        if forgotten:
            store.machine.run(lambda state: state.execute("DELETE FROM sketches"), None, writes=True)
        added = store.add(folder, ref="blocks")
        block = BLOCKS[kind]
        left = 0.01 if block.has_rule else 1.15 * block.scale_bytes / block.size
        assert added.bytes_stored < left * added.bytes_total
        assert_same(store, "blocks", folder, tmp_path / "out")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_quants_of_rounded_floats_follow_from_those_that_are_not_rounded(tmp_path, kind):
    whole = {name: array.astype("<f4") * np.float32(1.0001) for name, array in _floats().items()}
    write_ladder(tmp_path, {name: array.astype("<f2") for name, array in whole.items()}, [kind])
    names = {"attn_q": "self_attn.q_proj", "ffn_up": "mlp.up_proj"}
    source = {f"model.layers.0.{names[name.split('.')[2]]}.weight": array for name, array in whole.items()}
    with made(tmp_path) as store:
        store.add(write_family_model(tmp_path / "whole", source), ref="whole")
        added = store.add(tmp_path / kind, ref="blocks")
        assert added.bytes_stored < {"Q8_0": 0.01, "Q4_K": 0.13}[kind] * added.bytes_total
        assert_same(store, "blocks", tmp_path / kind, tmp_path / "out")


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
@pytest.mark.parametrize("head", [64, 80])
@pytest.mark.parametrize("is_back", [False, True])
def test_queries_and_keys_in_the_order_of_another_program_are_found(tmp_path, kind, head, is_back):
    rng = np.random.default_rng(5)
    before = {
        f"model.layers.0.self_attn.{part}_proj.weight": rng.normal(0, 0.05, (rows, 256)).astype("<f2")
        for part, rows in (("v", 640), ("q", 1280), ("k", 640))
    }
    after = {}
    for name, array in before.items():
        part = name.split(".")[-2][0]
        split = array.reshape(-1, 2, head // 2, 256) if not is_back else array.reshape(-1, head // 2, 2, 256)
        moved = array if part == "v" else split.swapaxes(1, 2).reshape(array.shape)
        after[f"blk.0.attn_{part}.weight"] = np.ascontiguousarray(moved)
    write_ladder(tmp_path, after, [kind])
    with made(tmp_path) as store:
        store.add(write_family_model(tmp_path / "before", before), ref="before")
        added = store.add(tmp_path / kind, ref="after")
        assert added.bytes_stored < 0.04 * added.bytes_total
        assert_same(store, "after", tmp_path / kind, tmp_path / "out")


def test_quants_of_a_model_that_was_trained_further_follow_from_its_quants(tmp_path):
    write_ladder(tmp_path, _floats(), ["Q8_0"])
    write_ladder(tmp_path / "tuned", tuned(_floats(), 1, 1e-4), ["Q8_0"])
    folder = tmp_path / "tuned" / "Q8_0"
    with made(tmp_path) as store:
        alone = store.add(tmp_path / "Q8_0", ref="quants")
        added = store.add(folder, ref="tuned")
        assert added.bytes_stored < 0.3 * alone.bytes_stored
        assert_same(store, "tuned", folder, tmp_path / "out")


def test_floats_that_are_said_to_come_from_quants_are_stored_alone(tmp_path):
    write_ladder(tmp_path, _floats(), ["F16", "Q8_0"])
    with made(tmp_path) as store:
        store.add(tmp_path / "Q8_0", ref="quants")
        store.add(tmp_path / "F16", ref="whole", base="quants")
        assert "delta" not in encodings(store, "whole")
        assert_same(store, "whole", tmp_path / "F16", tmp_path / "out")


MATRICES = {"embeddings": (500, 256), "layer": (400, 200)}


def _damage_packs(folder):
    for path in (folder / "packs").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            data = path.read_bytes()
            for at in range(5000, len(data) - 5000, 20_000):
                data = flipped(data, at, 0x40)
            path.write_bytes(data)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_damaged_base_is_no_base(tmp_path, base, fine_tune, forgotten):
    with made(tmp_path) as store:
        store.add(base, ref="base")
    _damage_packs(tmp_path / "store")
    with Store(tmp_path / "store") as store:
        if forgotten:
            store.machine = MachineState(None)
        store.add(fine_tune, ref="tuned", base="base")
        assert_same(store, "tuned", fine_tune, tmp_path / "out")


def test_adding_again_heals_what_lost_its_base(tmp_path, base, fine_tune):
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(fine_tune, ref="tuned", base="base")
        first = store.objects.packs_of(store.objects.locate(store.model("base").layouts[1].ids))
        for pack in first:
            (tmp_path / "store/packs" / pack.hex()[:2] / pack.hex()).unlink()
    with Store(tmp_path / "store") as store:
        with pytest.raises(IntegrityError):
            store.get("tuned", tmp_path / "lost")
        store.add(fine_tune, ref="tuned")
        assert_same(store, "tuned", fine_tune, tmp_path / "out")


def test_a_copy_of_a_store_gets_no_base_that_it_did_not_ask_for(tmp_path, base, fine_tune):
    with made(tmp_path) as store, made(tmp_path, "copy") as copy, made(tmp_path, "second") as second:
        store.add(base, ref="base")
        added = store.add(fine_tune, ref="tuned", base="base")
        store.push(copy, "tuned")
        assert "delta" not in encodings(copy, "tuned")
        second.add(base, ref="base")
        store.push(second, "tuned")
        assert encodings(second, "tuned")["delta"] > 0.95 * added.bytes_new
        for other in (copy, second):
            assert other.check(read_data=True).ok
            assert other.show("tuned").model_id == added.model_id
            assert_same(other, "tuned", fine_tune, tmp_path / "out")
            shutil.rmtree(tmp_path / "out")


def test_a_copy_that_asks_for_the_bases_gets_the_deltas(tmp_path, base, fine_tune):
    with made(tmp_path) as store, made(tmp_path, "copy") as copy:
        store.add(base, ref="base")
        added = store.add(fine_tune, ref="tuned", base="base")
        copy.pull(store, "tuned", with_bases=True)
        assert encodings(copy, "tuned")["delta"] > 0.95 * added.bytes_new
        assert list(copy.refs()) == ["models/tuned"]
        assert copy.check(read_data=True).ok
        copy.gc()
        assert_same(copy, "tuned", fine_tune, tmp_path / "out")


def test_models_are_copied_after_those_that_they_were_made_from(tmp_path, base, fine_tune, monkeypatch):
    monkeypatch.setattr(execution, "GROUP_REFS", 1)
    with made(tmp_path) as store, made(tmp_path, "copy") as copy:
        store.add(base, ref="zz-base")
        store.add(fine_tune, ref="tuned", base="zz-base")
        store.push(copy)
        assert "delta" in encodings(copy, "tuned")


def test_people_see_what_deltas_save_and_against_which_model(tmp_path, base, fine_tune):
    stranger = write_family_model(tmp_path / "stranger", base_tensors(3))
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(stranger, ref="stranger")
        store.add(fine_tune, ref="tuned", base="base")
        alone = store.show("base").encodings
        deltas = store.show("tuned").deltas
        assert [model.ref for model in deltas.bases] == ["models/base"]
        assert deltas.unknown == 0
        without = sum(share.bytes_stored for share in alone)
        assert deltas.bytes_saved == pytest.approx(without - deltas.bytes_stored, rel=0.1)
        assert store.show("base").deltas is None
        assert store.stats().bytes_saved_by_deltas == pytest.approx(deltas.bytes_saved, rel=0.1)
        rows = {row.name: row for row in store.du().rows}
        assert rows["models/base"].bytes_bases == rows["models/stranger"].bytes_bases == 0
        assert rows["models/base"].bytes_saved == 0
        assert rows["models/base"].rests_on == ()
        assert rows["models/tuned"].bytes_saved == pytest.approx(deltas.bytes_saved, rel=0.1)
        assert rows["models/tuned"].rests_on == ("models/base",)
        assert 0.9 * without < rows["models/tuned"].bytes_bases < 1.1 * without
        assert rows["models/tuned"].bytes_stored > rows["models/tuned"].bytes_bases
        copy = store.add(base, ref="a-copy")
        assert copy.model_id == deltas.bases[0].model_id
        store.tag("best", "base")
        assert {row.name: row for row in store.du().rows}["models/tuned"].rests_on == ("models/base",)
        store.rm("models/a-copy")
        store.rm("tags/best")
        store.rm("models/base")
        assert store.show("tuned").deltas.unknown == deltas.bases[0].chunks
        assert {row.name: row for row in store.du().rows}["models/tuned"].rests_on == ()


def test_without_lineage_the_model_that_was_there_before_is_named(tmp_path, base, fine_tune):
    """A newer model that has the same chunks is not what the deltas were made against."""
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(fine_tune, ref="tuned")
        more = shutil.copytree(base, tmp_path / "more")
        (more / "notes.txt").write_text("the base once more")
        store.add(more, ref="more")
        assert [model.ref for model in store.show("tuned").deltas.bases] == ["models/base"]


def test_deltas_can_be_turned_off_and_no_other_way(tmp_path, base, fine_tune):
    with pytest.raises(ConfigError, match="balanced"):
        made(tmp_path, delta="some")
    with made(tmp_path) as store:
        store.add(base, ref="base")
        store.add(fine_tune, ref="tuned", base="base", delta="off")
        assert "delta" not in encodings(store, "tuned")
        with pytest.raises(ConfigError, match="balanced"):
            store.add(fine_tune, ref="tuned", delta="much")


def test_a_wrong_sketch_costs_a_delta_and_nothing_else(tmp_path, base):
    stranger = write_family_model(tmp_path / "stranger", base_tensors(3))
    with made(tmp_path) as store:
        store.add(base, ref="base")
        layout = store.model("base").layout_ids[1]
        lie = store.add(stranger, ref="lie", delta="off")
        assert lie.bytes_new
        with made(tmp_path, "other") as other:
            other.add(stranger, ref="stranger")
            other_layout = other.model("stranger").layout_ids[1]
            rows = other.machine.run(
                lambda state: state.execute(
                    "SELECT span, elements, signature, data FROM sketches WHERE layout = ?", (other_layout,)
                ).fetchall(),
                [],
            )
        assert rows
        store.machine.run(
            lambda state: state.executemany(
                "INSERT OR REPLACE INTO sketches VALUES (?, ?, ?, ?, ?)", [(layout, *row) for row in rows]
            ),
            None,
            writes=True,
        )
        folder = write_family_model(tmp_path / "near", tuned(base_tensors(3)))
        added = store.add(folder, ref="near", base="base")
        assert added.bytes_stored < 0.9 * added.bytes_new
        assert_same(store, "near", folder, tmp_path / "out")


LIES = {
    "half of it": lambda span, _: dataclasses.replace(span, end=(span.begin + span.end) // 2),
    "at the end": lambda span, size: dataclasses.replace(span, begin=size - 70_000, end=size),
    "of another type": lambda span, _: dataclasses.replace(span, dtype="F64"),
    "of no known type": lambda span, _: dataclasses.replace(span, dtype="F9"),
    "huge": lambda span, _: dataclasses.replace(span, shape=(1 << 40,)),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_layout_says_of_a_base_may_be_wrong(tmp_path, base, fine_tune, lie):
    """Whoever may write to a store may say that a file has tensors which it cannot have."""
    with made(tmp_path) as store:
        store.add(base, ref="base")
        model = store.model("base")
        layout = model.layouts[1]
        spans = [LIES[lie](span, layout.size) for span in layout.spans]
        wrong = encode_layout(dataclasses.replace(layout, spans=pack_spans(spans)))
        manifest = encode_model(
            ModelManifest(bytes.fromhex(model.model_id), (model.layout_ids[0], digest(wrong)), ())
        )
        with store.publication() as publication:
            publication.write_objects(Kind.LAYOUT, {digest(wrong): wrong})
            publication.write_objects(Kind.MANIFEST, {digest(manifest): manifest})
            publication.commit(
                lambda packs: store.draft_copy(
                    dataclasses.replace(model.record, name="models/wrong", manifest=digest(manifest)), packs
                ),
                lambda _: iter(()),
            )
        store.add(fine_tune, ref="tuned", base="wrong")
        assert_same(store, "tuned", fine_tune, tmp_path / "out")


def test_files_of_two_formats_in_one_model(tmp_path, base):
    tensors = tuned(BASE)
    folder = write_family_model(tmp_path / "two", tensors)
    np.savez(folder / "extra.npz", **{name.replace(".", "_"): array for name, array in tensors.items()})
    (folder / "copy.safetensors").write_bytes(safetensors_bytes(tensors))
    with made(tmp_path) as store:
        store.add(base, ref="base")
        added = store.add(folder, ref="two", base="base")
        assert added.bytes_stored < 0.3 * added.bytes_total
        assert_same(store, "two", folder, tmp_path / "out")


def test_a_store_far_away_keeps_deltas_too(tmp_path, base, fine_tune):
    name = f"{uuid.uuid4().hex}/store"
    sketches = tmp_path / "state.sqlite"

    def opened():
        backend = FsspecBackend(f"objects://{name}", create=True, driver=ObjectDriver)
        create_format(backend)
        return ModelStore(backend, store_id=bytes(16), machine=MachineState(str(sketches)))

    with opened() as store:
        store.add(base, ref="base")
    with opened() as store:
        store.add(fine_tune, ref="tuned")
        located = store.objects.find(
            [chunk for layout in store.model("tuned").layouts for chunk in layout.chunk_ids()]
        )
        assert Encoding.DELTA in located.rows["encoding"]
        store.get("tuned", tmp_path / "out")
        assert tree_of(tmp_path / "out") == tree_of(fine_tune)
    with opened() as store:
        array = store.read_tensor("tuned", "layer.0.query.weight")
        assert np.array_equal(array, tuned(BASE)["layer.0.query.weight"])
