"""Makes fsspec's file systems with the settings that a store needs, and closes their connections.

Each client library has defaults that do not suit a store: retries that hide a lost answer, uploads that
hold half a gigabyte in memory, servers that are not verified. This is the one place that knows them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fsspec.asyn import sync
from fsspec.core import url_to_fs
from fsspec.dircache import DirCache

from casstore.backend.fsspec.errors import redact
from casstore.backend.fsspec.info import made_by
from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

# File systems whose put shows the whole object or nothing. Everywhere else a half-written file would be
# seen under its final name (invariant 2), so it gets a temporary one first.
AZURE = frozenset({"az", "abfs", "abfss", "adl"})
OBJECT_STORES = AZURE | {"s3", "s3a", "gs", "gcs", "oci", "oss"}
SFTP = frozenset({"sftp", "ssh"})
HTTP = frozenset({"http", "https"})
THIS_MACHINE = frozenset({"file", "local", "memory"})

_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(AZURE, "azure"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(SFTP, "sftp"),
    **dict.fromkeys(HTTP, "http"),
}
_MISUSE = (
    ImportError,
    TypeError,
    ValueError,
    AttributeError,
)  # what client libraries raise for wrong options

_PART = 5 << 20  # bytes of an upload in one request, the least that S3 allows, so that the last one is short
_PARTS = 3  # concurrent requests of one upload; several packs are under way at once
_CONNECTIONS = 32  # as many as there are threads that ask at once; with botocore's 10 they would wait
_CLOSING = 5.0  # seconds that a server may take to close a connection


def connect(url: str, options: Mapping[str, Any], secrets: tuple[str, ...]) -> Any:
    """Return a file system of its own for `url`, connected with `options`.

    Raises ConfigError for a protocol without its package and for options that it does not know; `secrets`
    are kept out of the message. Errors of the server are passed on as they are.
    """
    protocol = url.split("://", 1)[0]
    shown = redact(url, secrets)
    try:
        if protocol in SFTP:
            from casstore.backend.fsspec.sftp import make_sftp  # noqa: PLC0415  # an optional extra

            fs = make_sftp(url, options)
        elif protocol in HTTP:
            from casstore.backend.fsspec.web import make_web  # noqa: PLC0415  # as above

            fs = make_web(options)
        else:
            fs = url_to_fs(url, skip_instance_cache=True, **_with_defaults(protocol, options))[0]
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        advice = f"pip install 'casstore[{extra}]'" if extra else str(error)
        raise ConfigError(f"{protocol}:// needs another package: {advice}") from error
    except _MISUSE as error:
        raise ConfigError(
            f"Cannot use {shown}: {redact(str(error), secrets)}. Check the URL and the storage options."
        ) from None
    if isinstance(getattr(fs, "dircache", None), DirCache):
        # Invariant 8: a listing is what the server says now.
        fs.dircache = DirCache(use_listings_cache=False)
    _leave_retries_to_casstore(fs)
    return fs


def _with_defaults(protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options`, completed with what a store needs."""
    if protocol in AZURE:
        # Otherwise adlfs asks for the container's properties, which a token for that container does not allow, and warns.
        return {"assume_container_exists": True, **options}
    if protocol not in ("s3", "s3a"):
        return dict(options)
    config = {
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": _CONNECTIONS,
        **(options.get("config_kwargs") or {}),
    }
    return {**options, "config_kwargs": config}


def _leave_retries_to_casstore(fs: Any) -> None:
    """Turn off the client library's retries: RetryingBackend repeats requests.

    A client library does not know its deadline, takes a lost answer for a lost race, and Azure's
    waits 15 seconds before it asks again.
    """
    if made_by(fs, "s3fs"):
        fs.retries = 1
    elif made_by(fs, "adlfs"):
        config: Any = getattr(fs.service_client, "_config", None)  # adlfs does not pass options on to it
        if hasattr(config, "retry_policy"):
            config.retry_policy.total_retries = 0


def creates_when_uploading(fs: Any) -> bool:
    """Say whether `upload` can make the server refuse a name that is taken."""
    return made_by(fs, "s3fs") or made_by(fs, "adlfs")


def upload(fs: Any, path: str, source: bytes | str, *, exclusively: bool = False) -> None:
    """Send bytes, or the file of this name, in bounded memory where the client library supports it.

    With `exclusively` the server refuses a name that is taken, if `creates_when_uploading`.
    """
    options = {"mode": "create"} if exclusively else {}
    if isinstance(source, bytes):
        fs.pipe_file(path, source, **options)
        return
    if made_by(fs, "s3fs"):
        fs.put_file(source, path, chunksize=_PART, max_concurrency=_PARTS, **options)
    elif made_by(fs, "adlfs"):
        with open(source, "rb") as file:
            # Without a length: otherwise the client library sends up to 64 MiB from memory at once.
            fs.pipe_file(path, _Stream(file), max_concurrency=_PARTS, **options)
    else:
        fs.put_file(source, path)


def fetch(fs: Any, path: str, *, start: int | None, end: int | None) -> bytes:
    """Return the bytes of an object, or a range of it, in one request."""
    # s3fs asks for the size of a whole object first, so as to fetch it in several parts at once.
    options = {"max_concurrency": 1} if made_by(fs, "s3fs") else {}
    return bytes(fs.cat_file(path, start=start, end=end, **options))


class _Stream:
    """A file that offers nothing but reading."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> Any:
        """Read on."""
        return self._file.read(size)


def close(fs: Any) -> None:
    """Close a file system's connections now, rather than when it is garbage-collected."""
    # A failure to close is harmless: the next use would only connect again.
    with suppress(Exception):
        if hasattr(fs, "close_store"):
            fs.close_store()
        elif hasattr(fs, "service_client"):  # adlfs
            sync(fs.loop, fs.service_client.close, timeout=_CLOSING)
            for credential in (fs.credential, fs.sync_credential):
                if hasattr(credential, "close"):
                    _close_credential(fs, credential)
        elif getattr(fs, "_s3creator", None) is not None:  # s3fs
            fs.close_session(fs.loop, fs._s3creator)  # noqa: SLF001  # s3fs closes itself in this very way
            fs._s3creator = fs._s3 = None  # noqa: SLF001  # as above


def _close_credential(fs: Any, credential: Any) -> None:
    closing = credential.close()
    if hasattr(closing, "__await__"):
        sync(fs.loop, _wait_for, closing, timeout=_CLOSING)


async def _wait_for(closing: Any) -> None:
    await closing
