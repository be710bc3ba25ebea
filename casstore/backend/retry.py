"""Repeats operations that may work a moment later, and no others.

Delays grow exponentially with full jitter, so that many clients that failed together do not come back
together (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from casstore.backend.base import BlobWriter, Entry, byte_views
from casstore.backend.wrapper import BackendWrapper
from casstore.errors import BackendError, ObjectExists, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

    from casstore.backend.base import Backend

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again. All in seconds: `deadline` for one operation with its pauses, first and longest pause.

    `clock`, `sleep` and `jitter` (uniform between two numbers) are for tests.
    """

    deadline: float = 120.0
    first_pause: float = 0.1
    longest_pause: float = 20.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[float, float], float] = random.uniform

    def attempts(self) -> Iterator[_Attempt]:
        """Yield an attempt each time one more is due."""
        number, start = 0, self.clock()
        while True:
            attempt = _Attempt()
            yield attempt
            error = attempt.error
            if error is None:
                return
            if not error.retryable:
                raise error
            asked = getattr(error, "retry_after", None)
            # 2**30 times the first pause exceeds any longest pause; the bound avoids an overflow.
            ceiling = min(self.longest_pause, self.first_pause * 2 ** min(number, 30))
            pause = max(self.jitter(0.0, ceiling), asked or 0.0)
            if self.clock() - start + pause > self.deadline:
                raise error
            self.sleep(pause)
            number += 1
            if attempt.progressed:
                number, start = 0, self.clock()


class _Attempt:
    """One attempt; the loop body leaves its error here, and the policy decides."""

    def __init__(self) -> None:
        self.progressed = False  # whether to start counting failures again
        self.error: BackendError | None = None


def retry(operation: Callable[[], T], policy: RetryPolicy) -> T:
    """Call `operation` until it returns; raises its own error once the policy gives up."""
    for attempt in policy.attempts():
        try:
            return operation()
        except BackendError as error:  # noqa: PERF203  # attempts are rare
            # Invariant 11: the error is not swallowed; the policy raises it unless another attempt is due.
            attempt.error = error
    raise AssertionError("the policy raises or yields")


class RetryingBackend(BackendWrapper):
    """Repeats operations that failed with a retryable error.

    A lost answer is not a failure: when a repeated `put` or `create` finds its key taken, the
    bytes there are compared with its own. Local fsync and commit errors are not retryable and come through
    at once (invariant 2). Until the storage has answered once, `opening` decides instead of `policy`: a host
    that never answered is given up sooner than one that is busy.
    """

    def __init__(
        self, inner: Backend, policy: RetryPolicy | None = None, *, opening: RetryPolicy | None = None
    ) -> None:
        super().__init__(inner)
        self._policy = policy if policy is not None else RetryPolicy()
        self._opening = opening

    def _perform(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            result = retry(lambda: operation(*args, **kwargs), self._opening or self._policy)
        except BackendError as error:
            # Invariant 11: the error goes on to the caller; a refusal counts as an answer, too.
            if not error.retryable:
                self._opening = None
            raise
        self._opening = None
        return result

    def list(self, prefix: str) -> Iterator[Entry]:
        """List, and after a failure list again and continue after the last key that was yielded.

        Raises BackendError for an unsorted listing, which could not be resumed (invariant 8).
        """
        return self._resume(lambda: self.inner.list(prefix), lambda entry: entry.key)

    def list_keys(self, prefix: str) -> Iterator[str]:
        """List names as `list` does, resuming like it."""
        return self._resume(lambda: self.inner.list_keys(prefix), str)

    def _resume(self, start: Callable[[], Iterator[T]], key_of: Callable[[T], str]) -> Iterator[T]:
        last = ""
        for attempt in self._policy.attempts():
            try:
                for key, item in self._sorted(start(), key_of):
                    # Leave out keys that an earlier attempt yielded, or that two pages of a server both name.
                    if key > last:
                        last, attempt.progressed = key, True
                        yield item
            except BackendError as error:  # noqa: PERF203  # attempts are rare
                # Invariant 8: the policy raises it in the end; the listing never just stops.
                attempt.error = error

    def _sorted(self, items: Iterator[T], key_of: Callable[[T], str]) -> Iterator[tuple[str, T]]:
        before = ""
        for item in items:
            key = key_of(item)
            if key < before:
                raise BackendError(
                    f"{self.url} lists {key} after {before}: an unsorted listing cannot be relied on."
                )
            before = key
            yield key, item

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Publish; a key that is taken by these same bytes after a lost answer is a success."""
        self._publish(self.inner.put, key, parts)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        """Publish if absent; a key that is taken by these same bytes after a lost answer is a success."""
        self._publish(self.inner.create, key, parts)

    def _publish(
        self, method: Callable[[str, Sequence[Buffer]], None], key: str, parts: Sequence[Buffer]
    ) -> None:
        def publish() -> None:
            try:
                method(key, parts)
            except ObjectExists:
                # Invariant 10: only these very bytes can be this writer's own (they carry a write id). Also the
                # first time: client libraries repeat requests silently.
                if self.inner.read(key) != b"".join(byte_views(parts)):
                    raise

        self._perform(publish)

    def open_writer(self) -> BlobWriter:
        """Return a writer whose commit is repeated."""
        return _RetryingWriter(self._perform(self.inner.open_writer), self)

    def list_foreign(self) -> Iterator[str]:
        """List foreign files, in one piece, as `list_temporaries` does."""
        yield from self._perform(lambda: tuple(self.inner.list_foreign()))

    def list_temporaries(self) -> Iterator[Entry]:
        """List leftovers; in one piece, since they come in no order to resume from."""
        yield from self._perform(lambda: tuple(self.inner.list_temporaries()))

    def publish_lock(self, *, exclusive: bool = False, blocking: bool = True) -> AbstractContextManager[bool]:
        """Lock as the wrapped backend does; leaving its marker is repeated until it works."""
        if self.inner.may_be_locked_by_others and not exclusive:
            self._perform(self.inner.mark_lockless)
        return self.inner.publish_lock(exclusive=exclusive, blocking=blocking)

    def make_durable(self, keys: Iterable[str]) -> None:
        """Make `keys` durable; a failed fsync is not retryable and comes through at once."""
        self._perform(self.inner.make_durable, tuple(keys))


class _RetryingWriter(BlobWriter):
    def __init__(self, inner: BlobWriter, backend: RetryingBackend) -> None:
        self._inner = inner
        self._backend = backend
        self.offset = inner.offset

    def write(self, parts: Sequence[Buffer]) -> None:
        # Never repeated: some of the bytes may have been appended.
        self._inner.write(parts)
        self.offset = self._inner.offset

    def harden(self) -> None:
        # Never repeated: a failed fsync discards the file (invariant 2).
        self._inner.harden()

    def commit(self, key: str) -> None:
        attempts = itertools.count()

        def commit() -> None:
            again = next(attempts) > 0
            try:
                self._inner.commit(key)
            except ObjectExists:
                # Keys of large objects are hashes of their bytes, so an object of this size is the same one.
                if not again or not self._is_there(key):
                    raise

        self._backend._perform(commit)  # noqa: SLF001  # one module, one mechanism

    def _is_there(self, key: str) -> bool:
        try:
            return self._backend.inner.stat(key).size == self.offset
        except ObjectNotFound:
            # Invariant 10: a collector was faster; the commit's own error counts.
            return False

    def discard(self) -> None:
        self._inner.discard()
