"""ModelStore: the models, refs and objects of one directory or bucket, for the layers above."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from casstore.backend.local.syscalls import SystemCalls
from casstore.digest import digest
from casstore.errors import CasstoreError, ConfigError, FormatError
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.rows import Kind
from casstore.machine.last_use import LastUse
from casstore.objects import CHUNK_CACHE, ObjectStore, check_object, encode_object
from casstore.refs.refs import Refs, not_found
from casstore.refs.rows import RefQuery
from casstore.store.adding.add import AddResult, add_model, check_record
from casstore.store.adding.content import content_id
from casstore.store.adding.exclusion import Exclusion
from casstore.store.checkout.checkout import Checkout
from casstore.store.checkout.selection import select_files
from casstore.store.dependencies import count_lacking, described, is_whole, objects_of
from casstore.store.reading import files
from casstore.store.reading.missing import tell_missing_in
from casstore.store.reading.model_reader import ModelReader
from casstore.store.resolve import Resolved, find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import BinaryIO

    from fsspec import Callback
    from numpy.typing import NDArray
    from typing_extensions import Self

    from casstore.backend.base import Backend
    from casstore.format.layout import Layout
    from casstore.format.record import Record
    from casstore.machine.state import MachineState
    from casstore.objects import Damage, Publication
    from casstore.refs.rows import RefRow
    from casstore.store.reading.model import Model
    from casstore.store.reading.other_stores import OtherStores

T = TypeVar("T")


class ModelStore:
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
    ) -> None:
        """`index_copies` is where this machine keeps index segments of a remote store, None for nowhere.

        `others` are stores from which models are read where this one has lost something. `file_system_type` names the type
        of the file system that a path is on, as in mount(8); None asks the system.
        """
        self.backend = backend
        self.store_id = store_id.hex()
        self.objects = ObjectStore(backend, index_copies=index_copies, chunk_cache=chunk_cache)
        self.machine = machine
        self.last_use = last_use or LastUse(None)
        self.file_system_type = file_system_type or SystemCalls().file_system_type
        self._refs = Refs(backend, machine)
        self._models = ModelReader(backend, self.objects, self._refs, others=others, chunk_cache=chunk_cache)

    def close(self) -> None:
        """Release files and connections; the store must not be used afterwards."""
        self.objects.close()
        self._models.close()
        self.machine.close()
        self.backend.close()

    @property
    def reader(self) -> ObjectStore:
        """The objects for those who only read models; work on the store itself must see what is missing."""
        return self._models.objects

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.backend.url!r})"

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
    ) -> AddResult:
        """Add a file or directory and make `ref` name it; return what it took.

        `ref="minilm"` means `models/minilm`. By default the file or folder gives the name, `./minilm` is added as
        `models/minilm`, and a map as `models/<model id>`. A map adds several files and directories at once, each
        under the path in the model that is its key. `base` is the model that it was made from; it and `metadata` are
        kept in the ref's record. `stat_cache=False` reads files even if their times say that nothing changed.
        `exclude` are patterns, as in .gitignore, of what is left out of every folder that is added; one that is added
        by its own path also leaves out what its `.casstoreignore` says, unless `ignore_file` is off. Raises
        PathNotFound (a FileNotFoundError) if there is nothing to add, ConfigError for paths that cannot be kept,
        ConflictError for a file that changes meanwhile, and its subclass NameTaken if a name given by default is
        another model's, which keeps it; then no ref names what was added.
        """
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

    @property
    def on_damage(self) -> Callable[[Damage], None]:
        """Called for each entry that work on the whole store leaves out because it cannot be read.

        By default a warning is logged. It may be called from any thread.
        """
        return self._refs.on_damage

    @on_damage.setter
    def on_damage(self, tell: Callable[[Damage], None]) -> None:
        self._refs.on_damage = tell

    def refs(
        self,
        prefix: str = "",
        *,
        strict: bool = False,
        on_damage: Callable[[Damage], None] | None = None,
    ) -> dict[str, Record]:
        """Return the current record of every ref whose name starts with `prefix`.

        One that cannot be read is left out, and `on_damage` called, by default the store's own; with `strict`,
        that is an error.
        """
        return self._refs.values(prefix, strict=strict, on_damage=on_damage)

    def find(
        self,
        prefix: str = "",
        *,
        where: Mapping[str, Any] | None = None,
        target: bytes | str | None = None,
        base: bytes | str | None = None,
        since: int | None = None,
        until: int | None = None,
        limit: int | None = None,
        newest_first: bool = True,
        strict: bool = False,
    ) -> list[RefRow]:
        """Return the refs for which all conditions hold, as light rows, ordered by time and then name.

        `prefix` is how names begin. `where` gives fields of the metadata and the values that they must equal,
        as Python compares; "a.b" is the field `b` of the map `a`, and None also matches a field that is
        absent. `target` and `base` are whole ids. `since` (inclusive) and `until` (exclusive) are nanoseconds
        since 1970. A ref that cannot be read is left out, and `on_damage` called; with `strict`, that is an error.
        Raises ConfigError for conditions that make no sense.
        """
        if limit is not None and limit < 0:
            raise ConfigError(f"Cannot list {limit} refs: give a limit of 0 or more.")
        query = RefQuery.of(prefix, where=where, target=target, base=base, since=since, until=until)
        return self._refs.find(query, limit=limit, newest_first=newest_first, strict=strict)

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
        exclusion = Exclusion(exclude, ignore_file=ignore_file)
        return content_id(path, self.machine, exclusion=exclusion).hex()

    def put_manifest(
        self,
        name: str,
        manifest: bytes,
        *,
        metadata: dict[str, Any] | None = None,
        unless: Callable[[Record], bool] | None = None,
    ) -> Record:
        """Make the ref `name`, of a run or an evaluation, name a manifest; return its record.

        A manifest of up to 8 KiB lies inside the record, a larger one in a pack. `metadata` is what listings
        show and filter by. Nothing is written if the newest record has this value already, or `unless` accepts it
        instead. Raises ConfigError for a manifest, or metadata, that is too large to be read back.
        """
        names.check_name(name)
        if names.names_model(name):
            raise ConfigError(f"{name} names a model: only runs and evaluations have manifests of their own.")
        check_object(Kind.MANIFEST, manifest)
        check_record(name, metadata or {})
        target = digest(manifest)
        if len(manifest) <= record_format.MAX_INLINE:
            # The record needs no pack, so there is nothing that a collector could delete.
            with self.backend.publish_lock():
                record = self._refs.draft(
                    name, target=target, inline=manifest, metadata=metadata, unless=unless
                )
                return self._refs.put(record)
        with self.publication() as publication:
            publication.write_objects(Kind.MANIFEST, {target: manifest})
            return publication.commit(
                lambda packs: self._refs.draft(
                    name, target=target, manifest=target, metadata=metadata, packs=packs, unless=unless
                ),
                lambda _: iter([encode_object(Kind.MANIFEST, manifest)]),
            )

    def manifest_of(self, record: Record) -> bytes:
        """Return the verified manifest that the record of a run or an evaluation names."""
        if record.target is None or names.names_model(record.name):
            raise ConfigError(f"{record.name} is not a run or an evaluation.")
        manifest = record.inline if record.inline is not None else self.objects.read(record.target)
        if digest(manifest) != record.target:
            raise FormatError(f"The manifest inside {record.name} is not the one that it names.")
        return manifest

    def history(self, name: str) -> list[Record]:
        """Return every record of one ref that the store keeps, oldest first; the last one is its value.

        An older one that cannot be read is left out, and `on_damage` called; an unreadable newest one is an error.
        """
        names.check_name(name)
        return self._refs.history(name)

    def record(self, name: str) -> Record | None:
        """Return the current record of one ref, None if there is none or it is deleted.

        Raises IntegrityError if there is one that cannot be read.
        """
        names.check_name(name)
        return self._refs.value(name)

    def rm(self, name: str) -> None:
        """Delete a ref, readable or not; a later gc can free what only it reached. Raises RefNotFound if there is none."""
        names.check_name(name)
        heads = self._refs.heads(name)
        if not heads.hidden and (not heads.records or heads.records[-1].target is None):
            raise not_found(name)
        # On a full disk, deleting is the first step to free it (design §8).
        self.backend.in_spare_room(lambda: self._refs.put(self._refs.draft(name, target=None)))
        self.backend.keep_spare_room()

    def draft_copy(self, record: Record, packs: tuple[bytes, ...] = (), *, again: bool = False) -> Record:
        """Return this store's record for the value of `record`, of another store.

        It has a number and a write id of this store's; `packs` are hints at the packs here that cover it. With `again` it
        is new, though a record that has become unreadable says the same. Raises RefConflict as moving the ref would.
        """
        return self._refs.draft(
            record.name,
            target=record.target,
            manifest=record.manifest,
            inline=record.inline,
            base=record.base,
            metadata=record.metadata,
            packs=packs,
            origin=record.origin or record.write_id,
            again=again,
        )

    def publication(self, *, pack_target: int | None = None, uploads: int | None = None) -> Publication:
        """Return a publish of this store, to be used as a context manager (see objects/publishing/publication.py)."""
        return self.objects.publication(self._refs.put, pack_target=pack_target, uploads=uploads)
