"""A store's root on a file system: the driver of each process, its errors as casstore's, and what an absence means."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from fsspec.dircache import DirCache

from casstore.backend.fsspec.errors import translated
from casstore.backend.fsspec.redaction import redact, secret_values
from casstore.errors import AccessDenied, BackendUnavailable, ConfigError, ObjectNotFound, StoreNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casstore.backend.fsspec.drivers.driver import Driver

# What client libraries raise for wrong options.
_MISUSE = (ImportError, TypeError, ValueError, AttributeError)


class Connection:
    """The store below `url`; `url` and messages show no secrets. Opening it makes the root if `create`."""

    def __init__(
        self, url: str, kind: type[Driver], options: Mapping[str, Any], *, create: bool = False
    ) -> None:
        self.url = redact(url)
        self.kind = kind
        self._location = url
        self._options = options
        self._secrets = secret_values(options)
        self._drivers: dict[int, Driver] = {}
        driver = self.driver
        self.root = driver.root(url)
        self._anchor = kind.anchor(self.root)
        with self.translated(f"open {self.url}"):
            try:
                self._look_at_anchor()
            except ObjectNotFound:
                if not create or kind.is_bucket:
                    advice = kind.advice.format(bucket=self._anchor, url=self.url)
                    raise StoreNotFound(f"There is no store {self.url}: {advice}") from None
                driver.fs.makedirs(self.root or "/", exist_ok=True)
            driver.check(self.root)

    @property
    def driver(self) -> Driver:
        """The driver of this process: connections and event loops do not survive a fork."""
        pid = os.getpid()
        driver = self._drivers.get(pid)
        if driver is None:
            with translated(f"open {self.url}", self._secrets, kinds=self.kind.errors):
                driver = connect(self._location, self.kind, self._options, self._secrets)
            driver = self._drivers.setdefault(pid, driver)
        return driver

    def close(self) -> None:
        """Let go of this process's connections; the next use makes new ones."""
        driver = self._drivers.pop(os.getpid(), None)
        if driver is not None:
            # Invariant 11: a failure to close loses nothing, since nothing is written by closing.
            with suppress(Exception):
                driver.close()

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Raise what the block raises as casstore's errors; `doing` completes the sentence "Cannot …"."""
        try:
            with translated(doing, self._secrets, kinds=self.kind.errors):
                yield
        except BackendUnavailable:
            if self.kind.reconnects:
                # Invariant 11: the error goes on to the caller, and the next attempt gets a new connection.
                self._drivers.pop(os.getpid(), None)
            raise

    @contextmanager
    def doing(self, verb: str, key: str) -> Iterator[None]:
        """Do the same for what is done to a key, and raise ObjectNotFound only while the store is there."""
        try:
            with self.translated(f"{verb} {key} in {self.url}"):
                yield
        except ObjectNotFound:
            # Invariant 8: an outage is not an absence.
            self.require_root()
            raise

    def path(self, key: str) -> str:
        """Return the path of a key."""
        return f"{self.root}/{key}"

    def require_root(self) -> None:
        """Raise BackendUnavailable unless the root directory, or the bucket, is there: no absence is certain without it."""
        try:
            self._look_at_anchor()
        except ObjectNotFound:
            # Invariant 8: an outage is not an absence. A missing bucket or root does not come back within seconds.
            raise BackendUnavailable(
                f"{self.url} is gone: its root directory or bucket is not there.", retryable=False
            ) from None

    def _look_at_anchor(self) -> None:
        try:
            with self.translated(f"find {self.url}"):
                if self._anchor:
                    self.driver.fs.info(self._anchor)
        except AccessDenied:
            if not self.kind.is_bucket:
                raise
            # Invariant 8: a listing proves the bucket as well. Users who may list, as they must, may not always ask about it.
            with self.translated(f"list {self.url}"):
                self.driver.fs.ls(self._anchor, detail=False)


def connect(url: str, kind: type[Driver], options: Mapping[str, Any], secrets: tuple[str, ...]) -> Driver:
    """Return a driver with a file system of its own, connected with `options`.

    Raises ConfigError for a protocol without its package and for options that it does not know; `secrets`
    are kept out of the message. Errors of the server are passed on as they are.
    """
    try:
        fs = kind.open(url, options)
    except ImportError as error:
        advice = f"pip install 'casstore[{kind.extra}]'" if kind.extra else str(error)
        raise ConfigError(f"{url.split('://', 1)[0]}:// needs another package: {advice}") from error
    except _MISUSE as error:
        raise ConfigError(
            f"Cannot use {redact(url, secrets)}: {redact(str(error), secrets)}. Check the URL and the storage options."
        ) from None
    if isinstance(getattr(fs, "dircache", None), DirCache):
        # Invariant 8: a listing is what the server says now.
        fs.dircache = DirCache(use_listings_cache=False)
    return kind(fs)
