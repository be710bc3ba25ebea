"""S3 and what speaks its protocol, through s3fs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore.backend.base import Throttled
from casstore.backend.fsspec.drivers.driver import COMMON_ERRORS, BucketDriver, Driver
from casstore.backend.fsspec.errors import RangeNotSatisfiable
from casstore.errors import AccessDenied, BackendUnavailable, ObjectExists, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casstore.backend.fsspec.drivers.driver import Found

_PART = 5 << 20  # bytes of an upload in one request, the least that S3 allows, so that the last one is short
_PARTS = 3  # concurrent requests of one upload; several packs are under way at once
_CONNECTIONS = 32  # as many as there are threads that ask at once; with botocore's 10 they would wait


class S3Driver(BucketDriver):
    """A bucket of S3."""

    protocols = frozenset({"s3", "s3a"})
    extra = "s3"
    # Names of botocore's exceptions, and S3's own codes, some of which come with the status 400.
    errors = (
        COMMON_ERRORS
        | dict.fromkeys(
            (
                "EndpointConnectionError",
                "ConnectionClosedError",
                "ConnectTimeoutError",
                "ReadTimeoutError",
                "ResponseStreamingError",
            ),
            BackendUnavailable,
        )
        | dict.fromkeys(("SlowDown", "RequestLimitExceeded", "ThrottlingException"), Throttled)
        | dict.fromkeys(("NoSuchKey", "NoSuchBucket"), ObjectNotFound)
        | dict.fromkeys(
            (
                "NoCredentialsError",
                "PartialCredentialsError",
                "AccessDenied",
                "InvalidAccessKeyId",
                "SignatureDoesNotMatch",
                "ExpiredToken",
            ),
            AccessDenied,
        )
        | {"PreconditionFailed": ObjectExists, "InvalidRange": RangeNotSatisfiable}
    )
    uploads_exclusively = True
    empty_is_certain = True

    @staticmethod
    def open(url: str, options: Mapping[str, Any]) -> Any:
        """Connect without the client's own retries: they have no deadline, and take a lost answer for a lost race."""
        config = {
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": _CONNECTIONS,
            **(options.get("config_kwargs") or {}),
        }
        fs = Driver.open(url, {**options, "config_kwargs": config})
        fs.retries = 1
        return fs

    def close(self) -> None:
        """Close the connections."""
        fs = self.fs
        if fs._s3creator is not None:  # noqa: SLF001  # s3fs closes itself in this very way
            fs.close_session(fs.loop, fs._s3creator)  # noqa: SLF001  # as above
            fs._s3creator = fs._s3 = None  # noqa: SLF001  # as above

    def read(self, path: str, *, start: int | None, end: int | None) -> bytes:
        """Read in one request; s3fs would ask for the size of a whole object first, to fetch it in several parts."""
        return bytes(self.fs.cat_file(path, start=start, end=end, max_concurrency=1))

    def find(self, root: str, prefix: str, *, sizes: bool) -> Iterator[Found]:  # noqa: ARG002  # sizes cost nothing
        """List page by page; fsspec would also try the prefix as a file, and not tell an empty folder from no bucket."""
        bucket, _, folder = root.partition("/")
        below = f"{folder}/" if folder else ""
        more: dict[str, str] = {}
        while True:
            page = self.fs.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=below + prefix, **self.fs.req_kw, **more
            )
            for item in page.get("Contents", ()):
                yield (
                    item["Key"][len(below) :],
                    {
                        "type": "file",
                        "size": item["Size"],
                        "LastModified": item["LastModified"],
                    },
                )
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def upload(self, path: str, source: bytes | str, *, exclusively: bool = False) -> None:
        """Send in parts of a few MiB, with `If-None-Match: *` if exclusively."""
        options = {"mode": "create"} if exclusively else {}
        if isinstance(source, bytes):
            self.fs.pipe_file(path, source, **options)
        else:
            self.fs.put_file(source, path, chunksize=_PART, max_concurrency=_PARTS, **options)
