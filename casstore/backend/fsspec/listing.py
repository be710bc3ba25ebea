"""Lists what lies below a prefix, in the order of whole keys: by the driver's `find`, else directory by directory."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from casstore.errors import BackendUnavailable, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from casstore.backend.fsspec.connection import Connection
    from casstore.backend.fsspec.drivers.driver import Found

_T = TypeVar("_T")

_AT_ONCE = 16
"""Directories listed at the same time: each is a round trip, and refs have hundreds."""


def list_files(
    connection: Connection,
    prefix: str,
    take: Callable[[str, Mapping[str, Any]], _T],
    *,
    sizes: bool,
    wanted: Callable[[str], bool],
) -> Iterator[_T]:
    """Yield what `take` makes of each file below `prefix` whose path is `wanted`, in order.

    `take` gets sizes and times only with `sizes`. An error is raised, never turned into a shorter listing (invariant 8).
    """
    driver = connection.driver
    driver.fs.invalidate_cache()
    if driver.finds:
        yield from _found(connection, prefix, take, sizes=sizes, wanted=wanted)
    else:
        for key, info in _Walk(connection, wanted).below(prefix):
            yield take(key, info)


def _found(
    connection: Connection,
    prefix: str,
    take: Callable[[str, Mapping[str, Any]], _T],
    *,
    sizes: bool,
    wanted: Callable[[str], bool],
) -> Iterator[_T]:
    found: dict[str, _T] = {}
    try:
        with connection.doing("list", prefix):
            for key, info in connection.driver.find(connection.root, prefix, sizes=sizes):
                # Not objects: directory markers, and files of other programs.
                if info.get("type") == "file" and wanted(key) and key.startswith(prefix):
                    found[key] = take(key, info)
    except ObjectNotFound:
        # Invariant 8: the store is there, so nothing is below the prefix; such a bucket's listing would not say so.
        if connection.kind.empty_is_certain:
            raise
        return
    if not found and not connection.kind.empty_is_certain:
        # Invariant 8: empty only when the store is there.
        connection.require_root()
    # Not every server lists in order: S3 Express One Zone does not, nor Azure with directories.
    for key in sorted(found):
        yield found[key]


class _Walk:
    """Lists directories one by one, the next few ahead. fsspec's own walk skips those that it cannot read (invariant 8)."""

    def __init__(self, connection: Connection, wanted: Callable[[str], bool]) -> None:
        self._connection = connection
        self._wanted = wanted

    def below(self, prefix: str) -> Iterator[Found]:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="casstore-list") as threads:
            yield from self._emit(prefix, self._children(prefix, top=True), threads)

    def _emit(self, prefix: str, children: Sequence[Found], threads: ThreadPoolExecutor) -> Iterator[Found]:
        """Yield what lies below, in order; the threads list the next few directories meanwhile."""
        folders = iter([name for name, _ in children if name.endswith("/")])
        ahead: deque[Future[Sequence[Found]]] = deque()
        try:
            for name, info in children:
                if name.endswith("/"):
                    for folder in islice(folders, _AT_ONCE - len(ahead)):
                        ahead.append(threads.submit(self._children, prefix + folder, top=False))
                    yield from self._emit(prefix + name, ahead.popleft().result(), threads)
                elif info["type"] == "file":
                    yield prefix + name, info
        finally:
            for listing in ahead:
                listing.cancel()

    def _children(self, prefix: str, *, top: bool) -> Sequence[Found]:
        """List one directory: names in the order of whole keys, those of directories with a slash."""
        connection = self._connection
        try:
            with connection.doing("list", prefix):
                path = connection.path(prefix).rstrip("/") or "/"
                children = connection.driver.fs.ls(path, detail=True)
        except ObjectNotFound as error:
            if not top:
                # Invariant 8: casstore removes no directories, so a part of the listing is missing.
                raise BackendUnavailable(
                    f"Cannot list {prefix} in {connection.url}: the directory disappeared while it was listed."
                ) from error
            return []  # Invariant 8: absent means empty, since the store is there.
        if top and not children:
            connection.require_root()
        named = {}
        for info in children:
            name = info["name"].rstrip("/").rsplit("/", 1)[-1]
            if self._wanted(name):
                named[f"{name}/" if info["type"] == "directory" else name] = info
        return sorted(named.items(), key=itemgetter(0))
