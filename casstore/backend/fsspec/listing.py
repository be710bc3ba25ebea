"""Flat listings by the calls of the cloud's own client libraries: one request a page, and an empty result is final.

fsspec's `find` also tries a prefix as a file: where it finds nothing it asks up to three more times, and at the end
nobody can tell an empty folder from a missing bucket. These calls raise for a bucket that is not there (invariant 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsspec.asyn import sync

from casstore.backend.fsspec.info import made_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Lister = Callable[[Any, str, str], Iterator[Mapping[str, Any]]]
    """Yields what lies in a bucket below a prefix, in any order: names without the bucket, in `name`."""


def lister_of(fs: Any) -> Lister | None:
    """Return the listing function for this file system; None if only fsspec's own is known."""
    if made_by(fs, "s3fs"):
        return _list_s3
    if made_by(fs, "adlfs"):
        return _list_azure
    return None


def _list_s3(fs: Any, bucket: str, prefix: str) -> Iterator[Mapping[str, Any]]:
    more: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **fs.req_kw, **more)
        for item in page.get("Contents", ()):
            yield {
                "name": item["Key"],
                "type": "file",
                "size": item["Size"],
                "LastModified": item["LastModified"],
            }
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _list_azure(fs: Any, container: str, prefix: str) -> Iterator[Mapping[str, Any]]:
    yield from sync(fs.loop, _all_blobs, fs.service_client.get_container_client(container), prefix)


async def _all_blobs(container: Any, prefix: str) -> list[Mapping[str, Any]]:
    found = container.list_blobs(name_starts_with=prefix, include=["metadata"])
    return [
        {
            "name": blob.name,
            # Accounts with real directories list these as blobs.
            "type": "directory" if _is_directory(blob.metadata or {}) else "file",
            "size": blob.size,
            "last_modified": blob.last_modified,
        }
        async for blob in found
    ]


def _is_directory(metadata: Mapping[str, str]) -> bool:
    return "true" in (metadata.get("hdi_isfolder"), metadata.get("is_directory"))
