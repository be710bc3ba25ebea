"""File systems of fsspec that need nothing special."""

from __future__ import annotations

from casstore.backend.fsspec.drivers.driver import BucketDriver, Driver


class OtherBucketDriver(BucketDriver):
    """Buckets of Oracle and Alibaba."""

    protocols = frozenset({"oci", "oss"})


class FilesDriver(Driver):
    """Files of this machine, as fsspec sees them."""

    protocols = frozenset({"file", "local"})
    is_remote = False


class MemoryDriver(Driver):
    """fsspec's files in this process's memory."""

    protocols = frozenset({"memory"})
    is_remote = False
    puts_whole_objects = True
    may_be_locked_by_others = False
