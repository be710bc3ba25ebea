"""Store: everything that a directory or bucket holds, and the work on it."""

from __future__ import annotations

import os
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from casstore.backend import open_backend
from casstore.backend.local.syscalls import SystemCalls
from casstore.backend.location import parse_location
from casstore.digest import DIGEST_SIZE, digest, is_hex
from casstore.errors import (
    ConfigError,
    FormatError,
    IntegrityError,
    MissingObject,
    ObjectNotFound,
    RefNotFound,
)
from casstore.format import canonical, marks, names
from casstore.format import manifest as manifest_format
from casstore.format import record as record_format
from casstore.format.manifest import ModelManifest, TreeEntry
from casstore.format.record import Record
from casstore.format.rows import Kind
from casstore.machine.state import MachineState, machine_folder, state_path
from casstore.objects import CHUNK_CACHE, MAX_HINTS, ObjectStore, check_object, encode_object
from casstore.refs.refs import Refs, not_found
from casstore.refs.rows import RefQuery
from casstore.store import files
from casstore.store.adding.content import content_id
from casstore.store.adding.exclusion import Exclusion
from casstore.store.adding.executable import own_bits
from casstore.store.adding.ingest import Ingest
from casstore.store.adding.sources import list_sources
from casstore.store.checkout.checkout import Checkout
from casstore.store.identity import identify
from casstore.store.model import Model, read_model
from casstore.store.nesting import store_around
from casstore.store.usage import StoreStats, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from fsspec import Callback
    from numpy.typing import NDArray
    from typing_extensions import Self

    from casstore.backend.base import Backend
    from casstore.format.layout import Layout
    from casstore.objects import Damage, EncodedFrames, Publication
    from casstore.refs.rows import RefRow
    from casstore.store.adding.sources import SourceFile

_KEPT_MODELS = 8
"""Models whose description stays in memory, so that reading tensor after tensor does not read it again."""

_PREFIX = re.compile(r"[0-9a-f]{4,63}")


@dataclass(frozen=True, slots=True)
class AddResult:
    """The result of an add: `bytes_new` are plain bytes that the store lacked, `bytes_stored` what they take."""

    model_id: str
    ref: str
    files: int
    bytes_total: int
    bytes_new: int
    bytes_stored: int
    chunks: int
    chunks_new: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a name or id means: its ref and the model id."""

    ref: str
    model_id: str
    record: Record


class ModelStore:
    """A content-addressed store of models. Safe in threads, and in a child process after a fork."""

    def __init__(
        self,
        backend: Backend,
        *,
        store_id: bytes,
        machine: MachineState,
        index_copies: str | None = None,
        chunk_cache: int = CHUNK_CACHE,
        file_system_type: Callable[[str], str | None] | None = None,
    ) -> None:
        """`index_copies` is where this machine keeps index segments of a remote store, None for nowhere.

        `file_system_type` names the type of the file system that a path is on, as in mount(8); None asks the
        system.
        """
        self.backend = backend
        self.store_id = store_id.hex()
        self.objects = ObjectStore(backend, index_copies=index_copies, chunk_cache=chunk_cache)
        self.machine = machine
        self._file_system_type = file_system_type or SystemCalls().file_system_type
        self._refs = Refs(backend, machine)
        self._models: OrderedDict[bytes, Model] = OrderedDict()

    @classmethod
    def open(
        cls,
        url_or_path: str | os.PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
        durability: Literal["full", "none"] = "full",
        shared: Literal["group"] | None = None,
        chunk_cache: int = CHUNK_CACHE,
        **storage_options: Any,
    ) -> Self:
        """Open the store at a path or URL; with `create`, make it if there is none yet.

        A path is used as `open` uses it: `~` is not expanded. Without `create` nothing is made.
        `durability="none"` skips fsync, for stores that may be lost. `shared="group"` makes a store that the
        directory's group may read and write: later openers know it by the directory's mode. `chunk_cache` is how many
        bytes of chunks `open_file` and `read_tensor` keep in memory where the store is a network away.
        `storage_options` go to fsspec. Raises ConfigError for a place that is not a store, that lies in another
        store, or that is private although `shared` is given, UnsupportedVersion for one that a newer casstore made.
        """
        if create:
            _refuse_nested_store(url_or_path)
        backend = open_backend(
            os.fspath(url_or_path),
            create=create,
            read_only=read_only,
            durability=durability,
            shared=shared,
            **storage_options,
        )
        try:
            identity = identify(backend, create=create)
        except BaseException:
            # Invariant 11: the error goes on to the caller; only the backend is closed.
            backend.close()
            raise
        keeps_state = not backend.url.startswith("memory:")
        path = state_path(identity.store_id, backend.url) if keeps_state else None
        folder = machine_folder(identity.store_id, backend.url) if keeps_state else None
        copies = os.path.join(folder, "index") if folder is not None else None
        return cls(
            backend,
            store_id=identity.store_id,
            machine=MachineState(path),
            index_copies=copies,
            chunk_cache=chunk_cache,
        )

    def close(self) -> None:
        """Release files and connections; the store must not be used afterwards."""
        self.objects.close()
        self.machine.close()
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.backend.url!r})"

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
        """Add a file or directory and make `ref` (default `models/<model id>`) name it.

        A map adds several files and directories at once, each under the path in the model that is its key.
        `base` is the model that it was made from; it and `metadata` are kept in the ref's record.
        `stat_cache=False` reads files even if their times say that nothing changed. `exclude` are patterns, as
        in .gitignore, of what is left out of every folder that is added; one that is added by its own path also
        leaves out what its `.casstoreignore` says, unless `ignore_file` is off. Raises ConfigError for paths that cannot be kept, ConflictError for a file that changes meanwhile; then nothing is added.
        """
        started = time.perf_counter()
        if ref is not None:
            _check_model_name(ref)
        # Encoded and decoded once before any work is done: metadata that cannot be kept is refused now, and compared
        # in its stored form.
        metadata = canonical.decode(canonical.encode({"metadata": metadata or {}}), what="metadata")[
            "metadata"
        ]
        _check_record(ref or f"models/{'0' * 64}", metadata)
        base_id = self._model_id(base) if base is not None else None
        root = self.backend.local_path(marks.FORMAT_KEY)
        own = os.path.realpath(os.path.dirname(root)) if root else None
        exclusion = Exclusion(exclude, ignore_file=ignore_file)
        sources = list_sources(path, follow=follow_links, store=own, exclusion=exclusion)
        with (
            self.publication() as publication,
            Ingest(
                publication=publication,
                objects=self.objects,
                machine=self.machine,
                stat_cache=stat_cache,
                callback=callback,
            ) as ingest,
        ):
            added = ingest.run(sources)
            entries = [TreeEntry(item.source.path, item.layout.size, item.layout.file_id) for item in added]
            entries += [TreeEntry(name, 0, None) for name in sources.empty]
            tree = manifest_format.encode_tree(manifest_format.make_tree(entries))
            model_id = digest(tree)
            manifest = manifest_format.encode_model(
                ModelManifest(
                    model_id,
                    tuple(item.layout_id for item in added),
                    self._executable(model_id, [item.source for item in added]),
                )
            )
            objects = {Kind.TREE: tree, Kind.MANIFEST: manifest}
            for kind, plain in objects.items():
                publication.write_objects(kind, {digest(plain): plain})
            name = ref or f"models/{model_id.hex()}"

            def supply(missing: set[bytes]) -> Iterator[EncodedFrames]:
                for kind, plain in objects.items():
                    if digest(plain) in missing:
                        yield encode_object(kind, plain)
                yield from ingest.supply(missing)

            publication.commit(
                lambda packs: self._refs.draft(
                    name,
                    target=model_id,
                    manifest=digest(manifest),
                    base=base_id,
                    metadata=metadata,
                    packs=packs,
                    stands=lambda record: self._is_whole(record, publication),
                ),
                supply,
            )
            ingest.remember()
        counts = ingest.counts
        return AddResult(
            model_id=model_id.hex(),
            ref=name,
            files=len(added),
            bytes_total=counts.bytes_total,
            bytes_new=counts.bytes_new,
            bytes_stored=publication.bytes_stored,
            chunks=counts.chunks,
            chunks_new=counts.chunks_new,
            seconds=time.perf_counter() - started,
        )

    def checkout(
        self,
        ref_or_id: str,
        dest: str | os.PathLike[str],
        *,
        force: bool = False,
        callback: Callback | None = None,
    ) -> Model:
        """Write the files of a model into the directory `dest`, verified; return what was written.

        `dest` must not exist or be empty; with `force`, files of the same names are replaced and
        everything else in it is left alone. Raises ConfigError, naming them, for paths of the model that the
        file system of `dest` cannot hold, and for a `dest` in a store's directory; nothing is written then.
        """
        return self.checkout_record(self._find(ref_or_id), dest, force=force, callback=callback)

    def checkout_record(
        self,
        record: Record,
        dest: str | os.PathLike[str],
        *,
        force: bool = False,
        read_only: bool = False,
        callback: Callback | None = None,
    ) -> Model:
        """Write the files of the model that one record names, as `checkout` does.

        With `read_only`, the files may not be written to afterwards.
        """
        model = self.model_of(record)
        checkout = Checkout(os.fspath(dest), force=force, read_only=read_only, callback=callback)
        checkout.run(model.tree, model.layouts, self.objects, executable=model.executable)
        return model

    def open_file(self, ref_or_id: str, path: str) -> BinaryIO:
        """Open one file of a model for reading; only the chunks that are read are fetched and decoded."""
        return self.open_layout(self.model(ref_or_id).layout(path), name=path)

    def open_layout(self, layout: Layout, *, name: str) -> BinaryIO:
        """Open the file that a layout describes for reading; `name` is its name."""
        chunks = files.open_chunks(layout, self.objects)
        return files.ModelFile(files.StoredFile(layout, chunks, name=name))

    def read_tensor(self, ref_or_id: str, path: str, tensor: str) -> NDArray[Any]:
        """Return one tensor as an array that the caller owns, reading only its chunks.

        bf16 and fp8 come as unsigned integers of their width, block-quantised types as raw bytes.
        """
        return files.read_tensor(self.model(ref_or_id).layout(path), self.objects, tensor=tensor, path=path)

    def manifest(self, ref_or_id: str) -> Model:
        """Return what a model consists of: its tree, its layouts and the record that names it."""
        return self.model_of(self._find(ref_or_id))

    def model_of(self, record: Record) -> Model:
        """Return what the model of one record consists of."""
        if record.manifest is None or record.target is None or not names.names_model(record.name):
            raise ConfigError(f"{record.name} is not a model.")
        kept = self._models.get(record.manifest)
        if kept is not None and kept.record.target == record.target:
            return replace(kept, record=record)
        self.objects.expect(record.packs)
        model = read_model(record, record.manifest, objects=self.objects, backend=self.backend)
        self._models[record.manifest] = model
        if len(self._models) > _KEPT_MODELS:
            self._models.popitem(last=False)
        return model

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

        If several refs name the model of an id, the one written last is returned.
        """
        record = self._find(ref_or_id)
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
        needed = _described(model)
        with self.publication() as publication:
            publication.require(needed)
            publication.commit(
                lambda packs: self._refs.draft(
                    name,
                    target=model_id,
                    manifest=manifest_id,
                    base=model.record.base,
                    packs=packs,
                    stands=lambda record: self._is_whole(record, publication),
                ),
                lambda _: iter(()),
            )
        return name

    def objects_of(self, record: Record) -> list[bytes]:
        """Return the ids of all objects that a record depends on, the bases of deltas included.

        There are none where its manifest lies inside it.
        """
        if record.manifest is None:
            return []
        if not names.names_model(record.name):
            direct = [record.manifest]
        else:
            direct = _described(self.model_of(record))
        return self.objects.with_bases(direct)

    def lacks(self, record: Record) -> int:
        """Return how many objects that a record depends on are in no pack of the store that can be seen.

        A delta that lacks a base counts, and so do objects in a truncated pack. If objects that describe
        a model are missing, the number is a lower bound.
        """
        try:
            for ids in self._needed(record):
                self.objects.locate(ids)
                lacking = self.objects.missing(ids, condemned=frozenset())
                if lacking:
                    return len(lacking)
        except (MissingObject, ObjectNotFound):
            return 1  # Invariant 5: an object that no pack holds does not exist.
        return 0

    def _needed(self, record: Record) -> Iterator[list[bytes]]:
        """Yield the objects that a record depends on, those that describe others first."""
        if record.manifest is None:
            return
        yield [record.manifest]
        if names.names_model(record.name):
            manifest = manifest_format.decode_model(self.objects.read(record.manifest))
            yield [manifest.model_id, *manifest.layouts]
            yield [chunk_id for layout in self.model_of(record).layouts for chunk_id in layout.chunk_ids()]

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
        _check_record(name, metadata or {})
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

    def delete_ref(self, name: str) -> None:
        """Delete a ref, readable or not; a later gc can free what only it reached. Raises RefNotFound if there is none."""
        names.check_name(name)
        heads = self._refs.heads(name)
        if not heads.hidden and (not heads.records or heads.records[-1].target is None):
            raise not_found(name)
        self._refs.put(self._refs.draft(name, target=None))

    def stats(self) -> StoreStats:
        """Measure what the store holds and how much space it takes."""
        return measure(
            backend=self.backend,
            store_id=self.store_id,
            objects=self.objects,
            refs=self.find(),
            on_damage=self.on_damage,
        )

    def draft_copy(self, record: Record, packs: tuple[bytes, ...] = ()) -> Record:
        """Return this store's record for the value of `record`, of another store.

        It has a number and a write id of this store's; `packs` are hints at the packs here that cover it.
        Raises RefConflict as moving the ref would.
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
        )

    def publication(self, *, pack_target: int | None = None, uploads: int | None = None) -> Publication:
        """Return a publish of this store, to be used as a context manager (see publish.py)."""
        return self.objects.publication(self._refs.put, pack_target=pack_target, uploads=uploads)

    def _executable(self, model_id: bytes, files: Sequence[SourceFile]) -> tuple[int, ...]:
        """Return the positions of the files that are executable.

        Where a file system has no such bit, the bits that the store has for the same files are kept.
        """
        own = own_bits(files, self._file_system_type)
        known = self._known_executable(model_id) if len(own) < len(files) else frozenset()
        return tuple(at for at, file in enumerate(files) if own.get(file.path, file.path in known))

    def _known_executable(self, model_id: bytes) -> frozenset[str]:
        _, record = self._refs.naming(model_id.hex())
        try:
            return self.model_of(record).executable if record is not None else frozenset()
        except (IntegrityError, ObjectNotFound):
            return frozenset()  # Invariant 13: damage to an earlier model does not prevent adding it again.

    def _is_whole(self, record: Record, publication: Publication) -> bool:
        """Say whether all that a record of a model needs is there; if so, the publish depends on it."""
        try:
            return publication.covers(self.objects_of(record))
        except (IntegrityError, ObjectNotFound):
            return False  # Invariant 7: an unreadable record must not stand for what was just added.

    def _model_id(self, ref_or_id: str) -> bytes:
        if is_hex(ref_or_id) and self._default_record(ref_or_id) is not None:
            return bytes.fromhex(ref_or_id)
        return bytes.fromhex(self.resolve(ref_or_id).model_id)

    def _default_record(self, model_id: str) -> Record | None:
        """Return the record of an add's default ref, if it names this model: any model may have been given that name."""
        record = self._refs.value(f"models/{model_id}")
        return record if record is not None and record.target == bytes.fromhex(model_id) else None

    def _find(self, ref_or_id: str) -> Record:
        if not is_hex(ref_or_id):
            for name in (ref_or_id, f"models/{ref_or_id}", f"tags/{ref_or_id}"):
                if names.names_model(name):
                    record = self._refs.value(name) if _is_name(name) else None
                    if record is not None:
                        return record
            if not _PREFIX.fullmatch(ref_or_id):
                raise not_found(ref_or_id)
        targets, record = self._refs.naming(ref_or_id)
        if len(targets) > 1:
            some = ", ".join(target.hex()[:16] for target in targets[:4])
            raise RefNotFound(
                f"{ref_or_id!r} is ambiguous: {len(targets)} model ids begin with it ({some}, …)."
            )
        if record is None:
            if is_hex(ref_or_id):
                self._refs.value(
                    f"models/{ref_or_id}"
                )  # Raises the reason if the ref is there and cannot be read.
            raise not_found(ref_or_id)
        return record


def _described(model: Model) -> list[bytes]:
    """Return the ids of a model's manifest, tree, layouts and chunks."""
    assert model.record.manifest is not None
    chunks = [chunk_id for layout in model.layouts for chunk_id in layout.chunk_ids()]
    return [model.record.manifest, bytes.fromhex(model.model_id), *model.layout_ids, *chunks]


def _check_record(name: str, metadata: dict[str, Any]) -> None:
    """Raise ConfigError, before any work is done, for metadata that no record of `name` can hold."""
    record_format.check_writable(
        Record(
            name=name,
            seq=1,
            write_id=bytes(names.WRITE_ID_SIZE),
            time=0,
            writer="",
            target=bytes(DIGEST_SIZE),
            inline=bytes(record_format.MAX_INLINE),
            metadata=metadata,
            packs=(bytes(DIGEST_SIZE),) * MAX_HINTS,
        )
    )


def _refuse_nested_store(url_or_path: str | os.PathLike[str]) -> None:
    """Raise ConfigError if a store that is to be made would lie in another one's directory."""
    location = parse_location(url_or_path)
    if location.kind == "local":
        store = store_around(os.path.dirname(os.path.realpath(location.target)))
        if store is not None:
            raise ConfigError(f"{location.target} lies in the store {store}. Make a new store outside of it.")


def _check_model_name(name: str) -> None:
    names.check_name(name)
    if not names.names_model(name):
        raise ConfigError(f"{name} cannot name a model: use models/… or tags/….")


def _is_name(name: str) -> bool:
    try:
        names.check_name(name)
    except ConfigError:
        return False  # Not a valid name, so no ref can have it.
    return True
