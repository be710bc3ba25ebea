"""SharedStore: a store on any fsspec URL through which machines share models, runs and evaluations."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from casstore.api.store import Store
from casstore.backend.location import parse_location
from casstore.cache.shared.mounts import unmounted
from casstore.cache.views import write_file
from casstore.errors import ConfigError, RefNotFound, StoreNotFound
from casstore.ops.sync import execute, plan_sync

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fsspec import Callback

    from casstore.format.record import Record
    from casstore.ops.sync import SyncReport


class SharedStore:
    """A shared store; it is opened, and the network used, on first use. Safe in threads.

    Reading makes nothing: a URL without a store counts as empty. The first thing that is stored makes the
    store, in a folder or bucket. `known` is a file in which this machine notes which store
    it found: if there is none now, a disk is probably not mounted, and no other store is made.

    `account_or_url` is a URL or path, or with `container` an account of Azure Blob Storage. With `read_only` nothing
    is written to it. `shared="group"` gives the folder's group access where this makes a store in a folder; an existing store
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
        self._location = parse_location(url)  # Before anything displays or logs it.
        self.url = url
        self.read_only = read_only
        self._shared = shared
        self._known = Path(known) if known is not None else None
        self._storage_options = storage_options
        self._lock = threading.Lock()
        self._remote: Store | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def remote(self) -> Store:
        """The store itself; made if there is none yet, unless this cache is read-only.

        Raises BackendError, or ConfigError where there is none and none is made.
        """
        remote = self._opened(create=not self.read_only)
        assert remote is not None
        return remote

    def existing(self) -> Store | None:
        """Return the store, None if nobody has made one yet; nothing is made.

        Raises BackendError, or ConfigError where this machine knows that there was one.
        """
        return self._opened(create=None)

    def check_parent(self) -> None:
        """Raise ConfigError for a path whose parent is missing: the store may be on a disk that is not mounted."""
        parent = os.path.dirname(os.path.abspath(self._location.target))
        if self._location.kind == "local" and not os.path.isdir(parent):
            raise ConfigError(
                f"There is no directory {parent} for the shared cache {self.url}: mount its disk, or correct the URL."
            )

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
        source = self._existing_with(", ".join(refs))
        return execute(plan_sync(source, dest, refs, overwrite=overwrite), callback=callback)

    def record(self, ref: str) -> Record | None:
        """Return the current record of one ref, None if there is none."""
        store = self.existing()
        return store.record(ref) if store is not None else None

    def exists(self, ref: str) -> bool:
        """Say whether a ref is there, by its exact name. An outage raises an error."""
        return self.record(ref) is not None

    def holds(self, ref: str, model_id: bytes | None) -> bool:
        """Say whether a ref is, or was, the model with this id, and every object of it is there."""
        store = self.existing()
        records = store.history(ref) if store is not None else []
        record = next((item for item in reversed(records) if item.target == model_id), None)
        return store is not None and record is not None and not store.lacks(record)

    def delete(self, ref: str) -> None:
        """Delete one ref. Raises RefNotFound if there is none."""
        self._existing_with(ref).rm(ref)

    def list(self, prefix: str = "") -> dict[str, Record]:
        """Return the current record of every ref whose name starts with `prefix`."""
        store = self.existing()
        return store.refs(prefix) if store is not None else {}

    def _existing_with(self, refs: str) -> Store:
        store = self.existing()
        if store is None:
            raise RefNotFound(f"{self.url} has no {refs}: nothing was shared there yet.")
        return store

    def _opened(self, *, create: bool | None) -> Store | None:
        """Return the store; where there is none, make it (True), raise StoreNotFound (False) or return None."""
        with self._lock:
            if self._remote is None:
                try:
                    self._remote = self._open(create=False)
                except StoreNotFound as error:
                    if create is False:
                        raise
                    self._check_mounted(error)
                    if create is None:
                        return None
                    self._remote = self._open(create=True)
                self._remember(self._remote.store_id)
            return self._remote

    def _open(self, *, create: bool) -> Store:
        return Store(
            self.url, create=create, read_only=self.read_only, shared=self._shared, **self._storage_options
        )

    def _check_mounted(self, error: StoreNotFound) -> None:
        """Raise ConfigError if there is no store because a disk is not mounted."""
        known = self._read_known()
        if known is not None:
            # Invariant 8: an unmounted disk is not an empty store, and must not become one.
            raise ConfigError(
                f"{self.url} held the store {known[:16]}… and does not now. Is its disk mounted? If that store was "
                f"removed on purpose, make another one: casstore init {self.url}"
            ) from error
        missing = unmounted(self._location.target) if self._location.kind == "local" else None
        if missing is not None:
            raise ConfigError(
                f"{self.url} lies on {missing}, which is not mounted, though this machine has a disk for it."
            ) from error

    def _read_known(self) -> str | None:
        try:
            text = self._known.read_text(encoding="utf-8") if self._known is not None else ""
        except (OSError, ValueError):
            return None  # Invariant 13: without a note nothing is known.
        return text.strip() or None

    def _remember(self, store_id: str) -> None:
        if self._known is not None and self._read_known() != store_id:
            # Invariant 13: without the note, an unmounted disk may go unnoticed.
            with contextlib.suppress(OSError):
                write_file(self._known, store_id.encode())
