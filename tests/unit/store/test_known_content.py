"""A file that the store holds is recognised wherever it lies, by its whole hash and by nothing less."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from fakes.model_files import safetensors_bytes
from fsspec import Callback

from casstore import ConflictError, Store
from casstore.objects import Publication
from casstore.store.adding import blocks, known_content
from casstore.store.adding.known_content import MIN_SIZE, sample_keys
from casstore.store.adding.sources import find_sources


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as store:
        yield store


@pytest.fixture
def parsed(monkeypatch):
    """The files whose tensors are looked for."""
    seen = []
    find = blocks.find_file_spans
    monkeypatch.setattr(
        blocks, "find_file_spans", lambda file, *rest: seen.append(file.path) or find(file, *rest)
    )
    return seen


def write(path, seed=0, size=MIN_SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).standard_normal(size // 4).astype("<f4")
    path.write_bytes(safetensors_bytes({"w": values}))
    return path


def test_under_another_name_it_is_read_but_neither_parsed_nor_stored(store, tmp_path, parsed):
    first = store.add(write(tmp_path / "a" / "model.safetensors"))
    assert parsed == ["model.safetensors"]
    again = store.add(write(tmp_path / "b" / "other.safetensors"))
    assert parsed == ["model.safetensors"]
    assert again.model_id != first.model_id
    assert (again.bytes_new, again.chunks_new, again.bytes_total, again.chunks) == (
        0,
        0,
        first.bytes_total,
        first.chunks,
    )
    store.get(again.ref, tmp_path / "out")
    assert (tmp_path / "out" / "other.safetensors").read_bytes() == (
        tmp_path / "a" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("at", [5_000, MIN_SIZE // 2 + 100_000, -5_000])
def test_a_byte_that_no_sample_covers_makes_another_file(store, tmp_path, parsed, at):
    path = write(tmp_path / "a" / "model.safetensors")
    store.add(path)
    other = tmp_path / "b" / "model.safetensors"
    other.parent.mkdir()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    other.write_bytes(data)
    keys = [sample_keys(find_sources(str(place)).files, beside_graphs=False) for place in (path, other)]
    assert keys[0] == keys[1]
    counts = Progress()
    added = store.add(other, ref="other", callback=counts)
    assert parsed == ["model.safetensors"] * 2
    assert counts.value == counts.size == len(data)
    store.get(added.ref, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == data


def test_samples_of_other_content_differ(tmp_path):
    files = [find_sources(str(write(tmp_path / str(seed) / "m", seed))).files for seed in range(3)]
    assert len({key for found in files for key in sample_keys(found, beside_graphs=False).values()}) == 3


def test_small_files_are_not_sampled(tmp_path):
    (tmp_path / "m").write_bytes(bytes(MIN_SIZE - 1))
    assert sample_keys(find_sources(str(tmp_path / "m")).files, beside_graphs=False) == {}


def test_how_a_file_beside_graphs_is_cut_depends_on_them(tmp_path):
    write(tmp_path / "weights.bin")
    write(tmp_path / "a.onnx")
    files = find_sources(str(tmp_path)).files
    assert set(sample_keys(files, beside_graphs=True)) == {"a.onnx"}
    assert set(sample_keys(files, beside_graphs=False)) == {"a.onnx", "weights.bin"}


def test_nothing_depends_on_a_file_that_only_looks_the_same(store, tmp_path, monkeypatch):
    path = write(tmp_path / "a" / "model.safetensors")
    store.add(path)
    layout = store.model("models/model.safetensors").layout_ids[0]
    asked = []
    known = Publication.known
    monkeypatch.setattr(Publication, "known", lambda self, ids: asked.extend(ids) or known(self, ids))
    data = bytearray(path.read_bytes())
    data[-5_000] ^= 1
    path.write_bytes(data)
    store.add(path, ref="other", stat_cache=False)
    assert layout not in asked


def test_what_the_store_lost_is_stored_again(store, tmp_path, parsed):
    path = write(tmp_path / "a" / "model.safetensors")
    store.add(path)
    for pack in (tmp_path / "store" / "packs").rglob("*"):
        if pack.is_file():
            pack.unlink()
    os.rename(path.parent, tmp_path / "b")
    with Store(tmp_path / "store") as opened:
        added = opened.add(tmp_path / "b")
        assert added.chunks_new == added.chunks
        assert parsed == ["model.safetensors"] * 2
        opened.get(added.ref, tmp_path / "out")


def test_a_change_while_it_is_read_is_a_conflict(store, tmp_path):
    store.add(write(tmp_path / "a" / "model.safetensors"))
    other = write(tmp_path / "b" / "model.safetensors")

    class Changing(Callback):
        def relative_update(self, inc=1):
            with other.open("ab") as file:
                file.write(b"more")

    with pytest.raises(ConflictError, match="changed while it was read"):
        store.add(other, ref="models/other", callback=Changing())
    assert store.record("models/other") is None


class Progress(Callback):
    """What a progress bar shows in the end."""


def test_an_interrupted_comparison_leaves_no_read_behind(store, tmp_path, monkeypatch):
    """The buffer is the next user's as soon as it is given back."""
    path = write(tmp_path / "a" / "model.safetensors")
    store.add(path)
    reading = []
    given_back = []

    def slowly(*given):
        reading.append(given)
        time.sleep(0.2)
        reading.pop()
        return read_full(*given)

    read_full, give_block = known_content.read_full, known_content.give_block
    monkeypatch.setattr(known_content, "read_full", slowly)
    monkeypatch.setattr(
        known_content, "give_block", lambda buffer: given_back.append(bool(reading)) or give_block(buffer)
    )

    class Interrupted(Callback):
        def relative_update(self, inc=1):
            while not reading:  # The next part is read meanwhile.
                time.sleep(0.001)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add(write(tmp_path / "b" / "model.safetensors"), ref="b", callback=Interrupted())
    assert given_back == [False]
