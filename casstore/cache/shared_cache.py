"""SharedCache: a store elsewhere, on any fsspec URL, that machines share models, runs and evaluations through."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any, Literal

from casstore.backend.location import parse_location
from casstore.cache.document import collect
from casstore.cache.model_cache import model_ref
from casstore.cache.run_cache import RunCacheManager, new_run, run_json, run_ref
from casstore.cache.transfer import ModelFileTransfer
from casstore.errors import RefNotFound
from casstore.ops.sync import execute, plan_sync
from casstore.store.local_names import local_path
from casstore.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fsspec import Callback

    from casstore.format.record import Record
    from casstore.ops.sync import SyncReport


class SharedCache:
    """A shared store; it is opened, and the network touched, with the first question. Safe in threads.

    `account_or_url` is a URL or path, or with `container` an account of Azure Blob Storage. `readonly` takes
    from it only. `shared="group"` lets the folder's group in where this makes a store in a folder; what is there
    stays as it is. `storage_options` go to its file system. Raises ConfigError for a URL that no store can
    have, one with a user or a secret in it above all.
    """

    def __init__(
        self,
        account_or_url: str,
        container: str | None = None,
        *,
        readonly: bool = False,
        shared: Literal["group"] | None = None,
        **storage_options: Any,
    ) -> None:
        url = (
            f"https://{account_or_url}.blob.core.windows.net/{container}"
            if container
            else str(account_or_url)
        )
        parse_location(url)  # Before anything shows or logs it.
        self.url = url
        self.readonly = readonly
        self._shared = shared
        self._storage_options = storage_options
        self._lock = threading.Lock()
        self._remote: Store | None = None

    def __repr__(self) -> str:
        return f"SharedCache({self.url!r})"

    @property
    def remote(self) -> Store:
        """The store itself; made if there is none yet, unless this cache is read-only. Raises BackendError."""
        with self._lock:
            if self._remote is None:
                self._remote = Store.open(
                    self.url,
                    create=not self.readonly,
                    readonly=self.readonly,
                    shared=self._shared,
                    **self._storage_options,
                )
            return self._remote

    def close(self) -> None:
        """Release connections; the next question opens them again."""
        with self._lock:
            held, self._remote = self._remote, None
        if held is not None:
            held.close()

    def store(
        self, source: Store, refs: Sequence[str], *, overwrite: bool = False, callback: Callback | None = None
    ) -> SyncReport:
        """Copy refs, and what the shared store lacks of their objects, from `source`.

        A ref that has another value there, unseen by `source`, is left alone: with `overwrite`, it gets ours
        on top, and both are kept.
        """
        return execute(plan_sync(source, self.remote, refs, overwrite=overwrite), callback=callback)

    def retrieve(
        self, dest: Store, refs: Sequence[str], *, overwrite: bool = False, callback: Callback | None = None
    ) -> SyncReport:
        """Copy refs, and what `dest` lacks of their objects, from the shared store; `overwrite` as for `store`."""
        return execute(plan_sync(self.remote, dest, refs, overwrite=overwrite), callback=callback)

    def record(self, ref: str) -> Record | None:
        """Return the current record of one ref, None if there is none."""
        return self.remote.record(ref)

    def exists(self, ref: str) -> bool:
        """Say whether a ref is there, by its exact name. An outage raises, it is not an answer."""
        return self.remote.record(ref) is not None

    def delete(self, ref: str) -> None:
        """Delete one ref. Raises RefNotFound if there is none."""
        self.remote.delete_ref(ref)

    def list(self, prefix: str = "") -> dict[str, Record]:
        """Return the current record of every ref whose name starts with `prefix`."""
        return self.remote.refs(prefix)

    def cache_model(self, model_id: str, model_json: dict[str, Any]) -> None:
        """Add a model config with its files straight from where they are."""
        self._transfer().upload_model(
            collect(model_json), model_ref(model_id), metadata={"type": str(model_json.get("type", ""))}
        )

    def load_model(self, model_id: str, model_json_path: str | os.PathLike[str]) -> dict[str, Any] | None:
        """Write a model's config, its files left where they are, to `model_json_path`; None if there is none.

        The config has `shared_cache` set, and paths relative to the model: `download_model` makes it usable.
        """
        record = self.record(model_ref(model_id))
        document = self._transfer().read_config(record) if record is not None else None
        if document is None:
            return None
        model = document.model
        model.setdefault("config", {})["shared_cache"] = True
        _write_json(model_json_path, model)
        return model

    def download_model(self, model_config: Any, model_id: str, dest: str | os.PathLike[str]) -> Any:
        """Write a model's files below `dest`; return `model_config` with its paths there.

        `model_config` is a map, or an object whose `config` is one. Raises RefNotFound if there is none.
        """
        record = self.record(model_ref(model_id))
        if record is None:
            raise RefNotFound(f"{self.url} holds no model called {model_id!r}.")
        target = os.path.join(os.path.abspath(dest), "model")
        document = self._transfer().download_model(record, target)
        assert document is not None
        located = document.located(lambda path: local_path(target, path))
        return replace_config(model_config, located)

    def cache_run(self, model_id: str, run_json_path: str | os.PathLike[str]) -> None:
        """Record the run that made a cached model, from the file in which Olive keeps it."""
        with open(run_json_path, "rb") as file:
            value = json.loads(file.read())
        output = self.record(model_ref(model_id))
        runs = RunCacheManager(self.remote)
        key = runs.key(
            str(value.get("pass_name", "")),
            value.get("pass_config"),
            input_model=f"name:{value.get('input_model_id', '')}",
            accelerator=value.get("accelerator_spec"),
        )
        runs.cache_run(new_run(model_id, key, value, output=output.target if output is not None else None))

    def load_run(self, model_id: str, run_json_path: str | os.PathLike[str]) -> dict[str, Any]:
        """Write the run that made a model to `run_json_path`, as Olive does, and return it; {} if there is none."""
        run = RunCacheManager(self.remote).load_run(model_id)
        if run is None:
            return {}
        _write_json(run_json_path, run_json(run))
        return run_json(run)

    def upload_model_files(self, model_path: str | None, ref: str) -> None:
        """Add a file or folder as the model `ref`; what has no files here, a model on a hub, is left alone."""
        self._transfer().upload_model_files(model_path, ref if ref.startswith("models/") else f"models/{ref}")

    def exist_in_shared_cache(self, name: str) -> bool:
        """Say whether a model, or a ref, is there by this exact name.

        `<id>/model.json` and `<id>/run.json` mean a model and a run, as they do to Olive's callers.
        """
        first, slash, rest = name.partition("/")
        if not slash or rest == "model.json":
            return self.exists(model_ref(first))
        return self.exists(run_ref(first) if rest == "run.json" else name)

    def _transfer(self) -> ModelFileTransfer:
        return ModelFileTransfer(self.remote)


def replace_config(model_config: Any, located: dict[str, Any]) -> Any:
    """Put the paths of `located` into a model config, which is a map or has one; return it."""
    config = model_config["config"] if isinstance(model_config, dict) else model_config.config
    config.clear()
    config.update(located.get("config", {}))
    return model_config


def _write_json(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=4)
