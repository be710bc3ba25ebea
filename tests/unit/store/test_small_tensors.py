"""Tensors too small for a sketch follow from what made the large ones of their file."""

from __future__ import annotations

import numpy as np
import pytest
from fakes.families import tuned, write_family_model

from casstore import Store

RANDOM = np.random.default_rng(7)
BASE = {"embeddings.weight": RANDOM.normal(0, 0.05, (500, 256)).astype("<f4")} | {
    f"layer.{number}.bias": RANDOM.normal(0, 0.05, 4000).astype("<f4") for number in range(12)
}
"""Two fifths of the bytes are small tensors."""

OTHERS = [tuned(BASE, seed, 1e-3) for seed in (1, 2)]


def mean(name):
    return (OTHERS[0][name] + OTHERS[1][name]) / np.float32(2)


def task(name):
    return BASE[name] + np.float32(0.8) * ((OTHERS[0][name] - BASE[name]) + (OTHERS[1][name] - BASE[name]))


def nearly_copied(name):
    """As merges do that leave vectors alone; one element differs, so that their chunks are new."""
    if BASE[name].ndim == 2:
        return mean(name)
    array = OTHERS[0][name].copy()
    array[-1] = 1
    return array


def half(name):
    return BASE[name].astype("<f2")


def transposed_half(name):
    return np.ascontiguousarray(BASE[name].astype("<f2").T)


def half_but_for_vectors(name):
    return half(name) if BASE[name].ndim == 2 else BASE[name]


@pytest.mark.parametrize(
    ("made", "named"),
    [
        *((made, named) for made in (mean, task, nearly_copied) for named in ("base", "other0", None)),
        *(
            (made, named)
            for made in (half, transposed_half, half_but_for_vectors)
            for named in ("base", None)
        ),
    ],
)
def test_what_was_made_of_others_takes_nothing(tmp_path, made, named):
    with Store(tmp_path / "store", create=True, durability="none") as store:
        store.add(write_family_model(tmp_path / "base", BASE), ref="base")
        for number, other in enumerate(OTHERS):
            store.add(
                write_family_model(tmp_path / f"other{number}", other), ref=f"other{number}", base="base"
            )
        folder = write_family_model(tmp_path / "made", {name: made(name) for name in BASE})
        added = store.add(folder, ref="made", base=named)
        assert added.bytes_stored < 0.02 * added.bytes_total
        store.get("made", tmp_path / "out")
        name = "model.safetensors"
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
