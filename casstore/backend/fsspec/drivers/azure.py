"""Azure Blob Storage, through adlfs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsspec.asyn import sync

from casstore.backend.fsspec.drivers.driver import COMMON_ERRORS, BucketDriver, Driver
from casstore.errors import AccessDenied, BackendUnavailable, ObjectExists, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from casstore.backend.fsspec.drivers.driver import Found

_PARTS = 3  # concurrent requests of one upload; several packs are under way at once
_CLOSING = 5.0  # seconds that a server may take to close a connection


class AzureDriver(BucketDriver):
    """A container of Azure Blob Storage."""

    protocols = frozenset({"az", "abfs", "abfss", "adl"})
    extra = "azure"
    errors = (
        COMMON_ERRORS
        | dict.fromkeys(("ServiceRequestError", "ServiceResponseError"), BackendUnavailable)
        | dict.fromkeys(("ClientAuthenticationError", "CredentialUnavailableError"), AccessDenied)
        | {"ResourceNotFoundError": ObjectNotFound, "ResourceExistsError": ObjectExists}
    )
    uploads_exclusively = True
    empty_is_certain = True

    @staticmethod
    def open(url: str, options: Mapping[str, Any]) -> Any:
        """Connect without the client's own retries, which wait 15 seconds and take a lost answer for a lost race."""
        # adlfs would ask for the container's properties, which a token for that container does not allow, and warn.
        fs = Driver.open(url, {"assume_container_exists": True, **options})
        config: Any = getattr(fs.service_client, "_config", None)  # adlfs does not pass options on to it
        if hasattr(config, "retry_policy"):
            config.retry_policy.total_retries = 0
        return fs

    def close(self) -> None:
        """Close the connections, and those of the credentials."""
        fs = self.fs
        sync(fs.loop, fs.service_client.close, timeout=_CLOSING)
        for credential in (fs.credential, fs.sync_credential):
            if hasattr(credential, "close"):
                closing = credential.close()
                if hasattr(closing, "__await__"):
                    sync(fs.loop, _wait_for, closing, timeout=_CLOSING)

    def find(self, root: str, prefix: str, *, sizes: bool) -> Iterable[Found]:  # noqa: ARG002  # sizes cost nothing
        """List by the client's own call, which raises for a container that is not there."""
        container, _, folder = root.partition("/")
        below = f"{folder}/" if folder else ""
        client = self.fs.service_client.get_container_client(container)
        found: list[Found] = sync(self.fs.loop, _list_blobs, client, below + prefix)
        return ((name[len(below) :], info) for name, info in found)

    def upload(self, path: str, source: bytes | str, *, exclusively: bool = False) -> None:
        """Send in blocks of a few MiB, with `If-None-Match: *` if exclusively."""
        if isinstance(source, bytes):
            super().upload(path, source, exclusively=exclusively)
            return
        options = {"mode": "create"} if exclusively else {}
        with open(source, "rb") as file:
            # Without a length: otherwise the client library sends up to 64 MiB from memory at once.
            self.fs.pipe_file(path, _Stream(file), max_concurrency=_PARTS, **options)


class _Stream:
    """A file that offers nothing but reading."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> Any:
        """Read on."""
        return self._file.read(size)


async def _wait_for(closing: Any) -> None:
    await closing


async def _list_blobs(container: Any, prefix: str) -> list[Found]:
    return [
        (
            blob.name,
            {
                # Accounts with real directories list these as blobs.
                "type": "directory" if _is_directory(blob.metadata or {}) else "file",
                "size": blob.size,
                "last_modified": blob.last_modified,
            },
        )
        async for blob in container.list_blobs(name_starts_with=prefix, include=["metadata"])
    ]


def _is_directory(metadata: Mapping[str, str]) -> bool:
    return "true" in (metadata.get("hdi_isfolder"), metadata.get("is_directory"))
