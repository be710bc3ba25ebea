"""casstore: a content-addressed artifact store for ML models.

Imports go down only:

    cli            one file per command
    ops            check, and other work on whole stores
    store          Store: open, add, read, refs, publish
    tensors  codecs  chunking  format  backend       (these know nothing of one another)
    digest, errors
"""

from casstore._version import __version__
from casstore.errors import (
    BackendError,
    CasstoreError,
    ConfigError,
    ConflictError,
    IntegrityError,
    RefNotFound,
)
from casstore.ops.check import CheckReport, check
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
    "Store",
    "StoreStats",
    "__version__",
    "check",
]
