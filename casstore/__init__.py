"""casstore: a content-addressed artifact store for ML models.

Imports go down only:

    cli            one file for each command
    integrations   cas:// for fsspec, the Hub's API, microsoft/Olive
    cache          OliveCache and its parts: models, runs, sharing
    api            Store, the public interface
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

All but the errors are loaded on first use: `casstore --help` needs none of them, and numpy alone costs a tenth of a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from casstore._version import __version__
from casstore.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    CasstoreError,
    ConfigError,
    ConflictError,
    DigestMismatch,
    FormatError,
    IntegrityError,
    MissingObject,
    NameTaken,
    ObjectExists,
    ObjectNotFound,
    PathNotFound,
    RefConflict,
    RefNotFound,
    StoreNotFound,
    TensorNotFound,
    UnsupportedVersion,
)

if TYPE_CHECKING:
    from casstore.api.store import Store
    from casstore.api.store import Store as open  # noqa: A004, N813 - casstore.open, as zarr.open
    from casstore.api.values import FileInfo, RefInfo, TensorInfo
    from casstore.cache.config import CacheConfig
    from casstore.cache.model_cache import ModelCacheManager
    from casstore.cache.olive_cache import OliveCache
    from casstore.cache.run_cache import RunCacheManager
    from casstore.cache.shared_cache import SharedCache
    from casstore.cache.transfer import ModelFileTransfer
    from casstore.ops.check import CheckReport
    from casstore.ops.describe import ModelDescription
    from casstore.ops.diff import FileDiff, ModelDiff, TensorDiff, TensorSide
    from casstore.ops.du import Usage, UsageRow, UsageTotals
    from casstore.ops.gc import GcPlan, GcPolicy, GcReport, execute_gc, plan_gc
    from casstore.ops.leftovers import Leftovers
    from casstore.ops.lineage import Lineage
    from casstore.ops.repair import RepairReport
    from casstore.ops.stats import StoreStats
    from casstore.ops.sync import SyncPlan, SyncReport, plan_sync
    from casstore.ops.sync import execute as execute_sync
    from casstore.store.adding.add import AddResult
    from casstore.store.reading.model import Model

__all__ = [
    "AccessDenied",
    "AddResult",
    "BackendError",
    "BackendUnavailable",
    "CacheConfig",
    "CasstoreError",
    "CheckReport",
    "ConfigError",
    "ConflictError",
    "DigestMismatch",
    "FileDiff",
    "FileInfo",
    "FormatError",
    "GcPlan",
    "GcPolicy",
    "GcReport",
    "IntegrityError",
    "Leftovers",
    "Lineage",
    "MissingObject",
    "Model",
    "ModelCacheManager",
    "ModelDescription",
    "ModelDiff",
    "ModelFileTransfer",
    "NameTaken",
    "ObjectExists",
    "ObjectNotFound",
    "OliveCache",
    "PathNotFound",
    "RefConflict",
    "RefInfo",
    "RefNotFound",
    "RepairReport",
    "RunCacheManager",
    "SharedCache",
    "Store",
    "StoreNotFound",
    "StoreStats",
    "SyncPlan",
    "SyncReport",
    "TensorDiff",
    "TensorInfo",
    "TensorNotFound",
    "TensorSide",
    "UnsupportedVersion",
    "Usage",
    "UsageRow",
    "UsageTotals",
    "__version__",
    "execute_gc",
    "execute_sync",
    "open",
    "plan_gc",
    "plan_sync",
]

_HOMES = {
    "AddResult": "casstore.store.adding.add",
    "CacheConfig": "casstore.cache.config",
    "CheckReport": "casstore.ops.check",
    "FileDiff": "casstore.ops.diff",
    "FileInfo": "casstore.api.values",
    "GcPlan": "casstore.ops.gc",
    "GcPolicy": "casstore.ops.gc",
    "GcReport": "casstore.ops.gc",
    "Leftovers": "casstore.ops.leftovers",
    "Lineage": "casstore.ops.lineage",
    "Model": "casstore.store.reading.model",
    "ModelCacheManager": "casstore.cache.model_cache",
    "ModelDescription": "casstore.ops.describe",
    "ModelDiff": "casstore.ops.diff",
    "ModelFileTransfer": "casstore.cache.transfer",
    "OliveCache": "casstore.cache.olive_cache",
    "RefInfo": "casstore.api.values",
    "RepairReport": "casstore.ops.repair",
    "RunCacheManager": "casstore.cache.run_cache",
    "SharedCache": "casstore.cache.shared_cache",
    "Store": "casstore.api.store",
    "StoreStats": "casstore.ops.stats",
    "SyncPlan": "casstore.ops.sync",
    "SyncReport": "casstore.ops.sync",
    "TensorDiff": "casstore.ops.diff",
    "TensorInfo": "casstore.api.values",
    "TensorSide": "casstore.ops.diff",
    "Usage": "casstore.ops.du",
    "UsageRow": "casstore.ops.du",
    "UsageTotals": "casstore.ops.du",
    "execute_gc": "casstore.ops.gc",
    "execute_sync": "casstore.ops.sync:execute",
    "open": "casstore.api.store:Store",
    "plan_gc": "casstore.ops.gc",
    "plan_sync": "casstore.ops.sync",
}
"""The module of each public name; after a colon, the name that it has there."""

_ALONG = {"Store": ("casstore.store.adding.add", "casstore.store.checkout.checkout")}
_ALONG["open"] = _ALONG["Store"]
"""What the first use of a name would load: programs wait at their start rather than in the middle of it."""


if not TYPE_CHECKING:  # A type checker would take every name for one that is here.

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for needed in _ALONG.get(name, ()):
            importlib.import_module(needed)
        module, _, own = home.partition(":")
        value = globals()[name] = getattr(importlib.import_module(module), own or name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
