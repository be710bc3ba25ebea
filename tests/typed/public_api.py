"""What a type checker sees of the public interface: mypy checks this file, and nothing runs it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, BinaryIO

from numpy.typing import NDArray
from typing_extensions import assert_type

import casstore


def opening() -> None:
    with casstore.open("store", create=True, durability="none") as store:
        assert_type(store, casstore.Store)
    with casstore.Store("s3://bucket/store", read_only=True, anon=True) as other:
        assert_type(other, casstore.Store)
    assert_type(other.store_id, str)


def models(store: casstore.Store) -> None:
    added = store.add("minilm", base="bert", metadata={"pass": "fp16"}, exclude=["*.log"])
    assert_type(added, casstore.AddResult)
    assert_type((added.ref, added.model_id, added.bytes_stored), tuple[str, str, int])
    assert_type(store.get("minilm", "copy", include="*.json", exclude=["logs/"]), casstore.Model)
    assert_type(store.get_file("minilm", "config.json", "copy/"), str)
    assert_type(store.tag("best", "minilm"), str)
    assert_type((store.pin("minilm"), store.unpin("minilm")), tuple[str, list[str]])
    assert_type(store.rm("minilm", dry_run=True), str)
    assert_type(store.undelete("models/minilm"), casstore.RefInfo)
    store.mark_private()
    assert_type(store.is_private, bool)
    model = store.model("minilm")
    assert_type((model.ref, model.base, model.time), tuple[str, str | None, datetime])
    assert_type(model.metadata, dict[str, Any])
    assert_type(store.content_id("minilm"), str)


def reading(store: casstore.Store) -> None:
    assert_type(store.files("minilm"), list[casstore.FileInfo])
    assert_type(store.files("minilm")[0].file_id, str)
    tensor = store.tensors("minilm")[0]
    assert_type(tensor, casstore.TensorInfo)
    assert_type((tensor.name, tensor.dtype, tensor.shape), tuple[str, str, tuple[int, ...]])
    assert_type(store.read_tensor("minilm", "wte", file="model.safetensors"), NDArray[Any])
    assert_type(store.cat("minilm", "config.json"), bytes)
    assert_type(store.open_file("minilm", "config.json"), BinaryIO)


def refs(store: casstore.Store) -> None:
    rows = store.ls("models/", where={"pass": "fp16"}, limit=3)
    assert_type(rows, list[casstore.RefInfo])
    row = rows[0]
    assert_type((row.name, row.model_id, row.base), tuple[str, str, str | None])
    assert_type((row.time, row.writer), tuple[datetime, str])
    assert_type(store.log("minilm"), list[casstore.RefInfo])
    shown = store.show("minilm")
    assert_type(shown, casstore.ModelDescription)
    assert_type((shown.ref, shown.size, shown.time), tuple[str, int, datetime])
    assert_type(store.lineage("minilm"), casstore.Lineage)
    assert_type(store.lineage("minilm").model.time, datetime)


def whole_stores(store: casstore.Store, other: casstore.Store) -> None:
    assert_type(store.check(read_data=True), casstore.CheckReport)
    assert_type(store.check().ok, bool)
    assert_type(store.repair(), casstore.RepairReport)
    assert_type(store.stats(), casstore.StoreStats)
    assert_type(store.leftovers(), casstore.Leftovers)
    collection = casstore.plan_gc(store, casstore.GcPolicy(max_size=50 * 10**9, unused_for=14 * 86400.0))
    assert_type((collection.refs, collection.notes), tuple[tuple[str, ...], tuple[str, ...]])
    assert_type(casstore.execute_gc(store, collection).refs_deleted, list[str])
    assert_type(store.du("models/", depth=2), casstore.Usage)
    assert_type(store.push("backup", "models/minilm", create=True), casstore.SyncReport)
    assert_type(store.pull(other, ["minilm"]), casstore.SyncReport)
    assert_type(store.sync(other), casstore.SyncReport)
    plan = casstore.plan_sync(store, other)
    assert_type((plan, plan.bytes_stored), tuple[casstore.SyncPlan, int])
    assert_type(casstore.execute_sync(plan), casstore.SyncReport)


def errors(store: casstore.Store) -> Sequence[str]:
    try:
        store.model("minilm")
    except casstore.RefNotFound as error:
        assert_type(error, casstore.RefNotFound)
        missing: KeyError = error
        return [str(missing)]
    except casstore.StoreNotFound as error:
        gone: FileNotFoundError = error
        return [str(gone)]
    return []
