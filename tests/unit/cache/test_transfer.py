"""Models as plain files of a cache: read-only, executable where they were, in folders of any name."""

from __future__ import annotations

import stat

import pytest
from fakes.stores import Content, write_model

from casstore import OliveCache, Store
from casstore.cache.transfer import ModelFileTransfer

SCRIPT = Content({"run.sh": (b"#!/bin/sh\n", True), "sub/w.bin": (b"w", False)})


@pytest.mark.parametrize("name", ["out", "\u00fc" * 127, "x" * 255])
@pytest.mark.parametrize("there", [False, True])
def test_a_model_is_downloaded_read_only(tmp_path, name, there):
    with Store(tmp_path / "store", create=True) as store:
        store.add(write_model(SCRIPT, tmp_path / "m"), ref="models/m")
        if there:
            (tmp_path / name).mkdir()
        assert ModelFileTransfer(store).download_model("models/m", tmp_path / name) is None
    modes = {path: (tmp_path / name / path).stat().st_mode & 0o777 for path in SCRIPT.files}
    assert modes["run.sh"] & ~0o555 == modes["sub/w.bin"] & ~0o444 == 0
    assert modes["run.sh"] & stat.S_IXUSR
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_folders_in_use_are_told_apart_whatever_their_names(tmp_path):
    """A list of them is read by other processes, and a name may hold a newline."""
    place = tmp_path / "two\nlines"
    with OliveCache(place) as cache, OliveCache(place) as other:
        folder = cache.get_model_cache_path("run")
        assert other.get_model_cache_path("run") != folder
