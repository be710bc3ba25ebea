"""ModelStore: the models, refs and objects of one directory or bucket, for the layers above.

Adding and checking out are imported when they are called: half of the commands do neither, and start faster without.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from casstore.backend.local.syscalls import SystemCalls
from casstore.errors import CasstoreError
from casstore.format import names
from casstore.machine.uses.last_use import LastUse
from casstore.objects import CHUNK_CACHE, ObjectStore
from casstore.store.dependencies import count_lacking, described, is_whole, objects_of
from casstore.store.reading import files
from casstore.store.reading.missing import tell_missing_in
from casstore.store.reading.model_reader import ModelReader
from casstore.store.ref_store import RefStore
from casstore.store.resolve import Resolved, find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import BinaryIO

    from fsspec import Callback
    from numpy.typing import NDArray

    from casstore.backend.base import Backend
    from casstore.format.layout import Layout
    from casstore.format.record import Record
    from casstore.machine.state import MachineState
    from casstore.store.adding.add import AddResult
    from casstore.store.adding.bases.policy import DeltaOption
    from casstore.store.reading.model import Model
    from casstore.store.reading.other_stores import OtherStores

T = TypeVar("T")


class ModelStore(RefStore):
    """The models of one store, and the records behind them. Safe in threads, and in a child process after a fork.

    `casstore.Store` is what people use: it opens one, and adds the work on whole stores.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        store_id: bytes,
        machine: MachineState,
        index_copies: str | None = None,
        chunk_cache: int = CHUNK_CACHE,
        others: OtherStores | None = None,
        file_system_type: Callable[[str], str | None] | None = None,
        last_use: LastUse | None = None,
        delta: DeltaOption = "balanced",
    ) -> None:
        """`index_copies` is where this machine keeps index segments of a remote store, None for nowhere.

        `others` are stores from which models are read where this one has lost something. `file_system_type` names the type
        of the file system that a path is on, as in mount(8); None asks the system. `delta` is how `add` uses what the store
        has.
        """
        super().__init__(
            backend, store_id=store_id, machine=machine, index_copies=index_copies, chunk_cache=chunk_cache
        )
        self._delta = delta
        self.last_use = last_use or LastUse(None)
        self.file_system_type = file_system_type or SystemCalls().file_system_type
        self._open_models = ModelReader(
            backend, self.objects, self._refs, others=others, chunk_cache=chunk_cache
        )

    def close(self) -> None:
        """Release files and connections; the store must not be used afterwards."""
        self._open_models.close()
        super().close()

    @property
    def _models(self) -> ModelReader:
        self._require_open()
        return self._open_models

    @property
    def reader(self) -> ObjectStore:
        """The objects for those who only read models; work on the store itself must see what is missing."""
        return self._models.objects

    def add(
        self,
        path: str | os.PathLike[str] | Mapping[str, str],
        *,
        ref: str | None = None,
        base: str | None = None,
        metadata: dict[str, Any] | None = None,
        callback: Callback | None = None,
        follow_links: bool = True,
        stat_cache: bool = True,
        exclude: Sequence[str] = (),
        ignore_file: bool = True,
        delta: DeltaOption | None = None,
    ) -> AddResult:
        """Add a file or directory and make `ref` name it; return what it took.

        `ref="minilm"` means `models/minilm`. By default the file or folder gives the name, `./minilm` is added as
        `models/minilm`, and a map as `models/<model id>`. A map adds several files and directories at once, each
        under the path in the model that is its key. `base` is the model that it was made from; it and `metadata` are
        kept in the ref's record. Chunks are stored as deltas against tensors of the store that predict them, of the base or of like
        models, as `delta` allows, by default the store's own setting. `stat_cache=False` reads files even if their times say that nothing changed.
        `exclude` are patterns, as in .gitignore, of what is left out of every folder that is added; one that is added
        by its own path also leaves out what its `.casstoreignore` says, unless `ignore_file` is off. Raises
        PathNotFound (a FileNotFoundError) if there is nothing to add, ConfigError for paths that cannot be kept,
        ConflictError for a file that changes meanwhile, and its subclass NameTaken if a name given by default is
        another model's, which keeps it; then no ref names what was added.
        """
        from casstore.store.adding.add import add_model  # noqa: PLC0415 - see the top of this file
        from casstore.store.adding.exclusion import Exclusion  # noqa: PLC0415 - see the top of this file

        return add_model(
            self,
            self._refs,
            path,
            ref=ref,
            base=base,
            metadata=metadata,
            callback=callback,
            follow_links=follow_links,
            stat_cache=stat_cache,
            exclusion=Exclusion(exclude, ignore_file=ignore_file),
            delta=self._delta if delta is None else delta,
        )

    def get(
        self,
        ref_or_id: str,
        dest: str | os.PathLike[str],
        *,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        force: bool = False,
        callback: Callback | None = None,
    ) -> Model:
        """Write the files of a model into the directory `dest`, verified; return the model.

        `include` and `exclude` are patterns, as `allow_patterns` and `ignore_patterns` of huggingface_hub: a file is
        written if its path matches one of `include`, by default all, and none of `exclude`; `*` matches `/` as well,
        and "logs/" means all below that folder. `dest` must not exist or be empty; with `force`, files of the same
        names are replaced and everything else in it is left alone. Raises RefNotFound, PathNotFound if no file
        matches, ConfigError, naming them, for paths of the model that the file system of `dest` cannot hold, and for a
        `dest` in a store's directory; nothing is written then.
        """
        from casstore.store.checkout.checkout import Checkout  # noqa: PLC0415 - see the top of this file
        from casstore.store.checkout.selection import select_files  # noqa: PLC0415 - see the top of this file

        def write(model: Model, objects: ObjectStore) -> Model:
            tree, layouts = select_files(model, include, exclude)
            checkout = Checkout(os.fspath(dest), force=force, callback=callback)
            checkout.run(tree, layouts, objects, executable=model.executable)
            return model

        return self.read_with(ref_or_id, write)

    def checkout_record(
        self,
        record: Record,
        dest: str | os.PathLike[str],
        *,
        force: bool = False,
        read_only: bool = False,
        callback: Callback | None = None,
    ) -> Model:
        """Write the files of the model that one record names, as `get` does.

        With `read_only`, the files may not be written to afterwards.
        """
        from casstore.store.checkout.checkout import Checkout  # noqa: PLC0415 - see the top of this file

        model = self.model_of(record, elsewhere=True)
        checkout = Checkout(os.fspath(dest), force=force, read_only=read_only, callback=callback)
        checkout.run(model.tree, model.layouts, self.reader, executable=model.executable)
        self._note_use(model)
        return model

    def open_file(self, ref_or_id: str, path: str) -> BinaryIO:
        """Open one file of a model for reading; only the chunks that are read are fetched and decoded.

        Raises RefNotFound, PathNotFound for no such file in the model.
        """
        return self.open_layout(self.read_with(ref_or_id, lambda model, _: model.layout(path)), name=path)

    def open_layout(self, layout: Layout, *, name: str) -> BinaryIO:
        """Open the file that a layout describes for reading; `name` is its name."""
        chunks = files.open_chunks(layout, self.reader)
        told = files.ToldChunks(
            chunks, lambda error: tell_missing_in(error, name, [name], [layout], self.objects)
        )
        return files.ModelFile(files.StoredFile(layout, told, name=name))

    def read_part(self, layout: Layout, begin: int, end: int, *, name: str) -> memoryview:
        """Return bytes [`begin`, `end`) of the file that a layout describes, in memory that the caller owns; `name` is its name.

        Unlike an open file, nothing is kept or read ahead.
        """
        try:
            return files.read_part(layout, self.reader, begin, end)
        except CasstoreError as error:
            # Invariant 11: the error goes on to the caller, who is told what else is missing.
            tell_missing_in(error, name, [name], [layout], self.objects)
            raise

    def read_tensor(self, ref_or_id: str, tensor: str, *, file: str | None = None) -> NDArray[Any]:
        """Return one tensor as an array that the caller owns, reading only its chunks; `file` is the one that holds it.

        Without `file`, whichever file of the model has a tensor of this name. bf16 and fp8 come as the types of
        ml_dtypes if that is installed, else as unsigned integers of their width; block-quantised types as raw bytes.
        Raises RefNotFound, PathNotFound, TensorNotFound (a KeyError) for no such tensor, ConfigError if several files
        have one.
        """

        def read(model: Model, objects: ObjectStore) -> NDArray[Any]:
            path = file if file is not None else files.find_tensor(model, tensor)
            return files.read_tensor(model.layout(path), objects, tensor=tensor, path=path)

        return self.read_with(ref_or_id, read)

    def read_with(self, ref_or_id: str, read: Callable[[Model, ObjectStore], T]) -> T:
        """Return what `read` makes of a model and of the objects that it may read, which counts as a use of it.

        Packs may vanish meanwhile (`ModelReader.read`). Raises RefNotFound, MissingObject, which says what is missing.
        """
        used, result = self._models.read(ref_or_id, lambda model, objects: (model, read(model, objects)))
        self._note_use(used)
        return result

    def _note_use(self, model: Model) -> None:
        self.last_use.note(bytes.fromhex(model.model_id))

    def model(self, ref_or_id: str) -> Model:
        """Return what a model consists of: its tree, its layouts and the record that names it."""
        return self._models.read(ref_or_id, lambda model, _: model)

    def model_of(self, record: Record, *, elsewhere: bool = False) -> Model:
        """Return what the model of one record consists of.

        What describes it is read from this store alone, or `elsewhere` if this store has lost it.
        """
        return self._models.of(record, elsewhere=elsewhere)

    def resolve(self, ref_or_id: str) -> Resolved:
        """Say which model a ref, a model id, a prefix of one (4 digits or more) or a bare name means.

        If several refs name the model of an id, the one written last is returned. Raises RefNotFound.
        """
        record = find_model(self._refs, ref_or_id)
        assert record.target is not None
        return Resolved(record.name, record.target.hex(), record)

    def tag(self, name: str, ref_or_id: str) -> str:
        """Make `tags/<name>` name a model; return the ref's full name.

        Raises RefConflict if someone else moves the tag at the same time.
        """
        name = name if name.startswith("tags/") else f"tags/{name}"
        names.check_name(name)
        model = self.model(ref_or_id)
        manifest_id = model.record.manifest
        assert manifest_id is not None
        model_id = bytes.fromhex(model.model_id)
        needed = described(model)
        with self.publication() as publication:
            publication.require(needed)
            publication.commit(
                lambda packs: self._refs.draft(
                    name,
                    target=model_id,
                    manifest=manifest_id,
                    base=model.record.base,
                    packs=packs,
                    stands=lambda record: is_whole(self, record, publication),
                ),
                lambda _: iter(()),
            )
        return name

    def objects_of(self, record: Record) -> list[bytes]:
        """Return the ids of all objects that a record depends on, the bases of deltas included.

        There are none where its manifest lies inside it.
        """
        return objects_of(self, record)

    def lacks(self, record: Record) -> int:
        """Return how many objects that a record depends on are in no pack of the store that can be seen.

        A delta that lacks a base counts, and so do objects in a truncated pack. If objects that describe
        a model are missing, the number is a lower bound.
        """
        return count_lacking(self, record)

    def content_id(
        self, path: str | Mapping[str, str], *, exclude: Sequence[str] = (), ignore_file: bool = True
    ) -> str:
        """Return the model id that adding `path` would give; nothing is added."""
        from casstore.store.adding.content import content_id  # noqa: PLC0415 - see the top of this file
        from casstore.store.adding.exclusion import Exclusion  # noqa: PLC0415 - see the top of this file

        exclusion = Exclusion(exclude, ignore_file=ignore_file)
        return content_id(path, self.machine, exclusion=exclusion).hex()
