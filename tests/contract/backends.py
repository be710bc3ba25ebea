"""The backends that the contract suite runs on. A new backend is one more entry of BACKENDS."""

from __future__ import annotations

import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from casstore.backend import LocalBackend, MemoryBackend, RetryingBackend
from casstore.backend.fsspec_backend import FsspecBackend

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
    """An object store as fsspec presents one: whole puts, create-if-absent by the server, flat listings."""

    protocol = "objects"
    store: dict = {}  # noqa: RUF012  # fsspec's memory file system keeps its files on the class
    pseudo_dirs = [""]  # noqa: RUF012  # as above
    _server = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("objects://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        with self._server:
            super().pipe_file(path, value, mode=mode, **kwargs)


fsspec.register_implementation("objects", ObjectFileSystem, clobber=True)


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
def fsspec_memory(tmp_path):
    url = f"memory://{uuid.uuid4().hex}/store"

    def lose_root():
        fsspec.filesystem("memory").rm(url, recursive=True)

    yield Subject(
        FsspecBackend(url, create=True, publication="rename"),
        lambda: FsspecBackend(url, publication="rename"),
        exclusive=False,
        lose_root=lose_root,
    )


@contextmanager
def fsspec_objects(tmp_path):
    url = f"objects://{uuid.uuid4().hex}/store"

    def lose_root():
        ObjectFileSystem().rm(url, recursive=True)

    yield Subject(
        FsspecBackend(url, create=True, publication="put"),
        lambda: FsspecBackend(url, publication="put"),
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
        fsspec_memory,
        fsspec_objects,
    )
}
