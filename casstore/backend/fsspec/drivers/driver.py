"""What differs between the clients of storages: one class for each, with fsspec's own calls as the default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem

from casstore.errors import BackendUnavailable, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from casstore.errors import BackendError

    Found = tuple[str, Mapping[str, Any]]
    """An object's key, and what the file system says about it."""

# The last three are aiohttp's, which the clients of S3, Azure, GCS and HTTP are built on.
COMMON_ERRORS: dict[str, type[BackendError]] = dict.fromkeys(
    (
        "TimeoutError",
        "IncompleteReadError",
        "ClientConnectionError",
        "ClientPayloadError",
        "ServerTimeoutError",
    ),
    BackendUnavailable,
)


class Driver:
    """One client of a storage: facts about it on the class, and calls on an instance, which holds `fs`.

    Methods raise what the client raises; `connection.Connection` translates it with `errors`. An instance belongs to one
    process. This class itself is right for a file system that shows half-written files, with directories.
    """

    protocols: ClassVar[frozenset[str]] = frozenset()
    """The schemes of the URLs that are this driver's."""

    extra: ClassVar[str | None] = None
    """The extra of casstore that installs the client."""

    errors: ClassVar[Mapping[str, type[BackendError]]] = COMMON_ERRORS
    """What an exception means, by the name of its class or the service's own code; HTTP statuses are known anyway."""

    is_remote: ClassVar[bool] = True
    """Whether each call is a network round trip."""

    is_read_only: ClassVar[bool] = False
    """Whether a store can only be read there."""

    is_bucket: ClassVar[bool] = False
    """Whether the root begins with a bucket, which must exist, and there are no directories."""

    puts_whole_objects: ClassVar[bool] = False
    """Whether an upload shows the whole object or nothing. Elsewhere objects get a temporary name first (invariant 2)."""

    may_be_locked_by_others: ClassVar[bool] = True
    """Whether the store may be a folder of some machine, which others use without this server."""

    links: ClassVar[bool] = False
    """Whether to name whole files by `link`, which creates them exclusively."""

    uploads_exclusively: ClassVar[bool] = False
    """Whether every upload can be exclusive, in as many requests as it takes anyway."""

    empty_is_certain: ClassVar[bool] = False
    """Whether `find` raises where the bucket is missing, so that an empty result needs no second look."""

    reconnects: ClassVar[bool] = False
    """Whether a broken connection stays broken, so that the next attempt needs a new one."""

    advice: ClassVar[str] = (
        "its directory is not there. Check the URL, or make a store with create=True (casstore init {url})."
    )
    """What to do when there is no store; it may name the {bucket} and the {url}."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    @staticmethod
    def open(url: str, options: Mapping[str, Any]) -> Any:
        """Return a new file system, with settings that are safe for a store where `options` do not say otherwise."""
        return url_to_fs(url, skip_instance_cache=True, **options)[0]

    def close(self) -> None:
        """Close the connections now, rather than when the file system is garbage-collected."""

    # ---- the root

    def root(self, url: str) -> str:
        """Return the path of the store, as this file system writes it."""
        return str(self.fs._strip_protocol(url)).rstrip("/")  # noqa: SLF001  # fsspec's documented hook

    @staticmethod
    def anchor(root: str) -> str:
        """Return a path that exists whenever the storage answers: without it no absence is certain (invariant 8)."""
        return root

    def check(self, root: str) -> None:
        """Raise unless the server can do what a store needs."""

    # ---- reading

    def read(self, path: str, *, start: int | None, end: int | None) -> bytes:
        """Return the bytes of an object, or a range of it, in one request."""
        return bytes(self.fs.cat_file(path, start=start, end=end))

    @property
    def finds(self) -> bool:
        """Whether `find` works: the file system lists what is below a folder by itself, and reports its errors.

        The inherited `find` walks the directories and skips those that it could not read (invariant 8).
        """
        return _has_own(self.fs, "find")

    def find(self, root: str, prefix: str, *, sizes: bool) -> Iterable[Found]:  # noqa: ARG002  # saves HTTP requests
        """Yield what lies below a prefix, in any order, and perhaps a little more; without `sizes` keys and types will do."""
        found: dict[str, Any] = self.fs.find(f"{root}/{prefix}".rstrip("/"), detail=True)
        return ((name[len(root) + 1 :], info) for name, info in found.items())

    # ---- writing

    def upload(self, path: str, source: bytes | str, *, exclusively: bool = False) -> None:
        """Send bytes, or the file of this name, in bounded memory where the client library supports it.

        With `exclusively` the server refuses a name that is taken; only bytes unless `uploads_exclusively`.
        """
        if isinstance(source, bytes):
            self.fs.pipe_file(path, source, **({"mode": "create"} if exclusively else {}))
        else:
            self.fs.put_file(source, path)

    @property
    def creates(self) -> bool:
        """Whether to try exclusive creation: fsspec's default looks first and then writes, which no trial could detect."""
        return self.links or (self.puts_whole_objects and _has_own(self.fs, "pipe_file"))

    def write_making(self, source: bytes | str, path: str, *, making: Sequence[str]) -> None:
        """Write bytes, or the file of this name, to a new file, and make these directories if they are missing."""
        for directory in making:
            self.fs.makedirs(directory, exist_ok=True)
        self.upload(path, source)

    def link(self, temporary: str, final: str) -> None:
        """Give a whole file a second name, if that is free; only where `links`.

        Raises FileExistsError when the name is taken, NotImplementedError where the server makes no links.
        """
        self.fs.link(temporary, final)

    def rename(self, temporary: str, final: str) -> None:
        """Rename in one step; raise ConfigError where fsspec would copy, and half a file would show (invariant 2)."""
        if type(self.fs).mv is AbstractFileSystem.mv and not hasattr(self.fs, "_mv"):
            raise ConfigError(
                f"Cannot rename {temporary} to {final} in one step there, so half-written files could show in the "
                "store. Use a storage with such renames (SFTP, a bucket)."
            )
        self.fs.mv(temporary, final)


class BucketDriver(Driver):
    """A bucket of whole objects; right for any client that fsspec drives without surprises."""

    is_bucket = True
    puts_whole_objects = True
    may_be_locked_by_others = False
    advice = "the bucket or container {bucket} does not exist. Check the URL, or create it first."

    @staticmethod
    def anchor(root: str) -> str:
        """Return the bucket."""
        return root.split("/", 1)[0]


def _has_own(fs: Any, method: str) -> bool:
    """Say whether a method is the file system's own rather than the one that fsspec builds from others."""
    # Asynchronous file systems implement the name with an underscore; the other calls it.
    base, name = (
        (AsyncFileSystem, f"_{method}") if isinstance(fs, AsyncFileSystem) else (AbstractFileSystem, method)
    )
    return getattr(type(fs), name) is not getattr(base, name)
