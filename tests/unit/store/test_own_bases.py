"""What one add holds twice, a model beside what was made of it, is stored once."""

from __future__ import annotations

import pytest
from fakes.families import base_tensors, encodings, tuned, write_family_model
from fakes.folders import tree_of
from fakes.ladders import blocks_of
from fakes.model_files import gguf_bytes, onnx_bytes, safetensors_bytes

from casstore import Store
from casstore.machine.state import MachineState
from casstore.store.adding.bases.files.own_files import OwnChunks, bases_first
from casstore.store.adding.exclusion import Exclusion
from casstore.store.adding.sources import list_sources

BASE = base_tensors()
RAW = sum(array.nbytes for array in BASE.values())


def cast(tensors):
    return {name: array.astype("<f2") for name, array in tensors.items()}


def export(tensors):
    """Matrices are transposed, and have other names."""
    return {f"t_{number}": array.T.copy() for number, array in enumerate(tensors.values())}


FORMS = {
    "cast": ("model.fp16.safetensors", lambda: safetensors_bytes(cast(BASE))),
    "export": ("onnx/model.onnx", lambda: onnx_bytes(export(BASE))),
    "copy": ("copy.gguf", lambda: gguf_bytes(BASE)),
    "quants": (
        "q8.gguf",
        lambda: gguf_bytes({n: blocks_of("Q8_0", a) for n, a in BASE.items() if a.ndim == 2}),
    ),
}


@pytest.fixture
def folder(tmp_path):
    return write_family_model(tmp_path / "model", BASE)


def put(folder, name, data):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def made(tmp_path, name="store"):
    return Store(tmp_path / name, create=True, durability="none")


def assert_kept(tmp_path, store, folder):
    store.get("model", tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(folder)
    assert store.check(read_data=True).ok


@pytest.mark.parametrize("form", FORMS)
def test_a_model_beside_what_was_made_of_it_is_stored_once(tmp_path, folder, form):
    name, make = FORMS[form]
    with made(tmp_path) as store, made(tmp_path, "alone") as alone:
        before = alone.add(folder, ref="model").bytes_stored
        put(folder, name, make())
        added = store.add(folder, ref="model")
        assert added.bytes_stored < before + 0.05 * (added.bytes_total - RAW) + 8000
        assert_kept(tmp_path, store, folder)


def test_checkpoints_of_one_folder_follow_from_the_first(tmp_path):
    tensors = BASE
    for step in (9, 10, 11):
        write_family_model(tmp_path / "run" / f"checkpoint-{step}", tensors)
        tensors = tuned(tensors, step, 1e-6)
    with made(tmp_path) as store:
        added = store.add(tmp_path / "run", ref="model")
        assert added.bytes_stored < 0.6 * added.bytes_total
        ranks = [int(store.objects.locate(layout.ids).rows["rank"].max()) for layout in _weights(store)]
        # In the tree's order, that of names: 10, 11, 9.
        assert ranks[2] == 0 < min(ranks[:2])
        assert_kept(tmp_path, store, tmp_path / "run")


def _weights(store):
    return [layout for layout in store.model("model").layouts if layout.spans]


def test_files_that_may_be_bases_are_added_first_and_others_stay_where_they_are(tmp_path, folder):
    put(folder, "checkpoint-10.safetensors", safetensors_bytes(BASE))
    put(folder, "checkpoint-9.safetensors", safetensors_bytes(BASE))
    put(folder, "a.safetensors", safetensors_bytes(cast(BASE)))
    put(folder, "b.txt", b"the same words again, " * 10_000)
    files = list_sources(folder, follow=True, store=None, exclusion=Exclusion()).files
    order = [file.path for file, _ in bases_first([(file, None) for file in files])]
    assert order == [
        "checkpoint-9.safetensors",
        "b.txt",
        "checkpoint-10.safetensors",
        "model.safetensors",
        "config.json",
        "a.safetensors",
    ]


def test_a_merged_file_and_its_shards_are_stored_once(tmp_path, folder):
    names = sorted(BASE)
    for number, part in enumerate((names[:3], names[3:])):
        put(folder, f"model-{number}.safetensors", safetensors_bytes({name: BASE[name] for name in part}))
    with made(tmp_path) as store:
        added = store.add(folder, ref="model")
        assert added.bytes_stored < 1.05 * RAW
        assert_kept(tmp_path, store, folder)


def test_a_fine_tune_and_its_cast_follow_from_the_base_and_from_each_other(tmp_path, folder):
    after = write_family_model(tmp_path / "after", tuned(BASE))
    put(after, "model.fp16.safetensors", safetensors_bytes(cast(tuned(BASE))))
    with made(tmp_path) as store:
        store.add(folder, ref="base")
        added = store.add(after, ref="model", base="base")
        assert encodings(store, "model")["delta"] > 0.9 * added.bytes_new
        shares = {
            layout.size: store.objects.locate(layout.ids).rows["stored"].sum() for layout in _weights(store)
        }
        assert shares[min(shares)] < 0.02 * min(shares)
        assert_kept(tmp_path, store, after)


def test_a_file_that_changes_after_it_was_read_is_no_base(tmp_path, folder, monkeypatch):
    put(folder, FORMS["cast"][0], FORMS["cast"][1]())
    read = OwnChunks.read

    def changed(self, ids):
        _, others = read(self, ids)
        return [], others

    monkeypatch.setattr(OwnChunks, "read", changed)
    with made(tmp_path) as store:
        store.add(folder, ref="model")
        assert "delta" not in encodings(store, "model")
        assert_kept(tmp_path, store, folder)


def test_bases_of_one_add_are_found_where_the_machine_keeps_nothing(tmp_path, folder):
    put(folder, FORMS["cast"][0], FORMS["cast"][1]())
    with made(tmp_path) as store:
        store.machine = MachineState(None)
        store.add(folder, ref="model")
        assert encodings(store, "model")["delta"] > 0.9 * RAW / 2
        assert_kept(tmp_path, store, folder)


@pytest.mark.parametrize("base", [None, "base"])
@pytest.mark.parametrize("way", ["as it is", "forgotten", "removed and collected"])
def test_a_file_that_the_store_has_is_a_base_for_those_beside_it(tmp_path, folder, base, way):
    with made(tmp_path) as store:
        store.add(folder, ref="base")
        if way == "forgotten":
            store.machine.run(lambda state: state.execute("DELETE FROM sketches"), None, writes=True)
        if way == "removed and collected":
            store.rm("base")
            store.gc()
        put(folder, "tuned.safetensors", safetensors_bytes(tuned(BASE, 1, 1e-3)))
        if base is None or way != "removed and collected":
            added = store.add(folder, ref="model", base=base, stat_cache=False)
            own = RAW if way == "removed and collected" else 0
            assert added.bytes_stored < own + 0.8 * RAW
            assert_kept(tmp_path, store, folder)
