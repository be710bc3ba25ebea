"""A small model and one of each kind that is made of it: together they have every operation of deltas, and chains of them."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import ml_dtypes
import numpy as np
from fakes.families import tuned
from fakes.ladders import blocks_of
from fakes.model_files import gguf_bytes, safetensors_bytes
from fakes.stores import Content, model_of, write_model

from casstore.codecs import Encoding, decode_batch
from casstore.codecs.delta.operations import OPERATIONS
from casstore.codecs.delta.payload import DIRECTORY, read_directory, read_head
from casstore.format.frame import MAX_HEADER_SIZE, decode_header
from casstore.objects.keys import pack_key

ROWS, COLUMNS = 264, 256
"""As integers of a byte just above the size from which tensors have sketches; in rows of whole blocks."""


class Derived(NamedTuple):
    """A model, that of which it is made, and the names of operations that its deltas have."""

    content: Content
    base: str | None
    operations: frozenset[str] = frozenset()


def _matrix(seed):
    return np.random.default_rng(seed).normal(0, 0.05, (ROWS, COLUMNS)).astype("<f4")


def _file(tensors):
    return model_of(model__safetensors=safetensors_bytes(tensors))


def _quantised(array):
    scale = (np.abs(array).max(axis=0) / np.float32(127)).astype("<f4")
    return {"w_quantized": np.rint(array / scale).astype(np.int8), "w_scale": scale}


@cache
def derivations():
    """Return the models by name, each after what it is made of."""
    base = _matrix(1)
    other, tune = _tuned(base, 2), _tuned(base, 3)
    a = np.random.default_rng(4).normal(0, 0.1, (4, COLUMNS)).astype("<f4")
    b = np.random.default_rng(5).normal(0, 0.01, (ROWS, 4)).astype("<f4")
    adapter = {"base_model.model.w.lora_A.weight": a, "base_model.model.w.lora_B.weight": b}
    merged = base + np.float32(2) * (b @ a)
    bf16 = ("BF16", base.shape, base.astype(ml_dtypes.bfloat16).tobytes())
    half = base.astype("<f2")
    return {
        "base": Derived(_file({"w.weight": base}), None),
        "tuned": Derived(_file({"w.weight": tune}), "base", frozenset({"same"})),
        "other": Derived(_file({"w.weight": other}), "base", frozenset({"same"})),
        "cast": Derived(_file({"w.weight": half}), "base", frozenset({"cast"})),
        "cast of tuned": Derived(_file({"w.weight": tune.astype("<f2")}), "tuned", frozenset({"cast"})),
        "bfloat16": Derived(_file({"w.weight": bf16}), "cast", frozenset({"cast"})),
        "transposed": Derived(_file({"t": base.T.copy()}), "base", frozenset({"transpose"})),
        "transposed and cast": Derived(
            _file({"t": base.T.astype("<f2")}), "base", frozenset({"transpose", "cast"})
        ),
        "quantised": Derived(_file(_quantised(base)), "base", frozenset({"quantise"})),
        "transposed and quantised": Derived(
            _file(_quantised(base.T.copy())), "base", frozenset({"transpose", "quantise"})
        ),
        "mean": Derived(_file({"w.weight": (base + tune) / np.float32(2)}), "tuned", frozenset({"combine"})),
        "Q8_0": Derived(_blocks("Q8_0", base), "base", frozenset({"gguf"})),
        "Q4_K": Derived(_blocks("Q4_K", half), "cast", frozenset({"cast", "gguf"})),
        "adapter": Derived(_file(adapter), "base"),
        "merged": Derived(_file({"w.weight": merged}), "base", frozenset({"lora"})),
    }


def _tuned(array, seed):
    return tuned({"w": array}, seed, 1e-4)["w"]


def _blocks(kind, array):
    return model_of(model__gguf=gguf_bytes({"w.weight": blocks_of(kind, array)}))


@cache
def together():
    """Return one model of several files, of which the later ones follow from the first."""
    made = derivations()
    names = {
        "model.safetensors": "base",
        "half/model.safetensors": "cast",
        "export/model.st": "transposed",
        "export/int8.st": "quantised",
    }
    files = {}
    for place, name in names.items():
        (content,) = made[name].content.files.values()
        files[place] = content
    return Content(files)


def add_derivations(store, folder, names=None):
    """Add models, by default all, as `models/NAME`; spaces in names become hyphens."""
    for name, item in derivations().items():
        if names is None or name in names:
            path = write_model(item.content, folder / ref_of(name))
            base = None if item.base is None else f"models/{ref_of(item.base)}"
            store.add(path, ref=f"models/{ref_of(name)}", base=base)


def ref_of(name):
    """Return the name of a derivation as a ref has it."""
    return name.replace(" ", "-")


class DeltaFrame(NamedTuple):
    """A chunk that is stored as a delta: the key of its pack, and where the frame begins and ends in it."""

    chunk: bytes
    key: str
    begin: int
    end: int


def delta_frames(store, ref):
    """Return the deltas of a model."""
    located = store.objects.locate(b"".join(layout.ids for layout in store.model(ref).layouts))
    packs = {at: pack for pack, places in store.objects.packs_of(located).items() for at in places}
    found = []
    for at, row in enumerate(located.rows):
        if row["encoding"] == Encoding.DELTA:
            key, begin = pack_key(packs[at]), int(row["offset"])
            head = decode_header(store.backend.read(key)[begin : begin + MAX_HEADER_SIZE], key=key)
            end = begin + head.size + head.stored
            found.append(DeltaFrame(row["id"].tobytes(), key, begin, end))
    return found


def operations_of(store, ref):
    """Return the names of the operations in a model's deltas."""
    names = set()
    for item in delta_frames(store, ref):
        data = store.backend.read(item.key)[item.begin : item.end]
        header = decode_header(data, key=item.key)
        head = read_head(memoryview(data)[header.size :])
        stream = head.streams[DIRECTORY]
        directory = bytearray(stream.plain)
        decode_batch([(stream.encoding, stream.body)], [stream.plain], directory)
        for piece in read_directory(memoryview(directory), head.pieces):
            names |= {OPERATIONS[step.operation, step.version].name for step in piece.steps}
    return names
