"""Destinations that an attacker prepared, and files that lie: nothing is written elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fakes.folders import Meanwhile
from fakes.model_files import safetensors_bytes
from fakes.stores import model_of, noise, write_model

from casstore import ConfigError
from casstore.digest import digest

TRAPS = {
    "a link where a folder must be": ("sub", "../folder"),
    "a link to the root": ("sub", "/"),
    "a link where a deeper folder must be": ("sub/deep", "../../folder"),
    "a link where a file must be": ("sub/f.bin", "../../precious"),
    "a broken link where a file must be": ("sub/f.bin", "../../made-by-mistake"),
    "a link where an empty folder must be": ("hollow", "../folder"),
}


@pytest.mark.parametrize(("name", "target"), TRAPS.values(), ids=TRAPS)
def test_links_planted_in_the_destination(forge, outside, name, target):
    plain = b"evil"
    rows = [
        ["hollow", 0, None],
        ["sub/deep/g.bin", 4, digest(plain)],
        ["sub/f.bin", 4, digest(plain)],
    ]
    ref = forge.model(rows, [forge.layout_of(plain)] * 2)
    link = outside / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with forge.opened() as store, pytest.raises(ConfigError, match=f"{name} is in the way"):
        store.get(ref, outside / "out", force=True)
    assert os.readlink(link) == target
    assert [path for path in (outside / "out").rglob("*.bin") if path != link] == []


def test_a_folder_that_becomes_a_link_while_it_is_written_to(forge, outside):
    """Descriptors do not follow: at worst, files land in the folder that was opened."""
    plain = noise(1, 100)
    names = [f"sub/{number:03}.bin" for number in range(400)]  # more than are ever open at once
    ref = forge.model([[name, 100, digest(plain)] for name in names], [forge.layout_of(plain)] * 400)

    def swap():
        (outside / "out/sub").rename(outside / "out/moved")
        (outside / "out/sub").symlink_to("../folder")

    (outside / "out").mkdir()
    with forge.opened() as store, pytest.raises(ConfigError, match="sub is in the way"):
        store.get(ref, outside / "out", callback=Meanwhile(1, swap))
    assert list((outside / "folder").iterdir()) == []


def test_what_a_checkout_makes_belongs_to_its_user(forge, tmp_path):
    """Modes come from the user's mask, never from the store: no set-user-id, nothing writable by all."""
    plain = b"evil"
    rows = [["run", 4, digest(plain)], ["sub/f", 4, digest(plain)]]
    ref = forge.model(rows, [forge.layout_of(plain)] * 2, executable=(0,))
    before = os.umask(0o027)
    try:
        with forge.opened() as store:
            store.get(ref, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in Path(tmp_path / "out").rglob("*")}
    assert modes == {"run": 0o750, "sub": 0o750, "f": 0o640}


def test_real_model_files_may_lie_too(forge, tmp_path):
    """Headers of model files are the attacker's as well: a lie makes them plain bytes."""
    header = safetensors_bytes({"w": np.zeros(4, np.float32)})
    lying = header.replace(b"[4]", b"[5]")
    assert lying != header
    path = write_model(model_of(m=lying), tmp_path / "m")
    with forge.opened() as store:
        store.add(path, ref="models/m")
        with pytest.raises(ConfigError, match="no tensors"):
            store.read_tensor("models/m", "w", file="m")
