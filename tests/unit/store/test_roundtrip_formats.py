"""A file of every format goes in and comes out: byte for byte, and tensor by tensor; and is not read twice."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from fakes.fresh_files import trust_fresh_files
from fakes.model_files import (
    gguf_bytes,
    npy_bytes,
    onnx_bytes,
    onnx_external_bytes,
    parts,
    safetensors_bytes,
    tflite_bytes,
    torch_export_bytes,
    torch_legacy_bytes,
    torch_zip_bytes,
    zip_bytes,
)
from fakes.stores import assert_clean, model_of, noise, read_folder, write_model
from fakes.weights import weights

from casstore import Store
from casstore.store.adding.bases.files.own_files import HEAD

KIB = 1 << 10


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(dtype)


def raw(kind, shape, dtype):
    """A tensor of a type that numpy lacks."""
    return (dtype, shape, weights(kind, 3)[0])


FLOATS = {
    "embedding": normal(1, (700, 300)),
    "layer.0.weight": normal(2, (256, 512)),
    "layer.0.bias": normal(3, (512,)),
    "half": normal(4, (300, 400), np.float16),
    "steps": np.arange(50_000, dtype=np.int64),
    "scalar": np.array(0.5, np.float32),
    "empty": np.zeros((0, 7), np.float32),
    "mask": np.random.default_rng(5).integers(0, 2, (1000, 100)).astype(np.bool_),
}
BFLOAT = ("BF16", (512, 256), weights("bf16", 6)[0])
FP8 = ("F8_E4M3", (256, 512), np.random.default_rng(7).integers(0, 256, 256 * 512).astype(np.uint8).tobytes())
WITHOUT_EMPTY = {name: tensor for name, tensor in FLOATS.items() if name != "empty"}
QUANTISED = {
    "token_embd.weight": raw("q4_0", (512, 256), "Q4_0"),
    "blk.0.ffn_up.weight": raw("q8_0", (512, 256), "Q8_0"),
    "output_norm.weight": FLOATS["layer.0.bias"],
    "blk.0.attn.weight": FLOATS["layer.0.weight"],
}
GGUF_METADATA = {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a", "b", "c"] * 50, "rope": 1e4}

# name → (files, {file: {tensor: what read_tensor gives}})
FORMATS = {
    "safetensors": (
        {
            "model.safetensors": safetensors_bytes(
                {**FLOATS, "bf16": BFLOAT, "fp8": FP8}, metadata={"format": "pt"}
            )
        },
        {"model.safetensors": {**FLOATS, "bf16": BFLOAT, "fp8": FP8}},
    ),
    "torch zip": (
        {"pytorch_model.bin": torch_zip_bytes({**WITHOUT_EMPTY, "bf16": BFLOAT})},
        {"pytorch_model.bin": {**WITHOUT_EMPTY, "bf16": BFLOAT}},
    ),
    "torch zip, aligned otherwise": (
        {"model.pt": torch_zip_bytes(WITHOUT_EMPTY, align=4096, zip64=True)},
        {"model.pt": WITHOUT_EMPTY},
    ),
    "ONNX": ({"model.onnx": onnx_bytes(FLOATS)}, {"model.onnx": FLOATS}),
    "ONNX with external data": (
        {
            "onnx/model.onnx": onnx_bytes(WITHOUT_EMPTY, external="model.onnx_data"),
            "onnx/model.onnx_data": onnx_external_bytes(WITHOUT_EMPTY),
        },
        {"onnx/model.onnx_data": WITHOUT_EMPTY},
    ),
    "ONNX of another name, from Windows": (
        {
            "onnx/model.pb": onnx_bytes(WITHOUT_EMPTY, external="sub\\weights.bin"),
            "onnx/sub/weights.bin": onnx_external_bytes(WITHOUT_EMPTY),
        },
        {"onnx/sub/weights.bin": WITHOUT_EMPTY},
    ),
    "torch before 1.6": (
        {"pytorch_model.bin": torch_legacy_bytes({**WITHOUT_EMPTY, "bf16": BFLOAT})},
        {"pytorch_model.bin": {**WITHOUT_EMPTY, "bf16": BFLOAT}},
    ),
    "exported program": (
        {"model.pt2": torch_export_bytes({**WITHOUT_EMPTY, "bf16": BFLOAT})},
        {"model.pt2": {**WITHOUT_EMPTY, "bf16": BFLOAT}},
    ),
    "TFLite": ({"model.tflite": tflite_bytes(WITHOUT_EMPTY)}, {"model.tflite": WITHOUT_EMPTY}),
    "npz": (
        {"arrays.npz": zip_bytes({f"{name}.npy": npy_bytes(array) for name, array in FLOATS.items()})},
        {"arrays.npz": FLOATS},
    ),
    "GGUF": (
        {"model.gguf": gguf_bytes(QUANTISED, metadata=GGUF_METADATA)},
        {"model.gguf": QUANTISED},
    ),
    "GGUF, aligned otherwise": (
        {"model.gguf": gguf_bytes(QUANTISED, alignment=256, version=2)},
        {"model.gguf": QUANTISED},
    ),
    "npy": ({"array.npy": npy_bytes(FLOATS["embedding"])}, {"array.npy": {"array": FLOATS["embedding"]}}),
    "npy in Fortran order": (
        {"array.npy": npy_bytes(np.asfortranarray(FLOATS["embedding"]))},
        {"array.npy": {"array.T": FLOATS["embedding"].T}},
    ),
    "npy of big-endian numbers": (
        {"array.npy": npy_bytes(FLOATS["layer.0.bias"].astype(">f4"))},
        {"array.npy": {"array": FLOATS["layer.0.bias"].astype(">f4").view(np.uint8)}},
    ),
    "unknown": (
        {
            "noise": noise(1, 1_500_000),
            "numbers": normal(8, 300_000).tobytes(),
            "text.json": b'{"key": "value"}\n' * 20_000,
            "zeros": bytes(3 << 20),
            "one byte": b"x",
            "nothing": b"",
        },
        {},
    ),
}
FORMATS["all of them"] = (
    {
        f"{name.replace(' ', '-').replace(',', '')}/{path}": data
        for name, (files, _) in FORMATS.items()
        for path, data in files.items()
    },
    {},
)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


def content_of(files):
    content = model_of()
    content.files.update({path: (data, False) for path, data in files.items()})
    return content


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_comes_back_byte_for_byte_and_tensor_by_tensor(store, tmp_path, name):
    files, tensors = FORMATS[name]
    content = content_of(files)
    result = store.add(write_model(content, tmp_path / "in"), ref="models/m")
    assert (result.files, result.bytes_total) == (len(files), content.size)
    store.get("models/m", tmp_path / "out")
    assert read_folder(tmp_path / "out") == content
    for path, expected in tensors.items():
        assert {span.name for span in store.model("models/m").layout(path).spans} >= set(expected)
        for tensor, value in expected.items():
            assert_same(store.read_tensor("models/m", tensor, file=path), value)
    for path, data in files.items():
        assert_reads(store, path, data)
    with Store(store.backend.url) as again:
        assert_clean(again)
    assert store.add(tmp_path / "out", stat_cache=False).chunks_new == 0


def assert_same(array, expected):
    if isinstance(expected, np.ndarray):
        assert array.dtype == expected.dtype
        assert array.shape == expected.shape
    else:
        dtype, shape, _ = expected
        assert array.dtype == {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}.get(
            dtype, np.uint8
        )
        assert array.shape == (shape if dtype in ("BF16", "F8_E4M3") else (len(expected[2]),))
    expected_bytes = expected.tobytes() if isinstance(expected, np.ndarray) else parts(expected).data
    assert array.tobytes() == expected_bytes
    assert array.flags.aligned
    before = array.tobytes()
    if array.size:
        array.reshape(-1).view(np.uint8)[:1] ^= 1  # the caller owns it
        assert array.tobytes() != before


def assert_reads(store, path, data):
    """Seeks anywhere, reads any size, as a file on the disk would."""
    chosen = np.random.default_rng(len(data))
    with store.open_file("models/m", path) as file:
        assert file.seek(0, os.SEEK_END) == len(data)
        assert file.read(10) == b""
        for _ in range(12):
            at, size = int(chosen.integers(0, len(data) + 10)), int(chosen.choice([1, 100, 70_000, 600_000]))
            assert file.seek(at) == at
            assert file.read(size) == data[at : at + size]
        file.seek(0)
        assert file.read() == data


def test_reading_a_tensor_touches_only_its_chunks(store, tmp_path):
    """The rest of the file may even be gone."""
    tensors = {
        "first": normal(1, (400, 500)),
        "second": normal(2, (300, 500)),
        "third": normal(3, (500, 500)),
    }
    store.add(write_model(model_of(m=safetensors_bytes(tensors)), tmp_path / "m"), ref="models/m")
    asked = []
    locate = store.objects._index.locate

    def spy(ids, **options):
        asked.append(len(ids) // 32 if isinstance(ids, bytes) else len(ids))
        return locate(ids, **options)

    store.model("models/m")
    store.objects._index.locate = spy
    assert np.array_equal(store.read_tensor("models/m", "second", file="m"), tensors["second"])
    assert sum(asked) <= 2 + -(-tensors["second"].nbytes // (512 * KIB)) + 2


def test_a_checkout_writes_no_long_pieces(store, tmp_path, monkeypatch):
    """Long ones are what a virtual machine's kernel is slow at (see WRITE_PIECE)."""
    store.add(write_model(content_of({"m": noise(1, 5 * KIB * KIB + 3)}), tmp_path / "a"), ref="models/a")
    asked = []
    pwrite = os.pwrite

    def measured(descriptor, data, offset):
        asked.append(len(data))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", measured)
    store.get("models/a", tmp_path / "out")
    assert sum(asked) == 5 * KIB * KIB + 3
    assert max(asked) == KIB * KIB
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "a")


# ---- the same tensors in other clothes


def test_the_same_tensors_in_another_container_are_the_same_chunks(store, tmp_path):
    big = {name: tensor for name, tensor in FLOATS.items() if tensor.nbytes >= 64 * KIB}
    bytes_big = sum(tensor.nbytes for tensor in big.values())
    store.add(write_model(model_of(a=safetensors_bytes(big)), tmp_path / "a"), ref="models/a")
    names = list(big)
    others = {
        "torch": {"pytorch_model.bin": torch_zip_bytes(big)},
        "sharded": {
            "model-00001-of-00002.safetensors": safetensors_bytes({name: big[name] for name in names[::2]}),
            "model-00002-of-00002.safetensors": safetensors_bytes({name: big[name] for name in names[1::2]}),
        },
        "reordered": {
            "m": safetensors_bytes({name: big[name] for name in reversed(names)}, metadata={"a": "b" * 999})
        },
        "onnx": {"m.onnx": onnx_bytes(big)},
        "external": {"m.onnx": onnx_bytes(big, external="data"), "data": onnx_external_bytes(big)},
        "renamed": {"m": safetensors_bytes({f"model.{name}": tensor for name, tensor in big.items()})},
    }
    for number, (name, files) in enumerate(others.items()):
        result = store.add(write_model(content_of(files), tmp_path / f"other{number}"), ref=f"models/{name}")
        # What is new is what lies between the tensors: headers, and the zip's or protobuf's own bytes.
        assert result.chunks_new <= 2 * len(big) + 2, name
        assert result.bytes_new < 0.02 * bytes_big, name
    gguf = store.add(write_model(model_of(m=gguf_bytes({"w": FLOATS["embedding"]})), tmp_path / "gguf"))
    assert gguf.bytes_new < 1000
    npy = store.add(write_model(model_of(m=npy_bytes(FLOATS["embedding"])), tmp_path / "npy"))
    assert npy.bytes_new < 1000
    assert_clean(store)


def test_weights_that_were_tuned_share_what_was_not(store, tmp_path):
    tuned = {**FLOATS, "layer.0.weight": normal(99, (256, 512))}
    store.add(write_model(model_of(m=safetensors_bytes(FLOATS)), tmp_path / "a"), ref="models/a")
    result = store.add(write_model(model_of(m=safetensors_bytes(tuned)), tmp_path / "b"), base="models/a")
    assert tuned["layer.0.weight"].nbytes <= result.bytes_new < 2 * tuned["layer.0.weight"].nbytes
    assert store.refs()[result.ref].base.hex() == store.resolve("models/a").model_id


def test_the_real_weights_of_wordllama(store, tmp_path):
    """The package is part of the `test` extra: 16 MB of fp16."""
    folder = Path(importlib.util.find_spec("wordllama").origin).parent / "weights"
    path = folder / "l2_supercat_256.safetensors"
    data = path.read_bytes()
    result = store.add(path, ref="models/wordllama")
    assert result.bytes_stored < 0.93 * len(data)
    store.get("models/wordllama", tmp_path / "out")
    assert (tmp_path / "out" / path.name).read_bytes() == data
    array = store.read_tensor("models/wordllama", "embedding.weight", file=path.name)
    assert (array.dtype, array.shape) == (np.float16, (32000, 256))
    assert array.tobytes() == data[-array.nbytes :]
    copy = {"embedding.weight": array}
    torch = write_model(model_of(m=torch_zip_bytes(copy)), tmp_path / "torch")
    assert store.add(torch).bytes_new < 5000
    half = 16_384  # rows: a whole number of pieces, so that the second shard is cut where the whole is
    shards = model_of(a=safetensors_bytes({"top": array[:half]}), b=safetensors_bytes({"end": array[half:]}))
    assert store.add(write_model(shards, tmp_path / "shards")).bytes_new < 5000
    assert_clean(store)


# ---- adding again


class Reads:
    """Which files below a folder are opened, and how many bytes of their content are read, but for heads that decide their order."""

    def __init__(self, monkeypatch, folder):
        self.folder = str(folder)
        self.opened = []
        self.bytes = 0
        real_open, real_preadv = os.open, os.preadv

        def spy_open(path, flags, *arguments, **options):
            if os.fsdecode(path).startswith(self.folder) and not flags & os.O_DIRECTORY:
                self.opened.append(os.path.relpath(os.fsdecode(path), self.folder))
            return real_open(path, flags, *arguments, **options)

        def spy_preadv(fd, buffers, offset, *flags):
            count = real_preadv(fd, buffers, offset, *flags)
            is_head = offset == 0 and sum(map(len, buffers)) == HEAD
            if not is_head and os.readlink(f"/proc/self/fd/{fd}").startswith(self.folder):
                self.bytes += count
            return count

        monkeypatch.setattr(os, "open", spy_open)
        monkeypatch.setattr(os, "preadv", spy_preadv)

    def take(self):
        """Return what was opened and read since the last time."""
        found, self.opened, self.bytes = (sorted(set(self.opened)), self.bytes), [], 0
        return found


@pytest.fixture
def settled(store):
    """Files count as old enough at once, so that a test need not wait for a minute."""
    trust_fresh_files(store)


FILES = {"a.safetensors": safetensors_bytes(FLOATS), "b.bin": noise(3, 200_000), "c.txt": b"text"}
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture
def folder(tmp_path):
    return Path(write_model(content_of(FILES), tmp_path / "model"))


@pytest.mark.usefixtures("settled")
def test_adding_again_reads_nothing(store, folder, monkeypatch):
    reads = Reads(monkeypatch, folder)
    first = store.add(folder, ref="models/m")
    assert reads.take() == (sorted(FILES), TOTAL)
    second = store.add(folder, ref="models/m")
    assert reads.take() == ([], 0)
    assert (second.model_id, second.bytes_total, second.chunks) == (
        first.model_id,
        first.bytes_total,
        first.chunks,
    )
    assert (second.chunks_new, second.bytes_new, second.bytes_stored) == (0, 0, 0)
    with Store(store.backend.url) as other:
        trust_fresh_files(other)
        other.add(folder, ref="models/other")
    assert reads.take() == ([], 0)
    assert len(list(store.backend.list("refs/"))) == 2
    assert store.add(folder, ref="models/m", stat_cache=False).model_id == first.model_id
    assert reads.take() == (sorted(FILES), TOTAL)


@pytest.mark.usefixtures("settled")
def test_only_files_that_changed_are_read_again(store, folder, monkeypatch):
    store.add(folder, ref="models/m")
    reads = Reads(monkeypatch, folder)
    (folder / "b.bin").touch()
    store.add(folder)
    assert reads.take() == (["b.bin"], 200_000)
    (folder / "c.txt").write_bytes(b"TEXT")
    changed = store.add(folder, ref="models/changed")
    assert reads.take() == (["c.txt"], 4)
    with store.open_file(changed.ref, "c.txt") as file:
        assert file.read() == b"TEXT"
    before = (folder / "b.bin").stat()
    (folder / "b.bin").write_bytes(noise(4, 200_000))
    os.utime(folder / "b.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    store.add(folder, ref="models/sly")
    assert reads.take() == (["b.bin"], 200_000)
    with store.open_file("models/sly", "b.bin") as file:
        assert file.read() == noise(4, 200_000)
    (folder / "d.bin").write_bytes(b"new")
    store.add(folder, ref="models/more")
    assert reads.take() == (["d.bin"], 3)


@pytest.mark.usefixtures("settled")
def test_a_file_that_took_anothers_name_is_not_mistaken(store, folder):
    """Same name, same size, same time: the inode and its change time tell."""
    first = store.add(folder, ref="models/m")
    status = (folder / "b.bin").stat()
    (folder / "other").write_bytes(noise(5, 200_000))
    os.utime(folder / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "other").rename(folder / "b.bin")
    second = store.add(folder, ref="models/m")
    assert second.model_id != first.model_id
    with store.open_file("models/m", "b.bin") as file:
        assert file.read() == noise(5, 200_000)


def test_files_that_were_touched_just_now_are_not_trusted(store, folder, monkeypatch):
    """The racy rule: within the same moment a file may change without its times showing it."""
    reads = Reads(monkeypatch, folder)
    for _ in range(2):
        store.add(folder)
        assert reads.take() == (sorted(FILES), TOTAL)
    trust_fresh_files(store)
    store.add(folder)
    assert reads.take() == (sorted(FILES), TOTAL)
    store.add(folder)
    assert reads.take() == ([], 0)


def test_a_time_in_the_future_is_not_trusted(store, folder, monkeypatch):
    trust_fresh_files(store)
    os.utime(folder / "b.bin", (4_000_000_000, 4_000_000_000))
    store.add(folder)
    reads = Reads(monkeypatch, folder)
    store.add(folder)
    assert reads.take() == (["b.bin"], 200_000)


@pytest.mark.usefixtures("settled")
def test_external_data_is_read_again_when_the_onnx_beside_it_changes(store, tmp_path, monkeypatch):
    """Where the tensors lie in it is said by the .onnx, so its layout may be another one."""
    tensors = {"w": normal(1, (300, 200)), "v": normal(2, (100, 400))}
    folder = tmp_path / "model"
    files = {"m.onnx": onnx_bytes(tensors, external="data"), "data": onnx_external_bytes(tensors)}
    write_model(content_of(files), folder)
    first = store.add(folder, ref="models/m")
    reads = Reads(monkeypatch, folder)
    store.add(folder, ref="models/m")
    assert reads.take() == ([], 0)
    joined = np.concatenate([tensors["w"].ravel(), tensors["v"].ravel()])
    (folder / "m.onnx").write_bytes(onnx_bytes({"both": joined}, external="data"))
    second = store.add(folder, ref="models/joined")
    opened, count = reads.take()
    assert opened == ["data", "m.onnx"]
    assert count == sum(path.stat().st_size for path in folder.iterdir())
    assert np.array_equal(store.read_tensor("models/joined", "both", file="data"), joined)
    assert np.array_equal(store.read_tensor("models/m", "v", file="data"), tensors["v"])
    assert second.model_id != first.model_id
    (folder / "m.onnx").unlink()
    store.add(folder, ref="models/alone")
    assert reads.take() == (["data"], len(files["data"]))
    assert store.model("models/alone").layout("data").spans == ()


@pytest.mark.usefixtures("settled")
def test_a_file_whose_chunks_are_gone_is_read_again(store, folder, monkeypatch):
    """What the stat cache knows is worth nothing without the packs."""
    store.add(folder, ref="models/m")
    root = Path(store.backend.local_path("format")).parent
    shutil.rmtree(root / "packs")
    (root / "packs").mkdir()
    reads = Reads(monkeypatch, folder)
    with Store(root) as again:
        trust_fresh_files(again)
        result = again.add(folder, ref="models/m")
        assert reads.take() == (sorted(FILES), TOTAL)
        assert result.bytes_new == TOTAL
        assert_clean(again)


@pytest.mark.usefixtures("settled")
def test_two_stores_know_nothing_of_one_another(store, folder, tmp_path, monkeypatch):
    store.add(folder, ref="models/m")
    reads = Reads(monkeypatch, folder)
    with Store(tmp_path / "other", create=True) as other:
        trust_fresh_files(other)
        assert other.add(folder).bytes_new == TOTAL
    assert reads.take() == (sorted(FILES), TOTAL)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    with Store(tmp_path / "copy") as copy:
        trust_fresh_files(copy)
        copy.add(folder)
    assert reads.take() == (sorted(FILES), TOTAL)
