"""casstore: a content-addressed artifact store for ML models.

Imports go down only:

    cli            one file for each command
    integrations   cas:// for fsspec, microsoft/Olive
    cache          OliveCache and its parts: models, runs, sharing
    ops            check, sync, gc, and other work on whole stores
    store          models: add, check out, read
    refs           names and their records
    objects        packs and the index
    machine        folders, remotes and unchanged files of this machine
    tensors  codecs  chunking  format  backend       (these do not import one another)
    concurrency    threads, forks, buffers
    digest  _build
    errors

README.md beside this file explains them.

Names are loaded on first use: `casstore --help` needs none of them, and numpy alone costs a tenth of a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from casstore._version import __version__

if TYPE_CHECKING:
    from casstore.cache.config import CacheConfig
    from casstore.cache.model_cache import ModelCacheManager
    from casstore.cache.olive_cache import OliveCache
    from casstore.cache.run_cache import RunCacheManager
    from casstore.cache.shared_cache import SharedCache
    from casstore.cache.transfer import ModelFileTransfer
    from casstore.errors import (
        BackendError,
        CasstoreError,
        ConfigError,
        ConflictError,
        IntegrityError,
        RefNotFound,
    )
    from casstore.ops.check import CheckReport, check
    from casstore.ops.gc import GcPlan, GcPolicy, GcReport, execute_gc, plan_gc
    from casstore.ops.leftovers import Leftovers, find_leftovers
    from casstore.ops.sync import SyncPlan, SyncReport, plan_sync
    from casstore.ops.sync import execute as execute_sync
    from casstore.refs.rows import RefRow
    from casstore.store.model import Model
    from casstore.store.store import AddResult, Store
    from casstore.store.usage import StoreStats

__all__ = [
    "AddResult",
    "BackendError",
    "CacheConfig",
    "CasstoreError",
    "CheckReport",
    "ConfigError",
    "ConflictError",
    "GcPlan",
    "GcPolicy",
    "GcReport",
    "IntegrityError",
    "Leftovers",
    "Model",
    "ModelCacheManager",
    "ModelFileTransfer",
    "OliveCache",
    "RefNotFound",
    "RefRow",
    "RunCacheManager",
    "SharedCache",
    "Store",
    "StoreStats",
    "SyncPlan",
    "SyncReport",
    "__version__",
    "check",
    "execute_gc",
    "execute_sync",
    "find_leftovers",
    "plan_gc",
    "plan_sync",
]

_HOMES = {
    "AddResult": "casstore.store.store",
    "BackendError": "casstore.errors",
    "CacheConfig": "casstore.cache.config",
    "CasstoreError": "casstore.errors",
    "CheckReport": "casstore.ops.check",
    "ConfigError": "casstore.errors",
    "ConflictError": "casstore.errors",
    "GcPlan": "casstore.ops.gc",
    "GcPolicy": "casstore.ops.gc",
    "GcReport": "casstore.ops.gc",
    "IntegrityError": "casstore.errors",
    "Leftovers": "casstore.ops.leftovers",
    "Model": "casstore.store.model",
    "ModelCacheManager": "casstore.cache.model_cache",
    "ModelFileTransfer": "casstore.cache.transfer",
    "OliveCache": "casstore.cache.olive_cache",
    "RefNotFound": "casstore.errors",
    "RefRow": "casstore.refs.rows",
    "RunCacheManager": "casstore.cache.run_cache",
    "SharedCache": "casstore.cache.shared_cache",
    "Store": "casstore.store.store",
    "StoreStats": "casstore.store.usage",
    "SyncPlan": "casstore.ops.sync",
    "SyncReport": "casstore.ops.sync",
    "check": "casstore.ops.check",
    "execute_gc": "casstore.ops.gc",
    "execute_sync": "casstore.ops.sync:execute",
    "find_leftovers": "casstore.ops.leftovers",
    "plan_gc": "casstore.ops.gc",
    "plan_sync": "casstore.ops.sync",
}
"""The module of each public name; after a colon, the name that it has there."""


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, own = home.partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), own or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
