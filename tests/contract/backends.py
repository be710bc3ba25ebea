"""The backends that the contract suite runs on. A new backend is one more entry of BACKENDS.

Each is a context manager that takes a folder and, when it needs a server, the name under which test_backends.py
finds the server's fixture.
"""

from __future__ import annotations

import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from casstore.backend import LocalBackend, MemoryBackend, RetryingBackend, open_backend
from casstore.backend.fsspec.backend import FsspecBackend
from casstore.backend.fsspec.drivers.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore.backend import Backend


@dataclass(frozen=True)
class Subject:
    """A backend under test. `reopen` gives another handle on the same store, as another client would."""

    backend: Backend
    reopen: Callable[[], Backend]
    exclusive: bool  # what creates_exclusively must say
    lose_root: Callable[[], None] | None = None  # takes the whole store away, as an outage would


class ObjectFileSystem(MemoryFileSystem):
    """An object store as fsspec presents one: whole puts, create-if-absent by the server, flat listings.

    The server does one thing at a time: what it is listing does not change under its hands.
    """

    protocol = "objects"
    store: dict = {}  # noqa: RUF012  # fsspec's memory file system keeps its files on the class
    pseudo_dirs = [""]  # noqa: RUF012  # as above
    _server = threading.RLock()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("objects://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        with self._server:
            super().pipe_file(path, value, mode=mode, **kwargs)

    def put_file(self, lpath, rpath, **kwargs):
        with self._server:
            super().put_file(lpath, rpath, **kwargs)

    def rm_file(self, path):
        with self._server:
            super().rm_file(path)

    def find(self, path, **kwargs):
        with self._server:
            return super().find(path, **kwargs)

    def ls(self, path, **kwargs):
        with self._server:
            return super().ls(path, **kwargs)


class RenamingFileSystem(ObjectFileSystem):
    """A file system whose puts may show half a file, and whose renames take one step."""

    protocol = "renames"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("renames://"))

    def mv(self, path1, path2, **kwargs):
        with self._server:
            self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))


class UnorderedFileSystem(RenamingFileSystem):
    """Lists directories in no order, and some names twice, as pages that overlap do."""

    protocol = "unordered"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("unordered://"))

    def ls(self, path, **kwargs):
        return out_of_order(super().ls(path, **kwargs))


def out_of_order(items):
    """Return what a server that does not sort lists: odd ones first, and one of three once more."""
    items = list(items)
    return [*items[1::2], *reversed(items[::2]), *items[::3]]


class ObjectDriver(Driver):
    """Drives a file system whose puts show whole objects."""

    puts_whole_objects = True


class UnorderedDriver(ObjectDriver):
    """Lists flat as the client library of a bucket that does not sort."""

    empty_is_certain = True

    def find(self, root, prefix, *, sizes):
        bucket = root[: root.index("/", 1)]
        if not self.fs.find(bucket):
            raise FileNotFoundError(bucket)
        return out_of_order(super().find(root, "", sizes=sizes))


fsspec.register_implementation("objects", ObjectFileSystem, clobber=True)
fsspec.register_implementation("unordered", UnorderedFileSystem, clobber=True)
fsspec.register_implementation("renames", RenamingFileSystem, clobber=True)


@contextmanager
def local(tmp_path):
    root = tmp_path / "store"
    backend = LocalBackend(root, create=True)
    yield Subject(
        backend,
        lambda: LocalBackend(root),
        exclusive=True,
        lose_root=lambda: root.rename(tmp_path / "elsewhere"),
    )


@contextmanager
def local_group(tmp_path):
    root = tmp_path / "store"
    yield Subject(
        LocalBackend(root, create=True, shared="group", durability="none"),
        lambda: LocalBackend(root),
        exclusive=True,
    )


@contextmanager
def memory(tmp_path):
    name = uuid.uuid4().hex
    yield Subject(MemoryBackend(name), lambda: MemoryBackend(name), exclusive=True)


@contextmanager
def retrying_memory(tmp_path):
    name = uuid.uuid4().hex
    yield Subject(RetryingBackend(MemoryBackend(name)), lambda: MemoryBackend(name), exclusive=True)


@contextmanager
def fsspec_local(tmp_path):
    root = tmp_path / "store"
    yield Subject(
        FsspecBackend(f"file://{root}", create=True),
        lambda: FsspecBackend(f"file://{root}"),
        exclusive=False,
        lose_root=lambda: root.rename(tmp_path / "elsewhere"),
    )


@contextmanager
def fsspec_renames(tmp_path):
    url = f"renames://{uuid.uuid4().hex}/store"

    def lose_root():
        RenamingFileSystem().rm(url, recursive=True)

    yield Subject(
        FsspecBackend(url, create=True),
        lambda: FsspecBackend(url),
        exclusive=False,
        lose_root=lose_root,
    )


@contextmanager
def fsspec_objects(tmp_path):
    url = f"objects://{uuid.uuid4().hex}/store"

    def lose_root():
        ObjectFileSystem().rm(url, recursive=True)

    yield Subject(
        FsspecBackend(url, create=True, driver=ObjectDriver),
        lambda: FsspecBackend(url, driver=ObjectDriver),
        exclusive=True,
        lose_root=lose_root,
    )


@contextmanager
def fsspec_unordered(tmp_path):
    url = f"unordered://{uuid.uuid4().hex}/store"
    yield Subject(FsspecBackend(url, create=True), lambda: FsspecBackend(url), exclusive=False)


@contextmanager
def fsspec_unordered_bucket(tmp_path):
    url = f"objects://{uuid.uuid4().hex}/store"
    ObjectFileSystem().pipe_file(f"{url}-beside", b"so that the bucket is there")
    yield Subject(
        RetryingBackend(FsspecBackend(url, create=True, driver=UnorderedDriver)),
        lambda: FsspecBackend(url, driver=UnorderedDriver),
        exclusive=True,
    )


@contextmanager
def s3(tmp_path, server):
    bucket = server.make_bucket()
    yield _on(server, f"s3://{bucket}/some/store", lambda: server.drop_bucket(bucket))


@contextmanager
def azure(tmp_path, server):
    container = server.make_container()
    yield _on(server, f"az://{container}/some/store", lambda: server.drop_container(container))


@contextmanager
def sftp(tmp_path, server):
    root = tmp_path / "some/store"
    yield _on(server, server.url(root), lambda: root.rename(tmp_path / "elsewhere"))


def _on(server, url, lose_root):
    return Subject(
        open_backend(url, create=True, **server.options),
        lambda: open_backend(url, **server.options),
        exclusive=True,
        lose_root=lose_root,
    )


BACKENDS = {
    function.__name__: function
    for function in (
        local,
        local_group,
        memory,
        retrying_memory,
        fsspec_local,
        fsspec_renames,
        fsspec_objects,
        fsspec_unordered,
        fsspec_unordered_bucket,
    )
}
ON_SERVERS = {"s3": s3, "azure": azure, "sftp": sftp}
