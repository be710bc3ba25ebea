"""A model and what is made of it, small but with the parts of real ones: large tensors, and small ones between them."""

from __future__ import annotations

from functools import cache

import numpy as np
from fakes.model_files import safetensors_bytes

ROWS, COLUMNS, LAYERS = 192, 256, 2


def base_tensors(seed=0):
    """Return the tensors of a model of about 1 MB."""
    rng = np.random.default_rng(seed)
    tensors = {"embeddings.weight": _normal(rng, (500, COLUMNS))}
    for layer in range(LAYERS):
        for part in ("query", "value"):
            tensors[f"layer.{layer}.{part}.weight"] = _normal(rng, (ROWS, COLUMNS))
            tensors[f"layer.{layer}.{part}.bias"] = _normal(rng, (ROWS,))
    return tensors


def tuned(tensors, seed=1, step=1e-4):
    """Return the tensors after some training: each weight is moved by about `step`."""
    rng = np.random.default_rng(seed)
    return {
        name: (array + rng.normal(0, step, array.shape)).astype(array.dtype)
        for name, array in tensors.items()
    }


def write_family_model(folder, tensors, name="model.safetensors"):
    """Write a folder with the tensors and a configuration; return it."""
    folder.mkdir(parents=True)
    (folder / name).write_bytes(safetensors_bytes(tensors))
    (folder / "config.json").write_text('{"layers": 2}')
    return folder


@cache
def fine_tune(number):
    """Return a file with one tensor, nearly the same for all numbers."""
    tensors = {"weight": np.random.default_rng(7).normal(0, 0.1, 17_000).astype("<f4")}
    return safetensors_bytes(tuned(tensors, number, 1e-5 * number))


def encodings(store, ref):
    """Return the plain bytes of a model's chunks by encoding."""
    return {share.encoding: share.bytes_plain for share in store.show(ref).encodings}


def _normal(rng, shape):
    return (rng.normal(0, 1, shape) * rng.uniform(0.01, 0.05, (shape[0],) + (1,) * (len(shape) - 1))).astype(
        "<f4"
    )
