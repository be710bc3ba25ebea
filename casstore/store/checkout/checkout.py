"""Writing a model's files to a directory: decode in parallel, appear only when whole and verified.

Every path is opened relative to a directory descriptor and never through a link, so nothing outside the
destination is written whatever the tree says (design §11). Names that the destination cannot hold are refused
before anything is written (destination.py). Checkouts can be made again from the store, so
they are not fsynced.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from itertools import accumulate
from typing import TYPE_CHECKING

from casstore.backend.base import WRITE_PIECE
from casstore.backend.oserrors import from_os_error
from casstore.concurrency.buffers import give_block, take_block
from casstore.concurrency.workers import TaskGroup, worker_count
from casstore.digest import Hasher
from casstore.errors import ConfigError, ConflictError, DigestMismatch
from casstore.objects import BaseCache
from casstore.store.checkout import staging
from casstore.store.checkout.batches import Batch, OpenFile, open_at_once, plan_batches
from casstore.store.checkout.destination import check_destination
from casstore.store.nesting import refuse_inside_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from fsspec import Callback

    from casstore.format.layout import Layout
    from casstore.format.manifest import Tree, TreeEntry
    from casstore.objects import Located, ObjectStore
    from casstore.store.checkout.destination import FolderCalls

_LOOKED_UP = 8192
"""Chunks of which the bases are looked up at once: some gigabytes, and little memory."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Checkout:
    """Writes one model to `destination`; with `read_only`, to files that may not be written to. Use once.

    `calls` are the system calls with which names are tried there.
    """

    def __init__(
        self,
        destination: str,
        *,
        force: bool,
        callback: Callback | None,
        read_only: bool = False,
        calls: FolderCalls | None = None,
    ) -> None:
        self._destination = destination
        self._force = force
        self._read_only = read_only
        self._callback = callback
        self._calls = calls
        self._executable: frozenset[str] = frozenset()
        self._written: list[tuple[str, int]] = []
        self._open_files: list[OpenFile] = []
        self._swept: set[str] | None = None  # folders of a destination that others may write to as well

    def run(
        self,
        tree: Tree,
        layouts: Sequence[Layout],
        objects: ObjectStore,
        *,
        executable: frozenset[str] = frozenset(),
    ) -> None:
        """Write every file of `tree`; `layouts` are those of `tree.files`, in order, `executable` paths.

        A failure removes what was written so far, and nothing else. Raises ConfigError for a destination
        that is not an empty directory (unless forced), lies in a store or cannot hold the tree's names,
        IntegrityError for damage in the store.
        """
        self._executable = executable
        if self._callback is not None:
            self._callback.set_size(tree.size)
        with _storage_errors(self._destination):
            fresh = self._prepare()
            if fresh:
                parent, name = os.path.split(os.path.abspath(self._destination))
                staging.sweep_folders(parent, name)
                root, descriptor = staging.make_folder(parent, name)
            else:
                root = self._destination
                descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._write(descriptor, tree, layouts, objects)
                if fresh:
                    self._publish(root)
            except BaseException:
                # Invariant 4: whatever ended it, Ctrl-C included, what is not whole and checked does not stay. Only
                # own files are removed, and the error goes on.
                self._remove_written(descriptor)
                if fresh:
                    with contextlib.suppress(OSError):
                        os.rmdir(root)  # Invariant 4: the staging directory is ours.
                raise
            finally:
                with contextlib.suppress(OSError):
                    os.close(descriptor)  # Invariant 4: nothing was written through it.

    def _prepare(self) -> bool:
        """Check the destination; say whether it has yet to be made."""
        if not self._destination or "\0" in self._destination:
            raise ConfigError(f"{self._destination!r} is not a path. Give a folder to write to.")
        refuse_inside_store(self._destination)
        try:
            descriptor = os.open(self._destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if staging.tells_the_dead(self._destination):
                    self._swept = {""}
                    staging.sweep_files(descriptor)
                with os.scandir(descriptor) as listing:
                    occupied = next(listing, None) is not None
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            if os.path.islink(self._destination):
                raise ConfigError(f"{self._destination} is a broken link. Remove it first.") from None
            os.makedirs(os.path.dirname(os.path.abspath(self._destination)), exist_ok=True)
            return True
        except NotADirectoryError:
            raise ConfigError(f"{self._destination} is a file. Give a folder to write to.") from None
        if occupied and not self._force:
            raise ConfigError(
                f"{self._destination} is not empty. Give another folder, or use force (--force) to write into it."
            )
        return False

    def _publish(self, made: str) -> None:
        """Give a whole checkout its name; rename replaces an empty directory at most."""
        try:
            # Invariant 4: every file in it is whole and checked.
            os.rename(made, os.path.abspath(self._destination))
        except OSError as error:
            raise ConflictError(
                f"{self._destination} was made by someone else meanwhile: {error.strerror}."
            ) from error

    def _remove_written(self, root: int) -> None:
        for path, made in reversed(self._written):
            if not made:
                self._remove(root, path, os.unlink)
            place = path
            for _ in range(made):
                self._remove(root, place, os.rmdir)
                place = place.rpartition("/")[0]

    def _remove(self, root: int, path: str, call: Callable[..., None]) -> None:
        folder, _, name = path.rpartition("/")
        # Invariant 4. Folders that are gone, that others have filled, or that lie behind a link are left alone.
        with contextlib.suppress(OSError, ConfigError):
            directory = self._open_directory(root, folder, make=False)
            try:
                call(name.encode(), dir_fd=directory)
            finally:
                os.close(directory)

    def _write(self, root: int, tree: Tree, layouts: Sequence[Layout], objects: ObjectStore) -> None:
        check_destination(
            (entry.path for entry in tree.entries),
            shown=self._destination,
            open_folder=lambda path: self._open_directory(root, path, make=False),
            calls=self._calls,
        )
        for path in tree.empty:
            os.close(self._open_directory(root, path))
        located = objects.locate(b"".join(layout.ids for layout in layouts))
        window = worker_count() + 1
        most_open, most_pieces = open_at_once()
        pending: deque[tuple[Batch, Future[None]]] = deque()
        bases = BaseCache()
        known = 0
        try:
            with TaskGroup() as tasks:
                for batch in plan_batches(tree.files, layouts, most_pieces):
                    if batch.first + len(batch.lengths) > known:
                        known = min(batch.first + _LOOKED_UP, len(located.rows))
                        objects.know_bases(located, range(batch.first, known), bases)
                    self._open_targets(root, batch)
                    batch.buffer = take_block()
                    pending.append((batch, tasks.submit(_decode, objects, located, batch, bases)))
                    while len(pending) > window or len(self._open_files) > most_open:
                        self._complete_batch(*pending.popleft(), objects)
                while pending:
                    self._complete_batch(*pending.popleft(), objects)
        finally:
            for file in list(self._open_files):
                self._discard(file)

    def _open_targets(self, root: int, batch: Batch) -> None:
        """Open a temporary file for each file that begins in `batch`; one that goes on is the newest open."""
        for piece in batch.pieces:
            if piece.offset == 0:
                self._open_files.append(self._create(root, piece.entry))
            piece.file = self._open_files[-1]

    def _complete_batch(self, batch: Batch, decoded: Future[None], objects: ObjectStore) -> None:
        """Hash what a worker decoded and wrote, in file order; files that end there get their names."""
        decoded.result()
        at = 0
        for piece in batch.pieces:
            assert piece.file is not None
            piece.file.hasher.update(batch.buffer[at : at + piece.length])
            at += piece.length
            if self._callback is not None:
                self._callback.relative_update(piece.length)
            if piece.last:
                if piece.file.hasher.digest() != piece.entry.file_id:
                    _write_again(piece.file, piece.layout, objects)
                self._complete(piece.file)
                self._open_files.remove(piece.file)
        give_block(batch.buffer)

    def _create(self, root: int, entry: TreeEntry) -> OpenFile:
        folder, _, name = entry.path.rpartition("/")
        directory = self._open_directory(root, folder)
        mode = 0o555 if entry.path in self._executable else 0o444
        if not self._read_only:
            mode |= 0o222
        try:
            if self._swept is not None and folder not in self._swept:
                self._swept.add(folder)
                staging.sweep_files(directory)
            temporary, descriptor = staging.make_file(directory, mode, hold=self._swept is not None)
        except OSError:
            os.close(directory)
            raise
        return OpenFile(entry, directory, name, temporary, descriptor, Hasher())

    def _complete(self, file: OpenFile) -> None:
        """Give a file its name once its bytes have the hash that the tree names (invariant 4)."""
        actual = file.hasher.digest()
        assert file.entry.file_id is not None
        if actual != file.entry.file_id:
            raise DigestMismatch(
                file.entry.file_id.hex(),
                actual.hex(),
                file.entry.path,
                "Its layout does not describe it: add the model again.",
            )
        # A network file system may report errors only on close, so close before the file gets its name;
        # the lock stays until then.
        os.close(os.dup(file.descriptor))
        existed = self._check_replaceable(file)
        os.rename(file.temporary, file.name.encode(), src_dir_fd=file.directory, dst_dir_fd=file.directory)
        if not existed:
            self._written.append((file.entry.path, 0))
        # The descriptor is free even if close fails, and may already be another thread's file.
        descriptor, file.descriptor = file.descriptor, -1
        os.close(descriptor)
        directory, file.directory = file.directory, -1
        os.close(directory)

    def _check_replaceable(self, file: OpenFile) -> bool:
        """Say whether a regular file of this name exists; refuse to replace anything else."""
        try:
            status = os.stat(file.name.encode(), dir_fd=file.directory, follow_symlinks=False)
        except FileNotFoundError:
            return False  # Invariant 4: the name is free.
        if not (self._force and stat.S_ISREG(status.st_mode)):
            raise ConfigError(
                f"{file.entry.path} is in the way in {self._destination}. Move it, then try again."
            )
        return True

    def _discard(self, file: OpenFile) -> None:
        descriptor, directory, file.descriptor, file.directory = file.descriptor, file.directory, -1, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(
                    descriptor
                )  # The file is being discarded, so an error of its last write changes nothing (invariant 4).
        if directory >= 0:
            with contextlib.suppress(OSError):
                os.unlink(file.temporary, dir_fd=directory)  # Invariant 4: an incomplete file is not kept.
            with contextlib.suppress(OSError):
                os.close(directory)  # Nothing was written through it.

    def _open_directory(self, root: int, path: str, *, make: bool = True) -> int:
        """Open a directory of the tree below `root`, following no link; `make` what is missing."""
        current = os.dup(root)
        done: list[str] = []
        made = deepest = 0
        try:
            for part in filter(None, path.split("/")):
                done.append(part)
                name = part.encode()  # Names are UTF-8, whatever the locale.
                try:
                    try:
                        child = os.open(name, _DIRECTORY, dir_fd=current)
                    except FileNotFoundError:
                        if not make:
                            raise
                        os.mkdir(name, 0o777, dir_fd=current)
                        made, deepest = made + 1, len(done)
                        child = os.open(name, _DIRECTORY, dir_fd=current)
                except NotADirectoryError as error:
                    # Design §11: a link or a file where a folder must be is never followed or replaced.
                    raise ConfigError(
                        f"{'/'.join(done)} is in the way in {self._destination}. Move it, then try again."
                    ) from error
                finally:
                    os.close(current)
                current = child
        finally:
            if made:
                # One entry, however deep: keeping the path of every folder would take memory quadratic in the depth.
                self._written.append(("/".join(done[:deepest]), made))
        return current


def _decode(
    objects: ObjectStore,
    located: Located,
    batch: Batch,
    bases: BaseCache | None = None,
    *,
    verify: bool = False,
) -> None:
    """Decode a batch into its buffer, and write its pieces where they belong; for a worker.

    The hash of the whole file covers every chunk, and nothing has its name before that is checked (invariant 4). `bases` keeps
    what other batches need as well.
    """
    wanted = range(batch.first, batch.first + len(batch.lengths))
    edges = [0, *accumulate(batch.lengths)]
    objects.fill(located, wanted, batch.buffer, edges, verify=verify, cache=bases)
    at = 0
    for piece in batch.pieces:
        assert piece.file is not None
        _write_at(piece.file.descriptor, batch.buffer[at : at + piece.length], piece.offset)
        at += piece.length


def _write_again(file: OpenFile, layout: Layout, objects: ObjectStore) -> None:
    """Rewrite a file that came out wrong, verifying each chunk: either another pack has it whole, or the damage is raised."""
    file.hasher = Hasher()
    located = objects.locate(layout.ids)
    for batch in plan_batches([file.entry], [layout]):
        batch.buffer = take_block()
        for piece in batch.pieces:
            piece.file = file
        _decode(objects, located, batch, verify=True)
        file.hasher.update(batch.buffer[: batch.size])
        give_block(batch.buffer)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data[:WRITE_PIECE], offset)
        data, offset = data[count:], offset + count


@contextlib.contextmanager
def _storage_errors(destination: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(
            error,
            f"write to {destination}",
            place=os.path.abspath(destination),
            elsewhere="choose a folder on another disk",
        ) from error  # Design §12: callers get casstore's errors.
