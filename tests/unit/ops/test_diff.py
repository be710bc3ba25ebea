"""What differs between two models: kinds of changes and their figures, against numpy, in files of every format."""

from __future__ import annotations

import itertools
import json

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from fakes.counts import EXAMPLES
from fakes.far_stores import far_store, of_packs
from fakes.model_files import gguf_bytes, onnx_bytes, safetensors_bytes, torch_zip_bytes
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from casstore import ConfigError, RefNotFound, Store
from casstore.codecs.delta.operations.gguf_blocks import quantise_blocks
from casstore.format.layout import Layout, Span
from casstore.ops.diff import compare_models, measuring, outline
from casstore.ops.diff.reading import TensorReader
from casstore.ops.diff.sides import Side, SideFile
from casstore.ops.diff.values import Difference, difference, numbers
from casstore.store.adding.bases.tensors.base_tensors import BaseTensor

LAYERS = 2
PARTS = ("self_attn.q_proj", "self_attn.k_proj")


def model():
    """A small model in the names of transformers, with square and other matrices, and small tensors between."""
    rng = np.random.default_rng(5)
    tensors = {"model.embed_tokens.weight": rng.normal(0, 0.02, (192, 160))}
    for layer in range(LAYERS):
        for part, rows in zip(PARTS, (160, 128), strict=True):
            tensors[f"model.layers.{layer}.{part}.weight"] = rng.normal(0, 0.03, (rows, 160))
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = rng.normal(1, 0.1, (160,))
    return {name: np.ascontiguousarray(array, "<f4") for name, array in tensors.items()}


BASE = model()
MATRICES = [name for name, array in BASE.items() if array.ndim == 2]


def bf16(array):
    return "BF16", array.shape, array.astype(ml_dtypes.bfloat16).tobytes()


def fp8(array):
    return "F8_E4M3", array.shape, array.astype(ml_dtypes.float8_e4m3fn).tobytes()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store to which `put` adds models, the first of them `base`."""
    place = tmp_path_factory.mktemp("diff")
    with Store(place / "store", create=True, durability="none") as opened:
        numbered = itertools.count()

        def put(name, files, **options):
            folder = place / str(next(numbered))
            folder.mkdir()
            for path, data in files.items():
                (folder / path).write_bytes(data)
            opened.add(folder, ref=name, **options)
            return name

        opened.put = put
        put("base", {"model.safetensors": safetensors_bytes(BASE), "config.json": b"{}", "a.txt": b"a"})
        yield opened


def changes(found):
    return {tensor.name: tensor.change for tensor in found.tensors}


def by_name(found):
    return {tensor.name: tensor for tensor in found.tensors}


def check_figures(tensor, one, other):
    """Compare with what numpy says, in double precision."""
    gaps = np.abs(np.asarray(one, "<f8") - np.asarray(other, "<f8"))
    assert tensor.differing == np.count_nonzero(gaps)
    assert tensor.max_abs == pytest.approx(gaps.max(), rel=1e-6)
    assert tensor.mean_abs == pytest.approx(gaps.mean(), rel=1e-6)
    assert tensor.not_finite == 0


def test_a_fine_tune(store):
    rng = np.random.default_rng(1)
    frozen = "model.embed_tokens.weight"
    tuned = {
        name: array if name == frozen else (array + rng.normal(0, 1e-3, array.shape)).astype("<f4")
        for name, array in BASE.items()
    }
    store.put(
        "tuned",
        {"model.safetensors": safetensors_bytes(tuned), "config.json": b"{ }", "b.txt": b"b"},
        base="base",
    )
    found = store.diff("base", "tuned")
    assert (found.a, found.b) == ("models/base", "models/tuned")
    assert found.model_id_b == store.resolve("tuned").model_id
    assert list(changes(found)) == list(BASE)
    for tensor in found.tensors:
        assert tensor.change == ("same" if tensor.name == frozen else "changed")
        assert not tensor.renamed
        check_figures(tensor, BASE[tensor.name], tuned[tensor.name])
    assert found.counts == {"changed": len(BASE) - 1, "same": 1}
    assert {file.path: file.change for file in found.files} == {
        "a.txt": "removed",
        "b.txt": "added",
        "config.json": "changed",
        "model.safetensors": "changed",
    }
    assert 0 <= found.shared_bytes - BASE[frozen].nbytes < 2000, "and the header"
    with pytest.raises(AttributeError):
        found.tensors[0].change = "same"


@pytest.mark.parametrize(
    ("dtype", "cast", "back"),
    [
        ("F16", lambda array: array.astype("<f2"), lambda array: array.astype("<f2")),
        ("BF16", bf16, lambda array: array.astype(ml_dtypes.bfloat16)),
        ("F8_E4M3", fp8, lambda array: array.astype(ml_dtypes.float8_e4m3fn)),
        ("F64", lambda array: array.astype("<f8"), lambda array: array),
    ],
)
def test_casts(store, dtype, cast, back):
    store.put(dtype, {"model.safetensors": safetensors_bytes({name: cast(BASE[name]) for name in BASE})})
    for tensor in store.diff("base", dtype).tensors:
        assert (tensor.change, tensor.unexplained, tensor.b.dtype) == ("cast", 0, dtype)
        check_figures(tensor, BASE[tensor.name], back(BASE[tensor.name]).astype("<f4"))


def test_of_another_type_but_no_cast(store):
    other = {name: (array * np.float32(1.01)).astype("<f2") for name, array in BASE.items()}
    store.put("scaled", {"model.safetensors": safetensors_bytes(other)})
    for tensor in store.diff("base", "scaled").tensors:
        assert (tensor.change, tensor.unexplained) == ("changed", None)
        check_figures(tensor, BASE[tensor.name], other[tensor.name])


def test_a_torch_file_and_shards_are_the_same(store):
    names = list(BASE)
    shards = {
        f"model-{at}.safetensors": safetensors_bytes({name: BASE[name] for name in some})
        for at, some in enumerate((names[:3], names[3:]))
    }
    store.put("shards", shards)
    store.put("torch", {"pytorch_model.bin": torch_zip_bytes(BASE)})
    for a, b in (("base", "shards"), ("shards", "torch"), ("torch", "base")):
        found = store.diff(a, b)
        assert found.counts == {"same": len(BASE)}
        assert all(tensor.differing == 0 and tensor.max_abs == 0 for tensor in found.tensors)


def test_an_onnx_export_with_transposed_matrices_of_other_names(store):
    """Square matrices under other names, others under their own, and one cast besides."""
    tensors, was = {}, {}
    for at, (name, array) in enumerate(BASE.items()):
        if "layers" in name and array.ndim == 2:
            other = f"onnx::MatMul_{at}" if "q_proj" in name else name
            turned = np.ascontiguousarray(array.T)
            tensors[other], was[other] = (turned.astype("<f2") if "k_proj" in name else turned), name
        else:
            tensors[name] = array
    store.put("onnx", {"model.onnx": onnx_bytes(tensors)})
    found = by_name(store.diff("base", "onnx"))
    assert list(found) == list(tensors)
    for name, tensor in found.items():
        assert tensor.change == ("transposed" if name in was else "same")
        assert tensor.a.name == was.get(name, name)
        if name in was:
            assert tensor.unexplained == 0
            check_figures(tensor, BASE[was[name]].T, tensors[name])
    back = by_name(store.diff("onnx", "base"))
    exact = {tensor.name: not tensor.unexplained for tensor in back.values() if tensor.change == "transposed"}
    assert exact == {name: "q_proj" in name for name in was.values()}, "what was rounded does not come back"


def test_a_square_matrix_that_is_transposed_under_its_own_name(store):
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = BASE | {name: np.ascontiguousarray(BASE[name].T)}
    store.put("conv1d", {"model.safetensors": safetensors_bytes(tensors)})
    assert changes(store.diff("base", "conv1d")) == dict.fromkeys(BASE, "same") | {name: "transposed"}


@pytest.mark.parametrize("zeros", [False, True])
def test_int8_with_scales_per_channel(store, zeros):
    tensors, steps = {}, {}
    for name, array in BASE.items():
        if array.ndim != 2:
            tensors[name] = array
        elif zeros:
            low, high = array.min(), array.max()
            scale = np.float32((high - low) / 255)
            zero = np.uint8(np.rint(-low / scale))
            tensors[name + "_quantized"] = np.clip(np.rint(array / scale) + zero, 0, 255).astype(np.uint8)
            tensors[name + "_zero_point"] = np.array(zero)
            tensors[name + "_scale"] = np.array(scale, "<f4")
            steps[name] = (tensors[name + "_quantized"].astype("<f4") - zero) * scale
        else:
            scales = (np.abs(array).max(axis=1) / np.float32(127)).astype("<f4")
            quants = np.clip(np.rint(array / scales[:, None]), -127, 127).astype(np.int8)
            tensors[name + "_quantized"], tensors[name + "_scale"] = quants, scales
            steps[name] = quants.astype("<f4") * scales[:, None]
    ref = store.put(f"int8-{zeros}", {"model.onnx": onnx_bytes(tensors)})
    found = by_name(store.diff("base", ref))
    for name, values in steps.items():
        tensor = found[name + "_quantized"]
        assert (tensor.change, tensor.unexplained, tensor.a.name) == ("quantised", 0, name)
        check_figures(tensor, BASE[name], values)
        assert found[name + "_scale"].change == "added"
    assert not any(tensor.change == "removed" for tensor in found.values())


@pytest.mark.parametrize("turned", [False, True])
def test_uint8_of_which_nothing_tells_the_zero_points(store, turned):
    """Such as onnxruntime's, one for each column, which are no raw tensors; under names that tell nothing."""
    tensors, was, values = {}, {}, {}
    for at, name in enumerate(MATRICES):
        array = np.ascontiguousarray(BASE[name].T) if turned else BASE[name]
        low, high = array.min(axis=0), array.max(axis=0)
        scales = ((high - low) / np.float32(255)).astype("<f4")
        zeros = np.rint(-low / scales).astype("<f4")
        quants = np.clip(np.rint(array / scales) + zeros, 0, 255).astype(np.uint8)
        tensors[f"m{at}_quantized"], tensors[f"m{at}_scale"] = quants, scales
        was[f"m{at}_quantized"] = name
        values[f"m{at}_quantized"] = array, (quants.astype("<f4") - zeros) * scales
    ref = store.put(f"uint8-{turned}", {"model.onnx": onnx_bytes(tensors)})
    found = by_name(store.diff("base", ref))
    for other, name in was.items():
        tensor = found[other]
        assert (tensor.change, tensor.unexplained, tensor.a.name) == ("quantised", 0, name)
        check_figures(tensor, *values[other])


def test_integers_without_scales_have_no_values(store):
    name = MATRICES[1]
    quants = np.clip(np.rint(BASE[name] / 0.001), -127, 127).astype(np.int8)
    store.put("bare", {"model.safetensors": safetensors_bytes({name: quants})})
    tensor = by_name(store.diff("base", "bare"))[name]
    assert (tensor.change, tensor.differing, tensor.max_abs) == ("changed", None, None)


GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    **{
        f"model.layers.{layer}.{part}.weight": f"blk.{layer}.{short}.weight"
        for layer in range(LAYERS)
        for part, short in (
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("input_layernorm", "attn_norm"),
        )
    },
}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_blocks(store, kind):
    tensors = {
        GGUF_NAMES[name]: (kind, array.shape, quantise_blocks(kind, array.reshape(-1, 32), None).tobytes())
        if name in MATRICES
        else array
        for name, array in BASE.items()
    }
    store.put(kind, {"model.gguf": gguf_bytes(tensors)})
    found = by_name(store.diff("base", kind))
    assert list(found) == list(tensors)
    for name in BASE:
        tensor = found[GGUF_NAMES[name]]
        assert tensor.a.name == name
        if name not in MATRICES:
            assert tensor.change == "same"
            continue
        assert (tensor.change, tensor.unexplained) == ("quantised", 0)
        values = np.array(decoded(kind, tensors[tensor.name][2]), "<f4").reshape(BASE[name].shape)
        check_figures(tensor, BASE[name], values)


def decoded(kind, data):
    """Decode blocks number by number, as ggml-quants.c does."""
    sizes = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24}
    found = []
    for at in range(0, len(data), sizes[kind]):
        block = data[at : at + sizes[kind]]
        scale = np.frombuffer(block[:2], "<f2")[0].astype("<f4")
        if kind == "Q8_0":
            found += [np.float32(np.int8(byte - 256 if byte > 127 else byte)) * scale for byte in block[2:]]
            continue
        least = np.frombuffer(block[2:4], "<f2")[0].astype("<f4") if kind.endswith("1") else None
        rest = block[4 if kind.endswith("1") else 2 :]
        high = int.from_bytes(rest[:4], "little") if kind.startswith("Q5") else 0
        nibbles = rest[4:] if kind.startswith("Q5") else rest
        for number in range(32):
            quant = nibbles[number % 16] >> (4 if number >= 16 else 0) & 15
            quant |= (high >> number & 1) << 4
            if least is None:
                quant -= 16 if kind.startswith("Q5") else 8
            found.append(np.float32(quant) * scale + (least or np.float32(0)))
    return found


def test_what_is_added_removed_and_reshaped(store):
    names = list(BASE)
    tensors = dict(BASE)
    del tensors[names[1]]
    tensors["head.weight"] = np.random.default_rng(9).normal(0, 1, (160, 200)).astype("<f4")
    tensors[names[0]] = np.vstack([BASE[names[0]], np.zeros((8, 160), "<f4")])
    tensors[names[2]] = BASE[names[2]].reshape(64, 320)
    tensors["empty"] = np.zeros((0, 4), "<f4")
    store.put("other", {"model.safetensors": safetensors_bytes(tensors)})
    found = by_name(store.diff("base", "other"))
    assert {name: item.change for name, item in found.items() if item.change != "same"} == {
        names[0]: "reshaped",
        names[1]: "removed",
        names[2]: "reshaped",
        "head.weight": "added",
        "empty": "added",
    }
    assert (found[names[0]].differing, found[names[2]].differing) == (None, 0)
    assert found["head.weight"].a is found[names[1]].b is None
    assert store.diff("other", "other").counts == {"same": len(tensors)}


def test_numbers_that_are_not_finite(store):
    one = np.zeros(40_000, "<f4")
    one[:4] = np.nan, np.inf, np.inf, 1.0
    other = one.copy()
    other[:6] = np.nan, np.inf, -np.inf, np.nan, -0.0, 2.0
    store.put("odd-a", {"w.safetensors": safetensors_bytes({"w": one})})
    store.put("odd-b", {"w.safetensors": safetensors_bytes({"w": other})})
    (tensor,) = store.diff("odd-a", "odd-b").tensors
    assert (tensor.change, tensor.not_finite, tensor.max_abs) == ("changed", 2, 2.0)
    assert tensor.mean_abs == pytest.approx(2 / (40_000 - 2))
    assert tensor.differing == np.count_nonzero(one.view("<u4") != other.view("<u4"))
    json.dumps([tensor.max_abs, tensor.mean_abs], allow_nan=False)


def test_integers_and_types_without_values(store):
    one = {
        "ids": np.array([0, 2**63, 5], "<u8"),
        "signed": np.array([-(2**63), 3], "<i8"),
        "mask": np.array([True, False, True]),
        "packed": ("F4", (4,), b"\x12\x34"),
    }
    other = {
        "ids": np.array([2**63, 0, 5], "<u8"),
        "signed": np.array([2**63 - 1, 3], "<i8"),
        "mask": np.array([True, True, True]),
        "packed": ("F4", (4,), b"\x12\x35"),
    }
    store.put("int-a", {"m.safetensors": safetensors_bytes(one)})
    store.put("int-b", {"m.safetensors": safetensors_bytes(other)})
    found = by_name(store.diff("int-a", "int-b"))
    figures = {name: (item.differing, item.max_abs) for name, item in found.items()}
    assert figures == {
        "ids": (2, float(2**63)),
        "signed": (1, float(2**64 - 1)),
        "mask": (1, 1.0),
        "packed": (1, None),
    }


def test_what_is_the_same_is_not_read(store, monkeypatch):
    """Only the chunk of the one tensor that differs is."""
    name = "model.layers.1.self_attn.k_proj.weight"
    store.put("one", {"model.safetensors": safetensors_bytes(BASE | {name: BASE[name] + 1})})
    read = []
    original = TensorReader.read

    def note(self, side, begin, end):
        read.append(side.span.name)
        return original(self, side, begin, end)

    monkeypatch.setattr(TensorReader, "read", note)
    assert changes(store.diff("base", "one")) == dict.fromkeys(BASE, "same") | {name: "changed"}
    assert set(read) == {name}


def test_large_tensors_go_part_by_part(store, monkeypatch):
    whole = {other: store.diff("base", other) for other in ("tuned", "onnx", "BF16", "int8-True", "Q4_1")}
    monkeypatch.setattr(measuring, "_ONE_TASK", 0)
    monkeypatch.setattr(measuring, "_PART", 10_000)
    for other, found in whole.items():
        for one, again in zip(found.tensors, store.diff("base", other).tensors, strict=True):
            assert (one.change, one.differing, one.max_abs) == (again.change, again.differing, again.max_abs)
            assert one.unexplained == again.unexplained
            assert one.mean_abs == pytest.approx(again.mean_abs)


def test_a_store_that_is_far(store):
    near = store.diff("base", "onnx")
    far, backend = far_store(store)
    with far:
        models = far.model("base"), far.model("onnx")
        assert compare_models(*models, objects=(far.reader, far.reader)).tensors == near.tensors
    assert of_packs(backend.take())


def test_an_outline_reads_small_tensors_only(store):
    models = store.model("base"), store.model("tuned")
    found = outline(*models, objects=(store.reader, store.reader))
    whole = store.diff("base", "tuned")
    assert changes(found) == changes(whole)
    assert found.files == whole.files
    assert all(tensor.max_abs is None for tensor in found.tensors if tensor.change == "changed")


def test_models_that_cannot_be_compared(store):
    with pytest.raises(RefNotFound):
        store.diff("base", "nothing")
    store.put("text", {"a.txt": b"a"})
    found = store.diff("base", "text")
    assert found.counts == {"removed": len(BASE)}
    with Store(f"memory://{id(store)}", create=True) as other:
        other.close()
        with pytest.raises(ConfigError):
            other.diff("base", "text")


def test_a_layout_that_lies_about_a_tensor_is_not_read():
    """Its bytes do not fill its shape: reading by the shape would go beyond it."""
    layout = Layout(bytes(32), 8, bytes(32), np.array([8], np.uint32), [Span("w", "F32", (9,), 0, 8)])
    file = SideFile("m", bytes(32), layout)
    side = Side(file, BaseTensor(file.base, 0, layout.spans[0]))
    assert not side.is_sound


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_differences_are_those_of_python(data):
    dtype = data.draw(st.sampled_from(["<f4", "<f2", "<i1", "<u8", "<i8", "<f8"]))
    one = data.draw(arrays(dtype, st.integers(1, 40)))
    other = data.draw(arrays(dtype, len(one)))
    found = difference(one, other)
    pairs = [
        (a, b)
        for a, b in zip(one.tolist(), other.tolist(), strict=True)
        if a != b and not (a != a and b != b)  # noqa: PLR0124 - NaN
    ]
    assert found.elements == len(one)
    assert found.differing == len(pairs)
    gaps = [abs(a - b) for a, b in pairs]
    finite = [float(gap) for gap in gaps if gap == gap and gap != float("inf")]  # noqa: PLR0124 - NaN
    assert found.not_finite == len(gaps) - len(finite)
    assert found.largest == max(finite, default=0.0)
    assert found.total == pytest.approx(sum(finite)) or not np.isfinite(sum(finite))
    halves = difference(one[:1], other[:1]) + difference(one[1:], other[1:])
    assert (halves.differing, halves.largest) == (found.differing, found.largest)
    assert Difference().mean == 0


@pytest.mark.parametrize(
    ("dtype", "reference", "width"),
    [
        ("BF16", "bfloat16", 2),
        ("F8_E4M3", "float8_e4m3fn", 1),
        ("F8_E5M2", "float8_e5m2", 1),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz", 1),
        ("F8_E5M2FNUZ", "float8_e5m2fnuz", 1),
        ("F8_E8M0", "float8_e8m0fnu", 1),
    ],
)
def test_numbers_of_every_pattern(dtype, reference, width):
    patterns = np.arange(1 << 8 * width, dtype=f"<u{width}")
    expected = patterns.view(getattr(ml_dtypes, reference)).astype("<f4")
    np.testing.assert_array_equal(numbers(patterns.view(np.uint8), dtype), expected)
