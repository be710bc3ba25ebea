"""The verbs of `Store` for which another store gives or takes: push, pull, sync, repair.

Each imports its work when it is called: most programs start faster without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from casstore.api.upkeep import MaintainedStore
from casstore.machine.remotes import Remotes
from casstore.store.reading.other_stores import OtherStores, Place

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from fsspec import Callback

    from casstore.ops.repair import RepairReport
    from casstore.ops.sync import SyncReport

__all__ = ["ExchangingStore"]


class ExchangingStore(MaintainedStore, ABC):
    """A store, and what moves between it and others."""

    @abstractmethod
    def _open_other(
        self,
        place: str | os.PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
        fallback: bool = True,
    ) -> ExchangingStore:
        """Open the store at a place as `Store` does, which says how."""

    def repair(
        self,
        refs: str | Sequence[str] | None = None,
        *,
        source: str | os.PathLike[str] | ExchangingStore | None = None,
        dry_run: bool = True,
        bandwidth_limit: float | None = None,
        callback: Callback | None = None,
    ) -> RepairReport:
        """Find what is damaged or missing, and take good copies from other packs of this store and from another store.

        `refs`, names, prefixes that end with "/", or model ids, are examined, or the whole store, of which every byte is read
        then. `source` is a path, a URL, the name of a remote, or an open store; by default all remotes of this store are asked.
        With `dry_run`, which is the default, nothing is written, and the report says what would be. Damaged packs are
        quarantined, and nothing but damaged index segments is deleted. `bandwidth_limit` is in bytes per second; `callback`
        counts the bytes of packs. What stays missing is in the report: look at its `ok`. Raises RefNotFound, BackendError for
        a store that fails.
        """
        from casstore.ops.repair import repair  # noqa: PLC0415 - see the top of this file

        wanted = [refs] if isinstance(refs, str) else refs
        with ExitStack() as stack:
            if source is None:
                others = OtherStores(self._remotes)
                stack.callback(others.close)
            else:
                other = stack.enter_context(self._opened(source, read_only=True))
                others = OtherStores(lambda: [Place(other.backend.url, lambda: other)])
            return repair(
                self,
                wanted,
                others=others,
                dry_run=dry_run,
                bandwidth_limit=bandwidth_limit,
                callback=callback,
            )

    def push(
        self,
        remote: str | os.PathLike[str] | ExchangingStore,
        refs: str | Sequence[str] | None = None,
        *,
        create: bool = False,
        overwrite: bool = False,
        keep_going: bool = False,
        with_bases: bool = False,
        bandwidth_limit: float | None = None,
        callback: Callback | None = None,
    ) -> SyncReport:
        """Copy refs, all or those named, to another store, which gets only what it lacks.

        `remote` is a path, a URL, a name that `casstore remote add` gave to one, or an open store. With `create`, a
        store is made there if there is none. The rest is as for `sync`.
        """
        with self._opened(remote, create=create) as other:
            return self.sync(
                other,
                refs,
                overwrite=overwrite,
                keep_going=keep_going,
                with_bases=with_bases,
                bandwidth_limit=bandwidth_limit,
                callback=callback,
            )

    def pull(
        self,
        remote: str | os.PathLike[str] | ExchangingStore,
        refs: str | Sequence[str] | None = None,
        *,
        overwrite: bool = False,
        keep_going: bool = False,
        with_bases: bool = False,
        bandwidth_limit: float | None = None,
        callback: Callback | None = None,
    ) -> SyncReport:
        """Copy refs, all or those named, from another store: only what is missing here is fetched.

        `remote` is as for `push`, the rest as for `sync`.
        """
        with self._opened(remote, read_only=True) as other:
            return other.sync(
                self,
                refs,
                overwrite=overwrite,
                keep_going=keep_going,
                with_bases=with_bases,
                bandwidth_limit=bandwidth_limit,
                callback=callback,
            )

    def sync(
        self,
        other: str | os.PathLike[str] | ExchangingStore,
        refs: str | Sequence[str] | None = None,
        *,
        overwrite: bool = False,
        keep_going: bool = False,
        with_bases: bool = False,
        bandwidth_limit: float | None = None,
        callback: Callback | None = None,
    ) -> SyncReport:
        """Copy refs of this store, all or those named, to another one; `plan_sync` says beforehand what would move.

        `other` is a path, a URL, the name of a remote, or an open store.
        `refs` are names, prefixes that end with "/", or model ids. One that has a value in `other` which this store
        has not seen is left alone and is in the report's `conflicts`, unless `overwrite` is set. With `keep_going`,
        damaged models are in its `damaged`, and the others are copied. Deltas whose bases `other` lacks are stored there without
        bases, or with `with_bases` along with them. `bandwidth_limit` is in bytes per second,
        `callback` counts stored bytes. Raises RefNotFound, IntegrityError for a damaged model, BackendError when a store
        fails; what was copied so far stays, and the next attempt copies the rest.
        """
        from casstore.ops.sync import execute, plan_sync  # noqa: PLC0415 - see the top of this file

        wanted = [refs] if isinstance(refs, str) else refs
        with self._opened(other) as destination:
            plan = plan_sync(
                self,
                destination,
                wanted,
                overwrite=overwrite,
                keep_going=keep_going,
                with_bases=with_bases,
            )
            return execute(plan, callback=callback, bandwidth_limit=bandwidth_limit)

    def _remotes(self) -> list[Place]:
        """Return the remotes of this store, as places that may have what it lacks; these do not ask their own in turn."""
        return [
            Place(f"{name} ({url})", partial(self._open_other, url, read_only=True, fallback=False))
            for name, url in Remotes(self.store_id).list().items()
        ]

    @contextmanager
    def _opened(
        self,
        remote: str | os.PathLike[str] | ExchangingStore,
        *,
        create: bool = False,
        read_only: bool = False,
    ) -> Iterator[ExchangingStore]:
        """Give the store that `remote` means, and close it afterwards unless it was open already."""
        if isinstance(remote, ExchangingStore):
            yield remote
            return
        place = Remotes(self.store_id).resolve(remote) if isinstance(remote, str) else remote
        with self._open_other(place, create=create, read_only=read_only) as other:
            yield other
