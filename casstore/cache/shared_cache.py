"""SharedCache: a store on any fsspec URL through which machines share models, runs and evaluations."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from casstore.api.store import Store
from casstore.backend.location import parse_location
from casstore.cache.model_cache import model_ref
from casstore.cache.mounts import unmounted
from casstore.cache.olive.document import collect
from casstore.cache.run_cache import RunCacheManager, new_run, run_json, run_ref
from casstore.cache.transfer import ModelFileTransfer
from casstore.errors import ConfigError, RefNotFound, StoreNotFound
from casstore.machine.local_names import local_path
from casstore.ops.sync import execute, plan_sync

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fsspec import Callback

    from casstore.format.record import Record
    from casstore.ops.sync import SyncReport


class SharedCache:
    """A shared store; it is opened, and the network used, on first use. Safe in threads.

    Reading makes nothing: a place without a store counts as empty. The first thing that is stored makes the
    store, in a folder or bucket. `known` is a file in which this machine notes which store
    it found: if there is none now, a disk is probably not mounted, and no other store is made.

    `account_or_url` is a URL or path, or with `container` an account of Azure Blob Storage. `read_only` takes
    from it only. `shared="group"` gives the folder's group access where this makes a store in a folder; an existing store
    stays as it is. `storage_options` go to its file system. Raises ConfigError for a URL that no store can
    have, such as one with a user or a secret in it.
    """

    def __init__(
        self,
        account_or_url: str,
        container: str | None = None,
        *,
        read_only: bool = False,
        shared: Literal["group"] | None = None,
        known: str | os.PathLike[str] | None = None,
        **storage_options: Any,
    ) -> None:
        url = (
            f"https://{account_or_url}.blob.core.windows.net/{container}"
            if container
            else os.path.expanduser(str(account_or_url))
        )
        parse_location(url)  # Before anything displays or logs it.
        self.url = url
        self.read_only = read_only
        self._shared = shared
        self._known = Path(known) if known is not None else None
        self._storage_options = storage_options
        self._lock = threading.Lock()
        self._remote: Store | None = None

    def __repr__(self) -> str:
        return f"SharedCache({self.url!r})"

    @property
    def remote(self) -> Store:
        """The store itself; made if there is none yet, unless this cache is read-only.

        Raises BackendError, or ConfigError where there is none and none is made.
        """
        with self._lock:
            if self._remote is None:
                try:
                    self._remote = self._open(create=False)
                except StoreNotFound as error:
                    if self.read_only:
                        raise
                    self._check_place(error)
                    self._remote = self._open(create=True)
                self._remember(self._remote.store_id)
            return self._remote

    def existing(self) -> Store | None:
        """Return the store, None if nobody has made one yet; nothing is made.

        Raises BackendError, or ConfigError where this machine knows that there was one.
        """
        with self._lock:
            if self._remote is None:
                try:
                    self._remote = self._open(create=False)
                except StoreNotFound as error:
                    self._check_place(error)
                    return None
                self._remember(self._remote.store_id)
            return self._remote

    def check_place(self) -> None:
        """Raise ConfigError for a local place whose parent is missing: the store may exist on a disk that is not mounted."""
        location = parse_location(self.url)
        parent = os.path.dirname(os.path.abspath(location.target))
        if location.kind == "local" and not os.path.isdir(parent):
            raise ConfigError(
                f"There is no directory {parent} for the shared cache {self.url}: mount its disk, or correct the URL."
            )

    def _open(self, *, create: bool) -> Store:
        return Store(
            self.url, create=create, read_only=self.read_only, shared=self._shared, **self._storage_options
        )

    def _check_place(self, error: StoreNotFound) -> None:
        """Raise ConfigError if there is no store because a disk is not mounted."""
        known = self._read_known()
        if known is not None:
            # Invariant 8: an unmounted disk is not an empty store, and must not become one.
            raise ConfigError(
                f"{self.url} held the store {known[:16]}… and does not now. Is its disk mounted? If that store was "
                f"removed on purpose, make another one: casstore init {self.url}"
            ) from error
        location = parse_location(self.url)
        missing = unmounted(location.target) if location.kind == "local" else None
        if missing is not None:
            raise ConfigError(
                f"{self.url} lies on {missing}, which is not mounted, though this machine has a disk for it."
            ) from error

    def _read_known(self) -> str | None:
        try:
            return (
                self._known.read_text(encoding="utf-8").strip() or None if self._known is not None else None
            )
        except (OSError, ValueError):
            return None  # Invariant 13: without a note nothing is known.

    def _remember(self, store_id: str) -> None:
        if self._known is None or self._read_known() == store_id:
            return
        temporary = self._known.with_name(f"{self._known.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(
            OSError
        ):  # Invariant 13: without the note, an unmounted disk may go unnoticed.
            temporary.write_text(store_id, encoding="utf-8")
            os.replace(temporary, self._known)  # Whole or not at all, as in invariant 2.

    def close(self) -> None:
        """Release connections; the next use opens them again."""
        with self._lock:
            held, self._remote = self._remote, None
        if held is not None:
            held.close()

    def store(
        self, source: Store, refs: Sequence[str], *, overwrite: bool = False, callback: Callback | None = None
    ) -> SyncReport:
        """Copy refs, and what the shared store lacks of their objects, from `source`.

        A ref that has another value there, which `source` has not seen, is left alone; with `overwrite`, it gets ours
        on top, and both are kept.
        """
        return execute(plan_sync(source, self.remote, refs, overwrite=overwrite), callback=callback)

    def retrieve(
        self, dest: Store, refs: Sequence[str], *, overwrite: bool = False, callback: Callback | None = None
    ) -> SyncReport:
        """Copy refs, and what `dest` lacks of their objects, from the shared store; `overwrite` as for `store`."""
        source = self.existing()
        if source is None:
            raise RefNotFound(f"{self.url} has no {', '.join(refs)}: nothing was shared there yet.")
        return execute(plan_sync(source, dest, refs, overwrite=overwrite), callback=callback)

    def record(self, ref: str) -> Record | None:
        """Return the current record of one ref, None if there is none."""
        store = self.existing()
        return store.record(ref) if store is not None else None

    def exists(self, ref: str) -> bool:
        """Say whether a ref is there, by its exact name. An outage raises an error."""
        return self.record(ref) is not None

    def delete(self, ref: str) -> None:
        """Delete one ref. Raises RefNotFound if there is none."""
        store = self.existing()
        if store is None:
            raise RefNotFound(f"{self.url} has no {ref}: nothing was shared there yet.")
        store.rm(ref)

    def list(self, prefix: str = "") -> dict[str, Record]:
        """Return the current record of every ref whose name starts with `prefix`."""
        store = self.existing()
        return store.refs(prefix) if store is not None else {}

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
            raise RefNotFound(f"{self.url} has no model named {model_id!r}.")
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
        store = self.existing()
        run = RunCacheManager(store).load_run(model_id) if store is not None else None
        if run is None:
            return {}
        _write_json(run_json_path, run_json(run))
        return run_json(run)

    def upload_model_files(self, model_path: str | None, ref: str) -> None:
        """Add a file or folder as the model `ref`; a model on a hub, which has no files here, is left alone."""
        self._transfer().upload_model_files(model_path, ref if ref.startswith("models/") else f"models/{ref}")

    def exist_in_shared_cache(self, name: str) -> bool:
        """Say whether a model, or a ref, is there by this exact name.

        `<id>/model.json` and `<id>/run.json` mean a model and a run, as Olive's callers expect.
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
