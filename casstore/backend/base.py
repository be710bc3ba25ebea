"""The backend contract: keys to bytes, published whole, never overwritten.

README.md in this directory gives each rule with its reason; tests/contract runs one suite on every
implementation. Comments cite the invariants of casstore/README.md by number.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from casstore.concurrency.fan_out import ask_all
from casstore.errors import BackendUnavailable, ConfigError, ObjectExists, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from typing_extensions import Buffer, Self

Durability = Literal["full", "none"]
T = TypeVar("T")

MAX_SEGMENT = 255  # bytes in one name: the limit of every common file system
MAX_KEY = 900  # bytes in a key: S3 allows 1,024 with the root's own prefix

STORE_FILE = "format"
"""The object that makes a directory or bucket a store. Its owner is the store's, its age is the store's."""

LOCKLESS = "gc/lockless"
"""The marker of writers that publish without the lock. casstore never removes it: such writers may come back."""

_LOCKLESS_TEXT = b"someone publishes to this store without its lock\n"

# `lost+found`, which mkfs makes at the root of a volume, is never an object and may be readable by root only.
_SEGMENT = r"(?!lost\+found(?:/|\Z))[a-z0-9_=@+\-][a-z0-9._=@+\-]*"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_RESERVED_SCRATCH = "gc/probe-"


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its key, its size in bytes, and when it was written.

    `modified` is in POSIX seconds by the backend's clock, nan where it has none.
    """

    key: str
    size: int
    modified: float


class Throttled(BackendUnavailable):
    """The storage asks for fewer requests; `retry_after` is the pause that it asks for in seconds, None if not stated."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def validate_key(key: str) -> str:
    """Return `key` when it can name an object on every backend; raise ConfigError otherwise.

    Keys are relative and '/'-separated, made of a-z 0-9 . _ = @ + and -, without empty segments and
    without a leading dot in any segment: so '..' cannot occur, and hidden names are the backend's own.
    `lost+found` cannot be a segment either: it belongs to the file system.
    """
    if _KEY.fullmatch(key) is None:
        raise ConfigError(
            f"{key!r} cannot name an object: keys are '/'-separated names of a-z 0-9 . _ = @ + -, none of "
            "which starts with a dot or is lost+found."
        )
    if len(key) > MAX_KEY or max(map(len, key.split("/"))) > MAX_SEGMENT:
        raise ConfigError(
            f"{key[:80]!r}… cannot name an object: use at most {MAX_SEGMENT} characters between slashes "
            f"and {MAX_KEY} in all."
        )
    return key


def is_key(text: str) -> bool:
    """Say whether `text` can be a key; foreign files in a store directory cannot."""
    return _KEY.fullmatch(text) is not None


def validate_prefix(prefix: str) -> str:
    """Return `prefix` when it is "" or ends with "/"; raise ConfigError otherwise."""
    if prefix:
        if not prefix.endswith("/"):
            raise ConfigError(f"{prefix!r} is not a prefix: it must be empty or end with '/'.")
        validate_key(prefix[:-1])
    return prefix


def validate_range(start: int, length: int | None) -> None:
    """Raise ConfigError for a negative start or length."""
    if start < 0 or (length is not None and length < 0):
        raise ConfigError(f"Cannot read {length} bytes from {start}: both must be zero or more.")


WRITE_PIECE = 1 << 20
"""Limit on the bytes of one write of a pack, an index segment or a checkout on this machine.

The kernel keeps the data of longer writes in pages of 2 MiB and more. A virtual machine may have given free ones back to
its host, and then the first write to each costs several times the copy: for 1.2 GB in writes of 4 MiB, 3.9 s
of the kernel's time, in writes of 1 MiB 0.7.
"""


def byte_views(parts: Iterable[Buffer]) -> tuple[memoryview, ...]:
    """Return `parts` as flat byte views without copying; empty parts are left out.

    The views borrow the caller's buffers, which must stay unchanged until the write returns.
    """
    views = (memoryview(part) for part in parts)
    return tuple(view.cast("B") for view in views if view.nbytes)


class BlobWriter(ABC):
    """Writes one object whose key is known only at the end. One thread uses it at a time.

    Nothing is visible before `commit` returns or fails (invariant 2). Leaving the `with` block without a
    commit discards what was written.
    """

    offset: int

    @abstractmethod
    def write(self, parts: Sequence[Buffer]) -> None:
        """Append `parts`; the caller may reuse the buffers when this returns. Raises BackendError."""

    def harden(self) -> None:  # noqa: B027  # most backends have nothing to do before a name is given
        """Make what was written durable ahead of its name, where that saves `commit` the wait; nothing is written after it."""

    @abstractmethod
    def commit(self, key: str) -> None:
        """Publish what was written under `key`, durably. Raises ObjectExists when the key is taken."""

    @abstractmethod
    def discard(self) -> None:
        """Discard what was not committed; harmless at any time, and never raises BackendError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Invariant 2: data that was not committed must not outlive its writer.
        self.discard()


class Backend(ABC):
    """Key to bytes. Safe to use from several threads and, after a fork, from the child."""

    url: str

    is_remote: bool = False
    """Whether each call is a network round trip, so that many at the same time cost little more than one."""

    lists_flat: bool = False
    """Whether one listing goes through all folders, as a bucket's does, rather than through one folder each."""

    @property
    @abstractmethod
    def creates_exclusively(self) -> bool:
        """Whether `create` is atomic here. Found by trying, on first need. Raises BackendError."""

    @abstractmethod
    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes from `start`, `length` of them or all, clipped at the object's end.

        Raises ObjectNotFound only when the object is truly absent.
        """

    @abstractmethod
    def read_into(self, key: str, buffer: memoryview, *, start: int = 0) -> int:
        """Fill the caller's writable `buffer` from `start` on, up to the object's end; return the number of bytes."""

    @abstractmethod
    def stat(self, key: str) -> Entry:
        """Return size and age. Raises ObjectNotFound only when truly absent; an outage raises otherwise."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield every object below `prefix` ("" or "packs/") in sorted key order.

        Each object comes once, whatever the order of the storage's listing and however its pages overlap. An error is
        raised, never turned into a shorter listing (invariant 8). A prefix under which nothing was ever written
        is empty, provided that the store itself is there.
        """

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that `list` would, in the same order and with the same errors.

        For callers that need names only: it saves a call for each object where sizes and ages cost one.
        """
        return (entry.key for entry in self.list(prefix))

    @abstractmethod
    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Publish a small object durably under a key that nobody else uses.

        Raises ObjectExists, with the old bytes untouched, where a taken key can be seen (invariant 1).
        """

    @abstractmethod
    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        """Publish a small object, or raise ObjectExists when another writer has the key.

        Of any number of writers exactly one succeeds. The bytes must be unlike those of every other writer
        (records carry a write id): that is how a lost answer is distinguished from a lost race. Raises
        ConfigError where `creates_exclusively` is False.
        """

    @abstractmethod
    def open_writer(self) -> BlobWriter:
        """Return a writer for a large object, in memory bounded by a few MiB."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object, durably; one that is absent already is fine."""

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects, in no order; all of it is durable when this returns, and any part of it if it raises."""
        ask_all(self.delete, keys, at_once=self.is_remote)

    def list_foreign(self) -> Iterator[str]:
        """Yield the paths below the root that cannot be keys, in no order; hidden ones are left out.

        Other programs made them (desktop.ini can be a key, Thumbs.db cannot): `list` never yields them.
        """
        return iter(())

    def list_temporaries(self) -> Iterator[Entry]:
        """Yield the temporary files of crashed and of running writers. Age tells them apart."""
        return iter(())

    def list_abandoned(self, *, older_than: float) -> Iterator[Entry]:
        """Yield those temporary files whose writers are known to be dead, or else that are older than so many seconds."""
        now = time.time()
        return (entry for entry in self.list_temporaries() if now - entry.modified >= older_than)

    def remove_temporary(self, key: str) -> None:
        """Remove one leftover that `list_temporaries` gave. Raises ConfigError for any other key."""
        raise ConfigError(f"{key!r} is not a leftover of a writer in {self.url}.")

    def remove_abandoned(self) -> None:  # noqa: B027  # most backends cannot know who is alive
        """Remove what crashed writers left behind, where it can be distinguished from the files of running ones."""

    def keep_spare_room(self) -> None:  # noqa: B027  # only a local disk gets full
        """Keep space aside for `in_spare_room`, or restore it, where there is room to spare; if there is none, that is fine."""

    def spare_bytes(self) -> int:
        """Return how many bytes are kept aside."""
        return 0

    def in_spare_room(self, work: Callable[[], T], *, last: bool = False) -> T:  # noqa: ARG002  # as above
        """Return what `work` does; if the disk is full, repeat it in the space that was kept aside.

        For work that lets the store become smaller in the end, and that leaves nothing behind when it fails. Some of
        the space is for the `last` step, a collection's, without which nothing gets free.
        """
        return work()

    def make_durable(self, keys: Iterable[str]) -> None:  # noqa: B027  # most backends show only what is durable
        """Make durable that these objects, written by anyone, are where a listing or stat showed them.

        A file can be seen a moment before its directory reaches the disk, and its writer may stop there.
        Call this before acknowledging anything that depends on such an object (invariant 2).
        """

    def publish_lock(
        self,
        *,
        exclusive: bool = False,
        blocking: bool = True,  # noqa: ARG002  # part of the contract; this default cannot lock
    ) -> AbstractContextManager[bool]:
        """Hold the publishers' lock, shared or exclusive, and yield True; yield False where there is none.

        True means that no holder of the opposite kind runs now. With `blocking=False` a lock that is taken
        raises ConflictError at once. A publisher that cannot lock what others may lock leaves the marker
        LOCKLESS before this yields, hence before its first pack.
        """
        if self.may_be_locked_by_others and not exclusive:
            self.mark_lockless()
        return nullcontext(False)

    @property
    def may_be_locked_by_others(self) -> bool:
        """Whether this may be a folder of some machine, where a collector could believe itself alone."""
        return False

    def has_lockless_writers(self) -> bool:
        """Say whether anybody publishes, or has ever published, without the lock.

        A collector asks before it writes tombstones and again after it has read the records once more; if so,
        it deletes nothing at once, whatever `publish_lock` said.
        """
        try:
            self.stat(LOCKLESS)
        except ObjectNotFound:
            # Invariant 10: the marker is certainly absent; an outage raises another error.
            return False
        return True

    def mark_lockless(self) -> None:
        """Leave the marker LOCKLESS, unless it is there."""
        if not self.has_lockless_writers():
            # Invariant 10: one marker is enough for all writers.
            with suppress(ObjectExists):
                self.put(LOCKLESS, [_LOCKLESS_TEXT])

    def await_marker(self) -> None:  # noqa: B027  # only network mounts delay what their server shows
        """Wait until every machine can see the marker of lockless writers, if this backend needs it.

        A publisher calls it after its packs and before its first record.
        """

    def local_path(self, key: str) -> str | None:
        """Return the path of a file that holds exactly this object, for mapping; None where there is none."""
        validate_key(key)
        return None

    def now(self) -> float:
        """Return the backend's clock in POSIX seconds, by writing and removing a scratch object."""
        key = f"{_RESERVED_SCRATCH}{uuid.uuid4().hex}"
        self.put(key, [b"clock"])
        try:
            modified = self.stat(key).modified
        finally:
            # Invariant 1 covers packs, index and refs; this scratch object is ours alone.
            self.delete(key)
        return time.time() if math.isnan(modified) else modified

    def close(self) -> None:  # noqa: B027  # most backends hold nothing open
        """Release connections. The backend must not be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"
