"""Objects on any fsspec file system.

Imported only when a URL needs it: fsspec's implementations pull in large client libraries.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from casstore.backend.base import (
    STORE_FILE,
    Backend,
    byte_views,
    is_key,
    validate_key,
    validate_prefix,
    validate_range,
)
from casstore.backend.fsspec import filesystems
from casstore.backend.fsspec.errors import RangeNotSatisfiable, redact, secret_values, translated
from casstore.backend.fsspec.info import entry, finds_natively, moves_natively, pipes_natively
from casstore.backend.fsspec.listing import lister_of
from casstore.backend.fsspec.spool import SpoolingWriter
from casstore.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    ConfigError,
    ObjectExists,
    ObjectNotFound,
    StoreNotFound,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from typing_extensions import Buffer

    from casstore.backend.base import BlobWriter, Entry
    from casstore.backend.fsspec.listing import Lister

    _Listed = tuple[str, Mapping[str, Any]]
    """An object's key, and what the file system says about it."""

_T = TypeVar("_T")

Publication = Literal["put", "rename"]

_ATOMIC_PUTS = filesystems.OBJECT_STORES | {"memory"}

# A bucket is no machine's folder, and a web server is only read from.
_NEVER_A_FOLDER = _ATOMIC_PUTS | filesystems.HTTP

_TEMPORARY = ".tmp"  # hidden, hence no key
_LISTERS = 16
_TRUSTED = 16 << 20  # bytes: a longer read is clipped by the object's size first


class FsspecBackend(Backend):
    """The store below `url`, on a file system made from `storage_options`.

    `create` makes the root directory where there are directories; a bucket must exist. `publication` says
    how objects get their names where the protocol's own way is not known. Large objects are spooled to
    TMPDIR and sent when they are committed. Nothing is fsynced: durability is the server's.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool = False,
        publication: Publication | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = redact(url)
        self._location = url
        self._options = dict(storage_options or {})
        self._secrets = secret_values(self._options)
        self._file_systems: dict[int, Any] = {}
        self._protocol = protocol = url.split("://", 1)[0]
        self._renames = (publication or ("put" if protocol in _ATOMIC_PUTS else "rename")) == "rename"
        self._links = protocol in filesystems.SFTP
        self._made: set[str] = set()  # directories known to exist
        self._exclusive: bool | None = None
        self._marked_lockless = False
        fs = self._fs
        # Each file system strips the scheme in its own way.
        self._root = str(fs._strip_protocol(url)).rstrip("/")  # noqa: SLF001  # fsspec's documented hook
        self._anchor = self._find_anchor()
        with self._translated(f"open {self.url}"):
            try:
                self._require_anchor(opening=True)
            except StoreNotFound:
                if not create or protocol in filesystems.OBJECT_STORES:
                    raise
                fs.makedirs(self._root or "/", exist_ok=True)
            if hasattr(fs, "require_index"):
                fs.require_index(self._root)

    def _find_anchor(self) -> str:
        """Return a path that exists whenever the storage answers: without it no absence is certain."""
        if self._protocol in filesystems.OBJECT_STORES:
            return self._root.split("/", 1)[0]  # the bucket
        if self._protocol in filesystems.HTTP:
            return f"{self._root}/{STORE_FILE}"  # a web server may not answer for directories
        return self._root

    @property
    def _fs(self) -> Any:
        """The file system of this process: connections and event loops do not survive a fork."""
        pid = os.getpid()
        fs = self._file_systems.get(pid)
        if fs is None:
            with translated(f"open {self.url}", self._secrets):
                fs = filesystems.connect(self._location, self._options, self._secrets)
            fs = self._file_systems.setdefault(pid, fs)
        return fs

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            with translated(doing, self._secrets):
                yield
        except BackendUnavailable:
            if self._protocol in filesystems.SFTP:
                # A broken connection stays broken: the next attempt gets a new one.
                self._file_systems.pop(os.getpid(), None)
            raise

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _not_an_object(self, verb: str, key: str) -> ObjectNotFound:
        return ObjectNotFound(f"Cannot {verb} {key} in {self.url}: that is a directory, not an object.")

    def _doing(self, verb: str, key: str) -> str:
        return f"{verb} {key} in {self.url}"

    def _require_anchor(self, *, opening: bool = False) -> None:
        """Raise unless the root directory, or the bucket, is there: without it no absence is certain."""
        try:
            self._look_at_anchor()
        except ObjectNotFound:
            if opening:
                raise StoreNotFound(f"There is no store {self.url}: {self._advice()}") from None
            # Invariant 8: an outage is not an absence. A missing bucket or root does not come back within seconds.
            raise BackendUnavailable(
                f"{self.url} is gone: its root directory or bucket is not there.", retryable=False
            ) from None

    def _look_at_anchor(self) -> None:
        try:
            with self._translated(f"find {self.url}"):
                if self._anchor:
                    self._fs.info(self._anchor)
        except AccessDenied:
            if self._protocol not in filesystems.OBJECT_STORES:
                raise
            # Users who may list objects, as they must, may not always ask about the bucket itself.
            with self._translated(f"list {self.url}"):
                self._fs.ls(self._anchor, detail=False)

    def _advice(self) -> str:
        if self._protocol in filesystems.OBJECT_STORES:
            return (
                f"the bucket or container {self._anchor} does not exist. Check the URL, or create it first."
            )
        if self._protocol in filesystems.HTTP:
            return "the web server has no file 'format' there. Check the URL."
        return f"its directory is not there. Check the URL, or make a store with create=True (casstore init {self.url})."

    # ---- reading

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Fetch a range."""
        validate_range(start, length)
        path = self._path(validate_key(key))
        if length is not None and not 0 < length <= _TRUSTED:
            # Some file systems allocate as much as they are asked for, and fail when asked for nothing.
            length = min(length, max(0, self.stat(key).size - start))
            if not length:
                return b""
        end = None if length is None else start + length
        try:
            with self._translated(self._doing("read", key)):
                return filesystems.fetch(self._fs, path, start=start or None, end=end)
        except ObjectNotFound:
            self._require_anchor()
            raise
        except RangeNotSatisfiable:
            # Servers refuse such a range; the contract says that it is empty.
            return b""
        except BackendError as error:
            # Invariant 8: the object is certainly absent, unlike with other errors; some of these mean a directory, which is no object.
            if isinstance(error.__cause__, IsADirectoryError):
                raise self._not_an_object("read", key) from error
            raise

    def read_into(self, key: str, buffer: memoryview, *, start: int = 0) -> int:
        """Fetch a range and copy it into the caller's buffer."""
        data = self.read(key, start=start, length=buffer.nbytes)
        if data:
            buffer.cast("B")[: len(data)] = data
        return len(data)

    def stat(self, key: str) -> Entry:
        """Ask for one object's properties."""
        path = self._path(validate_key(key))
        try:
            with self._translated(self._doing("find", key)):
                info = self._fs.info(path)
        except ObjectNotFound:
            self._require_anchor()
            raise
        if info.get("type") != "file":
            raise self._not_an_object("find", key)
        return entry(key, info)

    def list(self, prefix: str) -> Iterator[Entry]:
        """List flat where the file system can, else directory by directory."""
        return self._listing(prefix, entry)

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Take only the names from the same listing."""
        return self._listing(prefix, _key_only, sizes=False)

    def list_foreign(self) -> Iterator[str]:
        """Take the paths that cannot be keys from the same listing."""
        listed = self._listing("", _key_only, sizes=False, wanted=_is_visible)
        return (path for path in listed if not is_key(path))

    def _listing(
        self,
        prefix: str,
        take: Callable[[str, Mapping[str, Any]], _T],
        *,
        sizes: bool = True,
        wanted: Callable[[str], bool] = is_key,
    ) -> Iterator[_T]:
        """Yield what `take` makes of each file below `prefix` whose path is `wanted`, in order."""
        validate_prefix(prefix)
        self._fs.invalidate_cache()
        lister = lister_of(self._fs)
        if lister is not None:
            return self._listed_directly(prefix, lister, take, wanted)
        found = (
            self._flat(prefix, sizes=sizes, wanted=wanted)
            if finds_natively(self._fs)
            else self._walk(prefix, wanted)
        )
        return (take(key, info) for key, info in found)

    def _listed_directly(
        self,
        prefix: str,
        lister: Lister,
        take: Callable[[str, Mapping[str, Any]], _T],
        wanted: Callable[[str], bool],
    ) -> Iterator[_T]:
        bucket, _, root = self._root.partition("/")
        below = f"{root}/" if root else ""
        found: dict[str, _T] = {}
        try:
            with self._translated(self._doing("list", prefix)):
                for info in lister(self._fs, bucket, below + prefix):
                    key = info["name"][len(below) :]
                    # Not objects: directory markers, and files of other programs.
                    if info["type"] == "file" and wanted(key):
                        found[key] = take(key, info)
        except ObjectNotFound:
            # Invariant 8: "not found" can only mean the bucket here.
            self._require_anchor()
            raise
        # Not every server lists in order: S3 Express One Zone does not, nor Azure with directories.
        for key in sorted(found):
            yield found[key]

    def _flat(self, prefix: str, *, sizes: bool, wanted: Callable[[str], bool]) -> Iterator[_Listed]:
        path = self._path(prefix).rstrip("/")
        found: dict[str, Any]
        # A web server is asked for each size in turn.
        options = {} if sizes or self._protocol not in filesystems.HTTP else {"sizes": False}
        try:
            with self._translated(self._doing("list", prefix)):
                found = self._fs.find(path, detail=True, **options)
        except ObjectNotFound:
            found = {}  # the check below decides whether that means empty
        if not found:
            # Invariant 8: empty only when the store is there.
            self._require_anchor()
        skip = len(self._root) + 1
        for name in sorted(found):
            key, info = name[skip:], found[name]
            # Not objects: directory markers, and files of other programs.
            if info.get("type") == "file" and wanted(key) and key.startswith(prefix):
                yield key, info

    def _walk(self, prefix: str, wanted: Callable[[str], bool]) -> Iterator[_Listed]:
        """List the directories below, several at once: each is a round trip, and refs have hundreds."""
        with ThreadPoolExecutor(_LISTERS, thread_name_prefix="casstore-list") as threads:
            yield from self._emit(prefix, self._children(prefix, wanted, top=True), wanted, threads)

    def _emit(
        self,
        prefix: str,
        children: Sequence[_Listed],
        wanted: Callable[[str], bool],
        threads: ThreadPoolExecutor,
    ) -> Iterator[_Listed]:
        """Yield what lies below, in order; the threads list the next few directories meanwhile."""
        folders = iter([name for name, _ in children if name.endswith("/")])
        ahead: deque[Future[Sequence[_Listed]]] = deque()
        try:
            for name, info in children:
                if name.endswith("/"):
                    for folder in islice(folders, _LISTERS - len(ahead)):
                        ahead.append(threads.submit(self._children, prefix + folder, wanted, top=False))
                    yield from self._emit(prefix + name, ahead.popleft().result(), wanted, threads)
                elif info["type"] == "file":
                    yield prefix + name, info
        finally:
            for listing in ahead:
                listing.cancel()

    def _children(self, prefix: str, wanted: Callable[[str], bool], *, top: bool) -> Sequence[_Listed]:
        """List one directory: names in the order of whole keys, those of directories with a slash."""
        # Not fs.find or fs.walk: they leave out directories that could not be read (invariant 8).
        try:
            with self._translated(self._doing("list", prefix)):
                children = self._fs.ls(self._path(prefix).rstrip("/") or "/", detail=True)
        except ObjectNotFound as error:
            if not top:
                # Invariant 8: casstore removes no directories, so a part of the listing is missing.
                raise BackendUnavailable(
                    f"Cannot list {prefix} in {self.url}: the directory disappeared while it was listed."
                ) from error
            self._require_anchor()
            return []
        if top and not children:
            self._require_anchor()
        named = {}
        for info in children:
            name = info["name"].rstrip("/").rsplit("/", 1)[-1]
            if wanted(name):
                named[f"{name}/" if info["type"] == "directory" else name] = info
        return sorted(named.items(), key=itemgetter(0))

    # ---- writing

    @property
    def creates_exclusively(self) -> bool:
        """Whether the file system has its own create-if-absent, and it works on this server.

        fsspec's default for mode="create" looks first and then writes, which no trial can tell from the real
        thing: only a file system with its own version is tried.
        """
        if self._exclusive is None:
            native = self._links or (not self._renames and pipes_natively(self._fs))
            self._exclusive = native and self._try_create()
        return self._exclusive

    def _try_create(self) -> bool:
        key = f"gc/probe-{uuid.uuid4().hex}"
        try:
            self._pipe_new(key, b"first")
            self._pipe_new(key, b"second")
        except ObjectExists:
            return self.read(key) == b"first"
        except BackendError as error:
            # Invariant 10: an outage answers nothing; any other refusal of the option does.
            if error.retryable or type(error) is not BackendError:
                raise
            return False
        else:
            return False
        finally:
            # Invariant 1 covers packs, index and refs; this scratch object is ours alone.
            self.delete(key)

    def _pipe_new(self, key: str, data: bytes) -> None:
        """Publish if absent, by the server's own means."""
        with self._translated(self._doing("create", key)):
            if self._links:
                self._under_temporary_name(data, key, exclusively=True)
            else:
                self._fs.pipe_file(self._path(key), data, mode="create")

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Send a small object in one request, or under a temporary name first."""
        validate_key(key)
        self.send(key, b"".join(byte_views(parts)))

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        """Send with the server's own create-if-absent."""
        validate_key(key)
        if not self.creates_exclusively:
            raise ConfigError(
                f"{self.url} cannot create an object only if it is absent, so racing writers cannot be told apart "
                "there."
            )
        self._pipe_new(key, b"".join(byte_views(parts)))

    def send(self, key: str, source: bytes | str) -> None:
        """Publish `source`, bytes or the path of a file. Raises ObjectExists when the key is taken."""
        if self._exclusive and isinstance(source, bytes):
            self._pipe_new(key, source)
            return
        tries = self._exclusive is not False and filesystems.creates_when_uploading(self._fs)
        if tries and self._sent_exclusively(key, source):
            return
        with self._translated(self._doing("write", key)):
            if self._renames:
                self._under_temporary_name(source, key)
                return
        self._require_free(key)
        with self._translated(self._doing("write", key)):
            filesystems.upload(self._fs, self._path(key), source)

    def _require_free(self, key: str) -> None:
        try:
            self.stat(key)
        except ObjectNotFound:
            return  # the name is free, as it should be (invariant 1)
        raise ObjectExists(f"{key} is in {self.url} already, and nothing is overwritten.")

    def _sent_exclusively(self, key: str, source: bytes | str) -> bool:
        """Publish if absent, in as many requests as the upload itself takes; return False if the server cannot."""
        try:
            with self._translated(self._doing("write", key)):
                filesystems.upload(self._fs, self._path(key), source, exclusively=True)
        except BackendError as error:
            # Invariant 10: an outage answers nothing; a refusal of the option does.
            if error.retryable or type(error) is not BackendError:
                raise
            return False
        return True

    def _under_temporary_name(self, source: bytes | str, key: str, *, exclusively: bool = False) -> None:
        """Write a whole file, and then give it its name by a link, which fails if the name is taken, or by a rename."""
        final = self._path(key)
        with self._temporary(source, final) as temporary:
            if self._links:
                try:
                    # Invariant 2: the final name appears on a whole file, and on one writer's only.
                    self._fs.link(temporary, final)
                except NotImplementedError:
                    if exclusively:
                        raise
                else:
                    self._remove_quietly(temporary)
                    return
            if not moves_natively(self._fs):
                raise ConfigError(
                    f"{self.url} cannot rename a file in one step, so half-written files could show in a store there."
                )
            # Invariant 1, as far as a replacing rename allows: the name was free a moment ago.
            self._require_free(key)
            # Invariant 2: the final name appears on a whole file.
            self._fs.mv(temporary, final)

    @contextmanager
    def _temporary(self, source: bytes | str, final: str) -> Iterator[str]:
        """Write `source` under a temporary name, and remove that if the block fails."""
        temporary = self._path(f"{_TEMPORARY}/{uuid.uuid4().hex}")
        directories = [path.rsplit("/", 1)[0] for path in (temporary, final)]
        missing = [directory for directory in directories if directory not in self._made]
        try:
            if hasattr(self._fs, "write_making"):
                self._fs.write_making(source, temporary, making=missing)
            else:
                for directory in missing:
                    self._fs.makedirs(directory, exist_ok=True)
                filesystems.upload(self._fs, temporary, source)
            self._made.update(missing)
            yield temporary
        except BaseException:
            self._made.clear()  # if somebody removed the directory, the next attempt makes it again
            self._remove_quietly(temporary)
            raise

    def _remove_quietly(self, path: str) -> None:
        # Invariant 2: a temporary name that was never published. The first error is the one to report, and
        # a leftover is recognised by its age later.
        with suppress(Exception):
            self._fs.rm_file(path)

    def open_writer(self) -> BlobWriter:
        """Return a writer that spools here and sends on commit."""
        return SpoolingWriter(self.send, self.url)

    def delete(self, key: str) -> None:
        """Remove one object."""
        self._remove(validate_key(key))

    def _remove(self, key: str) -> None:
        try:
            with self._translated(self._doing("delete", key)):
                # Invariant 5: only gc and repair call this, after confirming which copies survive.
                self._fs.rm_file(self._path(key))
        except ObjectNotFound:
            # Invariant 8: the object is gone already, unless the whole store is.
            self._require_anchor()

    @property
    def may_be_locked_by_others(self) -> bool:
        """Whether the server may keep objects as files of a folder, which others use without going through it."""
        return self._protocol not in _NEVER_A_FOLDER

    def mark_lockless(self) -> None:
        """Leave the marker once for this backend; everybody sees it on the server at once."""
        if not self._marked_lockless:
            super().mark_lockless()
            self._marked_lockless = True

    def list_temporaries(self) -> Iterator[Entry]:
        """Yield the files in the hidden directory, where objects get a temporary name first."""
        if not self._renames:
            return
        try:
            with self._translated(self._doing("list", _TEMPORARY)):
                children = self._fs.ls(self._path(_TEMPORARY), detail=True)
        except ObjectNotFound:
            self._require_anchor()
            return
        for info in sorted(children, key=lambda info: str(info["name"])):
            if info["type"] == "file":
                yield entry(f"{_TEMPORARY}/" + info["name"].rsplit("/", 1)[-1], info)

    def remove_temporary(self, key: str) -> None:
        """Remove one leftover."""
        directory, _, name = key.partition("/")
        if directory != _TEMPORARY or "/" in name or not is_key(name):
            raise ConfigError(f"{key!r} is not a leftover of a writer in {self.url}.")
        self._remove(key)

    def close(self) -> None:
        """Let go of this process's connections."""
        fs = self._file_systems.pop(os.getpid(), None)
        if fs is not None:
            filesystems.close(fs)


def _key_only(key: str, _: Mapping[str, Any]) -> str:
    return key


def _is_visible(path: str) -> bool:
    """Say whether no part of a path is hidden: hidden names are casstore's own, or the file system's."""
    return bool(path) and not path.startswith(".") and "/." not in path
