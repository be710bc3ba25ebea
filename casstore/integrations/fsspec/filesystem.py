"""`cas://`: the models of a store as a read-only fsspec file system.

    fsspec.open("cas://models/NAME/model.safetensors", store="s3://bucket/prefix")

README.md beside this file says how paths are read, what is fetched, and what is kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike

from casstore.api.store import Store
from casstore.concurrency.fan_out import ask_all
from casstore.digest import Hasher
from casstore.errors import ConfigError, DigestMismatch, MissingObject, ObjectNotFound
from casstore.integrations.fsspec.model_paths import ModelPaths
from casstore.machine.atomic_write import atomic_write
from casstore.machine.user_folders import expand_home
from casstore.objects import CHUNK_CACHE
from casstore.store.nesting import refuse_inside_store
from casstore.store.reading import files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import BinaryIO

    from casstore.format.layout import Layout

T = TypeVar("T")

STORE_VARIABLE = "CASSTORE_STORE"

_FSSPEC_OPTIONS = frozenset(
    {
        "asynchronous", "batch_size", "listings_expiry_time", "loop", "max_paths", "skip_instance_cache",
        "use_listings_cache",
    }
)  # fmt: skip
_MAX_GAP = 64 << 10


class CasFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """The models of one store, read-only. Safe in threads, after a fork, and pickled by its arguments.

    `store` is the store's path or URL (default: CASSTORE_STORE), `store_options` what fsspec needs to reach it.
    `chunk_cache` is how many bytes of chunks of a store that is a network away stay in memory. A ref is assumed
    unchanged for `ref_seconds`, or until `invalidate_cache()`. `fo`, `target_protocol` and
    `target_options` are how fsspec passes a chained URL: `cas://models/NAME/FILE::s3://bucket/prefix`.
    Raises ConfigError for a place that is not a store.
    """

    protocol = "cas"
    root_marker = ""

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        store_options: Mapping[str, Any] | None = None,
        chunk_cache: int = CHUNK_CACHE,
        ref_seconds: float = 5.0,
        fo: str | None = None,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        **fsspec_options: Any,
    ) -> None:
        unknown = sorted(fsspec_options.keys() - _FSSPEC_OPTIONS)
        if unknown:
            raise ConfigError(
                f"cas:// has no option {', '.join(unknown)}; options of the storage go into store_options."
            )
        super().__init__(**fsspec_options)
        if fo is not None:
            if store is not None:
                raise ConfigError(
                    "The URL names one store after '::' and store= another: give only one of them."
                )
            store = _chained(fo, target_protocol)
            store_options = {**(target_options or {}), **(store_options or {})}
        store = store or expand_home(os.environ.get(STORE_VARIABLE) or "")
        if not store:
            raise ConfigError(f"cas:// needs a store: give store=PATH_OR_URL or set {STORE_VARIABLE}.")
        self._store = Store(store, read_only=True, chunk_cache=chunk_cache, **(store_options or {}))
        self._paths = ModelPaths(self._store, ref_seconds=ref_seconds)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store.backend.url!r})"

    @property
    def fsid(self) -> str:
        """The identity of this store, wherever it is."""
        return f"cas_{self._store.store_id}"

    def close(self) -> None:
        """Release files and connections; neither this nor files opened with it may be used afterwards."""
        with contextlib.suppress(AttributeError, KeyError):
            # fsspec would hand it to the next caller that asks for the same store.
            del type(self)._cache[self._fs_token]  # noqa: SLF001  # fsspec offers clear_instance_cache only, for all
        self._store.close()

    def invalidate_cache(self, path: str | None = None) -> None:
        """Read every ref again when it is next needed."""
        self._paths.forget()
        super().invalidate_cache(path)

    # ---- looking

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name, type and size, of files also `blake3` and `executable`, in models also `model_id`."""
        return self._paths.info(self._strip_protocol(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:  # noqa: FBT001, FBT002  # fsspec's signature
        """List a directory: the infos, or the names. Raises FileNotFoundError."""
        listed = self._paths.list(self._strip_protocol(path))
        return listed if detail else [info["name"] for info in listed]

    def exists(self, path: str, **_: Any) -> bool:
        """Say whether something is there; an outage or damage is raised (invariant 8), unlike in fsspec."""
        return self._type(path) is not None

    def isdir(self, path: str) -> bool:
        """Say whether this is a directory; errors as with `exists`."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Say whether this is a file; errors as with `exists`."""
        return self._type(path) == "file"

    def checksum(self, path: str) -> int:
        """Return the BLAKE3 of a file as a number."""
        return int(self.ukey(path), 16)

    def ukey(self, path: str) -> str:
        """Return the BLAKE3 of a file: what `b3sum` prints for it."""
        _entry, layout = self._paths.file(self._strip_protocol(path))
        return layout.file_id.hex()

    def _type(self, path: str) -> str | None:
        try:
            kind: str = self.info(path)["type"]
        except FileNotFoundError:
            return None  # Invariant 8: the path is certainly absent; any other failure is raised.
        return kind

    # ---- reading

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        if mode != "rb":
            self._refuse()
        return self._current(path, lambda layout: self._store.open_layout(layout, name=path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return bytes [`start`, `end`) of a file; negative ones count from its end."""
        return self._current(
            self._strip_protocol(path),
            lambda layout: bytes(self._read(layout, *_clip(layout.size, start, end))),
        )

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | Sequence[int | None] | None,
        ends: int | Sequence[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Return ranges of files, in order; those of one file that are near each other are read together.

        `max_gap` is how near, in bytes. With `on_error="return"` errors stand in the place of their bytes.
        """
        if not isinstance(paths, list):
            raise TypeError("cat_ranges takes a list of paths")
        begins, stops = _each(starts, len(paths)), _each(ends, len(paths))
        results: list[Any] = [None] * len(paths)
        jobs: list[tuple[Layout, list[tuple[int, int, int]]]] = []
        by_path: dict[str, list[int]] = {}
        for at, path in enumerate(paths):
            by_path.setdefault(self._strip_protocol(path), []).append(at)
        for path, positions in by_path.items():
            try:
                _entry, layout = self._paths.file(path)
            except Exception as error:
                if on_error != "return":
                    raise
                for at in positions:
                    results[at] = (
                        error  # Invariant 11: the caller gets the error, in the way that it asked for.
                    )
                continue
            ranges = [(*_clip(layout.size, begins[at], stops[at]), at) for at in positions]
            jobs += [(layout, part) for part in _joined(ranges, _MAX_GAP if max_gap is None else max_gap)]

        def read(job: tuple[Layout, list[tuple[int, int, int]]]) -> None:
            layout, part = job
            origin = part[0][0]
            try:
                data = self._read(layout, origin, max(stop for _, stop, _ in part))
            except Exception as error:
                if on_error != "return":
                    raise
                for _, _, at in part:
                    results[at] = error  # As above.
                return
            for begin, stop, at in part:
                results[at] = bytes(data[begin - origin : stop - origin])

        if self._store.reader.chunks is None:
            for job in jobs:
                read(job)
        else:
            ask_all(read, jobs)
        return results

    def get_file(
        self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **_: Any
    ) -> None:
        """Write a file to `lpath`, under that name only when it is whole and has its hash (invariant 4)."""
        path = self._strip_protocol(rpath)
        target = outfile if outfile is not None else lpath
        if isfilelike(target):
            self._copy(path, self._paths.file(path)[1], target, callback)
            return
        if self.isdir(path):
            os.makedirs(target, exist_ok=True)
            return
        target = os.path.abspath(os.fspath(target))
        folder = os.path.dirname(target)
        refuse_inside_store(folder)
        os.makedirs(folder, exist_ok=True)
        mode = 0o777 if self._paths.info(path)["executable"] else 0o666

        def write(layout: Layout) -> None:
            with atomic_write(target, mode=mode) as file:
                self._copy(path, layout, file, callback)

        self._current(path, write)

    def _copy(self, path: str, layout: Layout, target: Any, callback: Any) -> None:
        callback.set_size(layout.size)
        hasher = Hasher()
        with self._store.open_layout(layout, name=path) as source:
            while data := source.read(self.blocksize):
                hasher.update(data)
                target.write(data)
                callback.relative_update(len(data))
        if hasher.digest() != layout.file_id:
            raise DigestMismatch(
                layout.file_id.hex(),
                hasher.digest().hex(),
                path,
                "Its layout does not describe it: add the model again.",
            )

    def _current(self, path: str, read: Callable[[Layout], T]) -> T:
        """Return what `read` makes of a file; if that model is gone, of the file in the one that its ref names by then.

        That may be the same model, which was deleted, collected and added again.
        """
        try:
            _entry, layout = self._paths.file(path)
            return read(layout)
        except (MissingObject, ObjectNotFound):
            # Invariant 11: what is still missing is raised by the second attempt.
            self._paths.forget()
        _entry, layout = self._paths.file(path)
        return read(layout)

    def _read(self, layout: Layout, begin: int, end: int) -> memoryview:
        chunks = files.open_chunks(layout, self._store.reader)
        try:
            return files.read_range(chunks, begin, end)
        finally:
            chunks.close()

    # ---- writing is refused

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise OSError(
            errno.EROFS,
            "cas:// is read-only. Add models with `casstore add` or casstore.Store.add",
            self._store.backend.url,
        )

    mkdir = makedirs = rmdir = rm = rm_file = _rm = mv = cp_file = copy = _refuse
    put = put_file = pipe = pipe_file = touch = _refuse


def _chained(fo: str, protocol: str | None) -> str:
    """Return the place of the store that comes after '::' in a URL."""
    if "://" in fo or protocol in (None, "file", "local"):
        return fo
    return f"{protocol}://{fo}"


def _clip(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Resolve a range like a Python slice, to bytes of a file of `size`."""
    begin, stop, _ = slice(start, end).indices(size)
    return begin, max(begin, stop)


def _each(value: Any, count: int) -> Sequence[int | None]:
    """Return a bound for each of `count` ranges: one for all, or a list of them."""
    bounds: Sequence[int | None] = [value] * count if value is None or isinstance(value, int) else value
    if len(bounds) != count:
        raise ValueError(f"cat_ranges needs {count} starts and ends, not {len(bounds)}")
    return bounds


def _joined(ranges: list[tuple[int, int, int]], gap: int) -> list[list[tuple[int, int, int]]]:
    """Group ranges (begin, end, …) that are at most `gap` bytes apart, each group in order."""
    joined: list[list[tuple[int, int, int]]] = []
    reached = 0
    for item in sorted(ranges):
        if not joined or item[0] > reached + gap:
            joined.append([])
            reached = item[0]
        joined[-1].append(item)
        reached = max(reached, item[1])
    return joined
