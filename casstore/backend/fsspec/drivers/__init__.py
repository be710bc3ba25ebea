"""Drivers: one for each client of a storage. To add one, write a module like `gcs.py` and name its class in DRIVERS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.backend.fsspec.drivers.azure import AzureDriver
from casstore.backend.fsspec.drivers.driver import Driver
from casstore.backend.fsspec.drivers.gcs import GcsDriver
from casstore.backend.fsspec.drivers.http import HttpDriver
from casstore.backend.fsspec.drivers.other import OtherBucketDriver
from casstore.backend.fsspec.drivers.s3 import S3Driver
from casstore.backend.fsspec.drivers.sftp import SftpDriver

if TYPE_CHECKING:
    from collections.abc import Sequence

DRIVERS: Sequence[type[Driver]] = (
    S3Driver,
    AzureDriver,
    GcsDriver,
    SftpDriver,
    HttpDriver,
    OtherBucketDriver,
)


def driver_for(protocol: str) -> type[Driver]:
    """Return the driver of a protocol; one that nobody registered is a file system with directories."""
    return next((driver for driver in DRIVERS if protocol in driver.protocols), Driver)
