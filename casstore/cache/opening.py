"""Opens the folders and the store of a cache, elsewhere if need be, and clears what its settings say."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

from casstore.cache.directories import CacheDirectories
from casstore.errors import CasstoreError, RefNotFound
from casstore.store.store import Store

if TYPE_CHECKING:
    from casstore.cache.failures import Failures
    from casstore.cache.settings import CacheSettings


def open_cache(settings: CacheSettings, failures: Failures) -> tuple[CacheDirectories, Store]:
    """Make a cache's folders, and open its store, without what `settings` say to clear.

    If that fails, it is noted, and both are temporary: `directories.is_temporary`.
    """
    try:
        directories = CacheDirectories.of(settings)
        if settings.clean_cache:
            for folder in directories.working:
                # The user asked for it; another process may do the same.
                shutil.rmtree(folder, ignore_errors=True)
        elif settings.clean_evaluation_cache:
            shutil.rmtree(directories.evaluations, ignore_errors=True)
        directories.make()
        store = Store.open(directories.store, create=True)
    except (CasstoreError, OSError) as error:
        # Invariant 11: without its folder the pipeline goes on in a temporary one, and nothing is kept.
        failures.note(f"use {settings.get_local_cache_dir()}, so nothing is kept", error)
        directories = CacheDirectories.temporary()
        directories.make()
        return directories, Store.open(directories.store, create=True, durability="none")
    if settings.clean_cache:
        _forget(store, ("models/", "runs/", "evaluations/"), directories, failures)
    elif settings.clean_evaluation_cache:
        _forget(store, ("evaluations/",), directories, failures)
    return directories, store


def _forget(
    store: Store, prefixes: tuple[str, ...], directories: CacheDirectories, failures: Failures
) -> None:
    """Delete the refs of this workflow that have one of these prefixes."""
    for prefix in prefixes:
        with failures.tolerated(f"forget {prefix}"):
            for row in store.find(prefix, where={"workflow": directories.cache_dir.name}):
                # A damaged ref does not stop the rest; another process may be cleaning as well.
                with failures.tolerated(f"forget {row.name}"), contextlib.suppress(RefNotFound):
                    store.delete_ref(row.name)
