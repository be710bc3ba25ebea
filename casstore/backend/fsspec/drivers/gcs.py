"""Google Cloud Storage, through gcsfs."""

from __future__ import annotations

from casstore.backend.fsspec.drivers.driver import COMMON_ERRORS, BucketDriver
from casstore.errors import AccessDenied


class GcsDriver(BucketDriver):
    """A bucket of Google Cloud Storage."""

    protocols = frozenset({"gs", "gcs"})
    extra = "gcs"
    errors = COMMON_ERRORS | dict.fromkeys(("DefaultCredentialsError", "RefreshError"), AccessDenied)
