"""The public interface: what a newcomer guesses works, and errors are those that Python people catch."""

import os
import pickle
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import ml_dtypes
import numpy as np
import pytest
from fakes.model_files import safetensors_bytes
from fakes.stores import commit_inline, model_of, read_folder, write_model

import casstore
from casstore.refs.refs import Refs
from casstore.store.times import nanoseconds, utc

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": ("BF16", (2,), b"\x80\x3f\x00\x40")}


@pytest.fixture
def store(tmp_path):
    with casstore.open(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


@pytest.fixture
def minilm(tmp_path):
    content = model_of(config__json=b"{}", logs__run=b"log", model=safetensors_bytes(WEIGHTS))
    return write_model(content, tmp_path / "minilm")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class TestOpening:
    def test_open_and_the_class_are_one(self, tmp_path):
        with casstore.Store(tmp_path / "s", create=True) as made, casstore.open(tmp_path / "s") as opened:
            assert isinstance(opened, casstore.Store)
            assert opened.store_id == made.store_id

    @pytest.mark.parametrize("place", ["nowhere", "folder"])
    def test_a_store_that_is_not_there(self, tmp_path, place):
        (tmp_path / "folder").mkdir()
        with pytest.raises(casstore.StoreNotFound, match="casstore init") as caught:
            casstore.open(tmp_path / place)
        assert isinstance(caught.value, FileNotFoundError)
        assert isinstance(caught.value, casstore.ConfigError)

    def test_every_public_name_is_there(self):
        for name in casstore.__all__:
            assert getattr(casstore, name) is not None
        assert set(casstore.__all__) <= set(dir(casstore))

    @pytest.mark.parametrize("kind", ["StoreNotFound", "PathNotFound", "RefNotFound", "TensorNotFound"])
    def test_messages_are_readable_and_survive_a_process(self, kind):
        error = getattr(casstore, kind)("No model named 'x'.")
        assert str(error) == "No model named 'x'."
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


class TestNames:
    def test_the_folder_or_file_gives_the_name(self, store, minilm, tmp_path):
        assert store.add(minilm).ref == "models/minilm"
        assert store.add(write(tmp_path / "a.bin", "x")).ref == "models/a.bin"
        assert store.add(tmp_path / "minilm" / "..", exclude=["store/"]).ref == f"models/{tmp_path.name}"

    def test_a_name_is_made_safe(self, store, tmp_path):
        assert store.add(write(tmp_path / "a@b\tc", "x")).ref == "models/a-b-c"

    def test_a_name_that_is_not_text_is_one_for_files_in_a_folder(self, store, tmp_path):
        folder = os.fsencode(tmp_path) + b"/x\xff"
        os.mkdir(folder)
        (tmp_path / os.fsdecode(folder) / "f").write_bytes(b"x")
        assert store.add(os.fsdecode(folder)).ref == "models/x-"

    @pytest.mark.parametrize("name", ["é" * 100, "0" * 64])
    def test_a_name_that_cannot_be_one_gives_way_to_the_id(self, store, tmp_path, name):
        added = store.add(write(tmp_path / name, "x"))
        assert added.ref == f"models/{added.model_id}"

    def test_several_places_have_no_name(self, store, minilm):
        added = store.add({"a": minilm, "b": minilm})
        assert added.ref == f"models/{added.model_id}"

    def test_a_short_name_is_a_models(self, store, minilm):
        assert store.add(minilm, ref="small").ref == "models/small"
        assert store.add(minilm, ref="models/team/small").ref == "models/team/small"
        assert store.add(minilm, ref="tags/best").ref == "tags/best"
        assert store.model("team/small").ref == "models/team/small"
        with pytest.raises(casstore.ConfigError, match="cannot name a model"):
            store.add(minilm, ref="runs/x")
        with pytest.raises(casstore.ConfigError, match="not a ref name"):
            store.add(minilm, ref="tag/x")

    def test_rm_and_undelete_take_the_name_alone(self, store, minilm):
        model_id = store.add(minilm, ref="small").model_id
        assert store.rm("small", dry_run=True) == "models/small"
        assert store.model("small").ref == "models/small"
        assert store.rm("small") == "models/small"
        assert not store.ls()
        assert store.undelete("small").name == "models/small"
        assert store.tag("small", "models/small") == "tags/small"
        with pytest.raises(casstore.RefNotFound, match="ambiguous: give models/small or tags/small"):
            store.rm("small")
        assert store.rm("models/small") == "models/small"
        assert store.rm("small") == "tags/small"
        with pytest.raises(casstore.RefNotFound, match="No ref or model named 'small'"):
            store.rm("small")
        with pytest.raises(casstore.RefNotFound, match="ambiguous"):
            store.undelete("small")
        with pytest.raises(casstore.RefNotFound, match=r"is a model id.*ls --model"):
            store.rm(model_id)
        with pytest.raises(casstore.ConfigError, match="must not contain '@'"):
            store.rm("no@name")

    def test_a_closed_store_says_so(self, store, minilm, tmp_path):
        store.add(minilm)
        store.close()
        store.close()
        for verb in (
            store.ls, store.stats, store.gc, store.check, store.du, store.repair, lambda: store.add(minilm),
            lambda: store.get("minilm", tmp_path / "out"), lambda: store.rm("minilm"), lambda: store.log("minilm"),
            lambda: store.tag("x", "minilm"), lambda: store.show("minilm"), lambda: store.push(tmp_path / "other", create=True),
            lambda: store.open_file("minilm", "x"), lambda: store.undelete("minilm"), lambda: store.pin("minilm"),
        ):  # fmt: skip
            with pytest.raises(casstore.ConfigError, match="is closed"):
                verb()
        assert str(tmp_path) in repr(store)

    def test_a_name_by_default_never_takes_another_models(self, store, tmp_path):
        first = store.add(write(tmp_path / "a" / "m", "one"))
        assert store.add(tmp_path / "a" / "m").ref == first.ref
        with pytest.raises(casstore.NameTaken, match=r"models/m names another model.*`ref=`.*--ref"):
            store.add(write(tmp_path / "b" / "m", "two"))
        assert store.model("m").model_id == first.model_id
        store.add(tmp_path / "b" / "m", ref="m")
        assert store.model("m").model_id != first.model_id

    def test_a_deleted_name_is_free(self, store, tmp_path):
        store.rm(store.add(write(tmp_path / "a" / "m", "one")).ref)
        assert store.add(write(tmp_path / "b" / "m", "two")).ref == "models/m"

    @pytest.mark.parametrize("moment", ["draft", "put"])
    def test_a_name_that_is_taken_during_the_add(self, store, tmp_path, monkeypatch, moment):
        """Before this add drafts its record, or between its draft and its record."""
        commit_inline(monkeypatch)
        other = write(tmp_path / "other", "other")
        call = getattr(store._refs, moment)

        def after_the_other(*arguments, **named):
            monkeypatch.setattr(store._refs, moment, call)
            with casstore.open(store.backend.url, durability="none") as there:
                there.add(other, ref="models/m")
            return call(*arguments, **named)

        monkeypatch.setattr(store._refs, moment, after_the_other)
        with pytest.raises(casstore.NameTaken):
            store.add(write(tmp_path / "m", "mine"))


class TestRefs:
    def test_rows_are_public_values(self, store, minilm):
        before = datetime.now(timezone.utc)
        base = store.add(minilm, ref="base")
        store.add(minilm, ref="a", base="base", metadata={"pass": "fp16"})
        rows = store.ls("models/")
        assert [row.name for row in rows] == ["models/a", "models/base"]
        row = rows[0]
        assert (row.model_id, row.base, row.metadata) == (base.model_id, base.model_id, {"pass": "fp16"})
        assert before - timedelta(seconds=1) < row.time <= datetime.now(timezone.utc)
        assert row.time.tzinfo is timezone.utc
        assert store.ls(where={"pass": "fp16"}) == store.ls(base="base") == [row]
        assert store.ls(since=row.time) == store.ls(limit=1) == [row]
        assert row not in store.ls(until=row.time)
        assert store.ls(model="base") == rows

    def test_runs_have_no_model_id(self, store):
        store.put_manifest("runs/r", b"run")
        assert [(row.name, row.model_id) for row in store.ls()] == [("runs/r", "")]

    def test_the_log_of_a_ref(self, store, tmp_path):
        ids = [store.add(write(tmp_path / name, name), ref="m").model_id for name in ("a", "b")]
        store.rm("models/m")
        assert [row.model_id for row in store.log("models/m")] == ["", ids[1], ids[0]]
        with pytest.raises(casstore.RefNotFound):
            store.log("models/never")

    def test_not_found_is_a_key_error(self, store):
        with pytest.raises(KeyError) as caught:
            store.model("nothing")
        assert str(caught.value).startswith("No ref or model named 'nothing'.")
        for use in (store.files, store.show, store.lineage, store.log, store.rm, store.tensors):
            with pytest.raises(casstore.RefNotFound):
                use("models/nothing")

    def test_what_is_shown(self, store, minilm):
        added = store.add(minilm, metadata={"k": "v"})
        shown, model = store.show("minilm"), store.model("minilm")
        assert shown.ref == model.ref == "models/minilm"
        assert shown.model_id == added.model_id
        assert shown.time == model.time == store.ls()[0].time
        assert shown.metadata == model.metadata == {"k": "v"}
        assert store.lineage("minilm").model.time == model.time

    def test_a_clock_may_claim_any_time(self):
        assert utc(0) == datetime(1970, 1, 1, tzinfo=timezone.utc)
        assert utc(1 << 70).year == 9999
        assert utc(-(1 << 70)).year == 1
        assert nanoseconds(utc(1_700_000_000_123_456_000)) == 1_700_000_000_123_456_000


class TestFiles:
    def test_files_and_their_bytes(self, store, minilm):
        store.add(minilm)
        files = store.files("minilm")
        assert [(file.path, file.size, file.executable) for file in files[:2]] == [
            ("config/json", 2, False),
            ("logs/run", 3, False),
        ]
        assert casstore.Store.cat(store, "minilm", "config/json") == b"{}"
        assert len(files[0].file_id) == 64
        for use in (store.cat, store.open_file):
            with pytest.raises(FileNotFoundError, match="has no file 'none'"):
                use("minilm", "none")

    @pytest.mark.parametrize(
        ("patterns", "expected"),
        [
            ((None, None), {"config/json", "logs/run", "model"}),
            (("*json", None), {"config/json"}),
            ((["*json", "mod*"], None), {"config/json", "model"}),
            ((None, "logs/"), {"config/json", "model"}),
            ((["*"], ["logs/*", "model"]), {"config/json"}),
            ((None, ["*o*"]), None),
            (("nothing", None), None),
        ],
    )
    def test_patterns_as_in_huggingface_hub(self, store, minilm, tmp_path, patterns, expected):
        store.add(minilm)
        out = tmp_path / "out"
        if expected is None:
            with pytest.raises(casstore.PathNotFound, match="No file of models/minilm matches"):
                store.get("minilm", out, include=patterns[0], exclude=patterns[1])
            assert not out.exists()
            return
        store.get("minilm", out, include=patterns[0], exclude=patterns[1])
        assert set(read_folder(out).files) == expected

    def test_one_file(self, store, minilm, tmp_path):
        store.add(minilm)
        place = str(tmp_path / "new" / "name")
        assert store.get_file("minilm", "config/json", place) == place
        assert store.get_file("minilm", "logs/run", tmp_path) == str(tmp_path / "run")
        assert store.get_file("minilm", "logs/run", f"{tmp_path}/also/") == f"{tmp_path}/also/run"
        assert (tmp_path / "new" / "name").read_bytes() == b"{}"
        with pytest.raises(casstore.ConfigError, match="is there already"):
            store.get_file("minilm", "logs/run", place)
        store.get_file("minilm", "logs/run", place, force=True)
        assert (tmp_path / "new" / "name").read_bytes() == b"log"
        assert set(read_folder(tmp_path / "new").files) == {"name"}
        with pytest.raises(FileNotFoundError):
            store.get_file("minilm", "none", tmp_path / "x")

    def test_nothing_to_add_is_a_file_not_found(self, store, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            store.add(tmp_path / "none")


class TestTensors:
    def test_the_shard_is_found(self, store, tmp_path):
        arrays = [np.arange(5, dtype=np.float32) + number for number in range(3)]
        shards = {
            f"{number}.safetensors": safetensors_bytes({f"w{number}": arrays[number]}) for number in range(3)
        }
        content = model_of()
        content.files.update({path: (data, False) for path, data in shards.items()})
        content.files["notes.txt"] = (b"w1", False)
        store.add(write_model(content, tmp_path / "sharded"))
        for number, array in enumerate(arrays):
            assert np.array_equal(store.read_tensor("sharded", f"w{number}"), array)
        assert [(t.name, t.dtype, t.shape, t.file) for t in store.tensors("sharded")] == [
            (f"w{number}", "F32", (5,), f"{number}.safetensors") for number in range(3)
        ]
        with pytest.raises(KeyError) as caught:
            store.read_tensor("sharded", "w3")
        assert str(caught.value).startswith("models/sharded has no tensor 'w3'.")
        with pytest.raises(casstore.TensorNotFound):
            store.read_tensor("sharded", "w1", file="0.safetensors")
        with pytest.raises(casstore.PathNotFound):
            store.read_tensor("sharded", "w1", file="3.safetensors")

    def test_a_name_in_two_files_is_an_error(self, store, tmp_path):
        content = model_of(a=safetensors_bytes(WEIGHTS), b=safetensors_bytes(WEIGHTS))
        store.add(write_model(content, tmp_path / "twice"))
        with pytest.raises(casstore.ConfigError, match=r"2 files of models/twice.*: a, b\..*file="):
            store.read_tensor("twice", "w")
        assert np.array_equal(store.read_tensor("twice", "w", file="b"), WEIGHTS["w"])

    def test_bf16_is_labelled_if_that_is_installed(self, store, minilm, monkeypatch):
        store.add(minilm)
        assert {tensor.name: tensor.dtype for tensor in store.tensors("minilm")} == {"w": "F32", "b": "BF16"}
        labelled = store.read_tensor("minilm", "b")
        assert labelled.dtype == ml_dtypes.bfloat16
        assert labelled.astype(np.float32).tolist() == [1.0, 2.0]
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        raw = store.read_tensor("minilm", "b")
        assert raw.dtype == np.uint16
        assert raw.tolist() == [0x3F80, 0x4000]


class TestOtherStores:
    def test_push_and_pull_take_a_path_or_a_store(self, store, minilm, tmp_path):
        store.add(minilm)
        store.tag("best", "minilm")
        with pytest.raises(FileNotFoundError):
            store.push(tmp_path / "there")
        assert store.push(str(tmp_path / "there"), "models/minilm", create=True).refs == ("models/minilm",)
        with casstore.open(tmp_path / "there") as there:
            assert store.push(there).refs == ("tags/best",)
            assert there.check(read_data=True).ok
        with casstore.open(tmp_path / "third", create=True) as third:
            assert third.pull(tmp_path / "there", ["tags/best"]).refs == ("tags/best",)
            assert third.sync(store).equal == ("tags/best",)
            assert third.model("best").model_id == store.model("minilm").model_id

    def test_the_whole_store(self, store, minilm):
        store.add(minilm)
        assert store.check(read_data=True).ok
        assert not store.leftovers()
        assert store.stats().models == 1


class TestWholeStores:
    def test_sync_takes_a_path_as_push_does(self, store, minilm, tmp_path):
        store.add(minilm)
        casstore.open(tmp_path / "other", create=True).close()
        assert store.sync(tmp_path / "other").refs == ("models/minilm",)

    def test_gc_frees_what_it_says_beforehand(self, store, minilm):
        store.add(minilm)
        store.rm("models/minilm")
        told = store.gc(casstore.GcPolicy(orphans_now=True), dry_run=True)
        assert told.bytes_freed > 0
        assert store.stats().packs == 1
        report = store.gc(casstore.GcPolicy(orphans_now=True))
        assert (report.bytes_freed, report.packs_deleted) == (told.bytes_freed, 1)
        assert store.stats().packs == 0


@pytest.mark.parametrize("lower", [False, True])
def test_of_two_adds_that_give_one_default_name_the_one_that_returned_keeps_it(
    store, minilm, tmp_path, monkeypatch, lower
):
    """The other one drafted before, and puts its record afterwards, under the same number."""
    write(tmp_path / "elsewhere" / "minilm" / "f", "another model")
    put = Refs.put

    def late(self, record):
        monkeypatch.setattr(Refs, "put", put)
        with casstore.open(tmp_path / "store") as other:
            first = other.add(tmp_path / "elsewhere" / "minilm")
        [head] = self.heads("models/minilm").records
        order = bytes(16) if lower else b"\xff" * 16
        record = replace(record, write_id=order)
        assert (record.seq, record.order < head.order) == (head.seq, lower)
        done = put(self, record)
        assert first.ref == record.name
        return done

    monkeypatch.setattr(Refs, "put", late)
    with pytest.raises(casstore.NameTaken):
        store.add(minilm)
    assert store.resolve("models/minilm").model_id == store.content_id(str(tmp_path / "elsewhere" / "minilm"))


def test_a_name_that_is_moved_after_an_add_was_the_adds_own(store, minilm, monkeypatch):
    heads = Refs.heads

    def moved(self, name):
        found = heads(self, name)
        if found.records and found.records[-1].seq == 1:
            monkeypatch.setattr(Refs, "heads", heads)
            store.add(f"{minilm}/config", ref="minilm")
        return heads(self, name)

    monkeypatch.setattr(Refs, "heads", moved)
    assert store.add(minilm).ref == "models/minilm"
