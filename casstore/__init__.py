"""casstore: a content-addressed artifact store for ML models.

Imports go down only:

    cli            one file per command
    ops            check, and other work on whole stores
    store          Store: open, add, read, refs, publish
    tensors  codecs  chunking  format  backend       (these know nothing of one another)
    digest, errors

Names are loaded on first use: `casstore --help` needs none of them, and numpy alone costs a tenth of a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from casstore._version import __version__

if TYPE_CHECKING:
    from casstore.errors import (
        BackendError,
        CasstoreError,
        ConfigError,
        ConflictError,
        IntegrityError,
        RefNotFound,
    )
    from casstore.ops.check import CheckReport, check
    from casstore.store.ref_rows import RefRow
    from casstore.store.store import AddResult, Model, Store
    from casstore.store.usage import StoreStats

__all__ = [
    "AddResult",
    "BackendError",
    "CasstoreError",
    "CheckReport",
    "ConfigError",
    "ConflictError",
    "IntegrityError",
    "Model",
    "RefNotFound",
    "RefRow",
    "Store",
    "StoreStats",
    "__version__",
    "check",
]

_HOMES = {
    "AddResult": "casstore.store.store",
    "BackendError": "casstore.errors",
    "CasstoreError": "casstore.errors",
    "CheckReport": "casstore.ops.check",
    "ConfigError": "casstore.errors",
    "ConflictError": "casstore.errors",
    "IntegrityError": "casstore.errors",
    "Model": "casstore.store.store",
    "RefNotFound": "casstore.errors",
    "RefRow": "casstore.store.ref_rows",
    "Store": "casstore.store.store",
    "StoreStats": "casstore.store.usage",
    "check": "casstore.ops.check",
}


def __getattr__(name: str) -> Any:
    module = _HOMES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
