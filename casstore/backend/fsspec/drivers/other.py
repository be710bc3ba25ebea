"""Buckets that need nothing special. A protocol that no driver names gets `Driver`, a file system with directories."""

from __future__ import annotations

from casstore.backend.fsspec.drivers.driver import BucketDriver


class OtherBucketDriver(BucketDriver):
    """Buckets of Oracle and Alibaba."""

    protocols = frozenset({"oci", "oss"})
