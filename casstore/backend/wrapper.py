"""Backends that wrap a backend: plain delegation, and one that refuses to write."""

# ruff: noqa: D102  # every method here means what Backend says

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

from casstore.backend.base import Backend, BlobWriter, Entry
from casstore.errors import AccessDenied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

P = ParamSpec("P")
T = TypeVar("T")


class BackendWrapper(Backend):
    """Passes every call to `inner`; subclasses override what they need to. Closing closes `inner`.

    What can be repeated goes through `_perform`, which `RetryingBackend` overrides.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.url = inner.url
        self.is_remote = inner.is_remote
        self.lists_flat = inner.lists_flat

    def _perform(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return operation(*args, **kwargs)

    @property
    def creates_exclusively(self) -> bool:
        """What the wrapped backend finds."""
        return self._perform(lambda: self.inner.creates_exclusively)

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return self._perform(self.inner.read, key, start=start, length=length)

    def read_into(self, key: str, buffer: memoryview, *, start: int = 0) -> int:
        return self._perform(self.inner.read_into, key, buffer, start=start)

    def stat(self, key: str) -> Entry:
        return self._perform(self.inner.stat, key)

    def list(self, prefix: str) -> Iterator[Entry]:
        return self.inner.list(prefix)

    def list_keys(self, prefix: str) -> Iterator[str]:
        return self.inner.list_keys(prefix)

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        self.inner.put(key, parts)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self.inner.create(key, parts)

    def open_writer(self) -> BlobWriter:
        return self.inner.open_writer()

    def delete(self, key: str) -> None:
        self._perform(self.inner.delete, key)

    def list_foreign(self) -> Iterator[str]:
        return self.inner.list_foreign()

    def list_temporaries(self) -> Iterator[Entry]:
        return self.inner.list_temporaries()

    def list_abandoned(self, *, older_than: float) -> Iterator[Entry]:
        return self.inner.list_abandoned(older_than=older_than)

    def remove_temporary(self, key: str) -> None:
        self._perform(self.inner.remove_temporary, key)

    def remove_abandoned(self) -> None:
        self.inner.remove_abandoned()

    def keep_spare_room(self) -> None:
        self.inner.keep_spare_room()

    def spare_bytes(self) -> int:
        return self.inner.spare_bytes()

    def in_spare_room(self, work: Callable[[], T], *, last: bool = False) -> T:
        return self.inner.in_spare_room(work, last=last)

    def make_durable(self, keys: Iterable[str]) -> None:
        self.inner.make_durable(keys)

    def publish_lock(self, *, exclusive: bool = False, blocking: bool = True) -> AbstractContextManager[bool]:
        return self.inner.publish_lock(exclusive=exclusive, blocking=blocking)

    @property
    def may_be_locked_by_others(self) -> bool:
        """What the wrapped backend says."""
        return self.inner.may_be_locked_by_others

    def await_marker(self) -> None:
        self.inner.await_marker()

    def local_path(self, key: str) -> str | None:
        return self.inner.local_path(key)

    def close(self) -> None:
        self.inner.close()


class ReadonlyBackend(BackendWrapper):
    """Refuses every operation that would write, before it touches anything."""

    @property
    def creates_exclusively(self) -> bool:
        """False: nothing can be created, and finding out would write."""
        return False

    def put(self, key: str, parts: Sequence[Buffer]) -> None:  # noqa: ARG002  # refused whatever the bytes
        self._refuse(f"write {key}")

    def create(self, key: str, parts: Sequence[Buffer]) -> None:  # noqa: ARG002  # as above
        self._refuse(f"write {key}")

    def open_writer(self) -> BlobWriter:
        self._refuse("write")

    def delete(self, key: str) -> None:
        self._refuse(f"delete {key}")

    def remove_temporary(self, key: str) -> None:
        self._refuse(f"remove {key}")

    def remove_abandoned(self) -> None:
        self._refuse("clean up")

    def keep_spare_room(self) -> None:
        self._refuse("keep space aside")

    def make_durable(self, keys: Iterable[str]) -> None:  # noqa: ARG002  # only publishers make anything durable
        self._refuse("make objects durable")

    def publish_lock(
        self,
        *,
        exclusive: bool = False,  # noqa: ARG002  # only publishers and collectors lock
        blocking: bool = True,  # noqa: ARG002  # as above
    ) -> AbstractContextManager[bool]:
        self._refuse("publish")

    def now(self) -> float:
        self._refuse("read the clock, which takes a scratch object,")

    def _refuse(self, doing: str) -> NoReturn:
        raise AccessDenied(
            f"Cannot {doing} in {self.url}: the store was opened with read_only=True. Open it without that "
            "to write."
        )
