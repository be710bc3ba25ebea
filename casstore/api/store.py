"""Store: everything that a directory or bucket holds, and a method for each verb of the command line.

`upkeep.py` and `exchange.py` have the verbs that work on whole stores and between them. What those, and checking out, need is
imported when they are called: most programs start faster without.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from casstore.api.exchange import ExchangingStore
from casstore.api.values import FileInfo, RefInfo, TensorInfo
from casstore.backend import open_backend
from casstore.digest import is_hex
from casstore.format import names
from casstore.machine.state import MachineState, machine_folder, state_path
from casstore.machine.this_machine import store_folder
from casstore.machine.uses.last_use import LastUse
from casstore.objects import CHUNK_CACHE
from casstore.refs.refs import not_found
from casstore.store.adding.bases.policy import delta_policy
from casstore.store.identity import identify
from casstore.store.nesting import refuse_nested_store
from casstore.store.pins import pin, unpin
from casstore.store.private import is_private, mark_private
from casstore.store.reading.files import open_chunks, read_range
from casstore.store.reading.other_stores import OtherStores
from casstore.store.times import nanoseconds
from casstore.store.undelete import undelete

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from fsspec import Callback

    from casstore.backend import Durability
    from casstore.objects import ObjectStore
    from casstore.ops.describe import ModelDescription
    from casstore.ops.diff import ModelDiff
    from casstore.ops.lineage import Lineage
    from casstore.store.adding.bases.policy import DeltaOption
    from casstore.store.reading.model import Model


class Store(ExchangingStore):
    """A content-addressed store of models. A context manager, safe in threads, and in a child process after a fork.

    Wherever a method takes a `ref_or_id`, that is a ref (`models/minilm`, `tags/best`), its name alone (`minilm`), a
    model id, or the first 4 or more digits of one. Methods that README.md beside this file does not list are casstore's
    own: they take and return stored values.
    """

    def __init__(
        self,
        path_or_url: str | os.PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
        durability: Durability = "full",
        shared: Literal["group"] | None = None,
        chunk_cache: int = CHUNK_CACHE,
        fallback: bool = True,
        delta: DeltaOption = "balanced",
        **storage_options: Any,
    ) -> None:
        """Open the store at a path or URL; with `create`, make it if there is none yet.

        A path is used as `open` uses it: `~` is not expanded. Without `create` nothing is made.
        `durability="none"` skips fsync, for stores that may be lost. `shared="group"` makes a store that the
        directory's group may read and write: later openers know it by the directory's mode. `chunk_cache` is how many
        bytes of chunks `open_file` and `read_tensor` keep in memory where the store is a network away.
        With `fallback`, models of which this store has lost something are read from its remotes (`casstore remote
        add`), which are asked only then. `delta` says when `add` stores chunks as deltas against tensors of the store:
        "balanced" where that saves a tenth and reading stays fast, "max" wherever it saves anything, "off" never.
        `storage_options` go to fsspec. Raises StoreNotFound (a FileNotFoundError) where there is no store, ConfigError
        for a place that cannot become one, that lies in another store, or that is private although `shared` is given,
        UnsupportedVersion for a store that a newer casstore made.
        """
        delta_policy(delta)  # Before anything is opened.
        if create:
            refuse_nested_store(path_or_url)
        backend = open_backend(
            os.fspath(path_or_url),
            create=create,
            read_only=read_only,
            durability=durability,
            shared=shared,
            **storage_options,
        )
        with ExitStack() as unless_opened:
            unless_opened.callback(backend.close)
            identity = identify(backend, create=create)
            unless_opened.pop_all()
        keeps_state = not backend.url.startswith("memory:")
        path = state_path(identity.store_id, backend.url) if keeps_state else None
        folder = machine_folder(identity.store_id, backend.url) if keeps_state else None
        copies = os.path.join(folder, "index") if folder is not None else None
        super().__init__(
            backend,
            store_id=identity.store_id,
            machine=MachineState(path),
            index_copies=copies,
            chunk_cache=chunk_cache,
            last_use=LastUse(store_folder(identity.store_id.hex()) if keeps_state else None),
            others=OtherStores(self._remotes) if fallback else None,
            delta=delta,
        )

    def ls(
        self,
        prefix: str = "",
        *,
        where: Mapping[str, Any] | None = None,
        model: str | None = None,
        base: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> list[RefInfo]:
        """Return the refs whose names start with `prefix` and for which all conditions hold, by name.

        `where` gives fields of the metadata and the values that they must equal; "a.b" is the field `b` of the map
        `a`, and None also matches a field that is absent. `model` is what they name and `base` what that was made
        from, each a ref or id. `since` is inclusive, `until` exclusive. `limit` keeps the newest only. A ref that
        cannot be read is left out, and `on_damage` called. Raises ConfigError for conditions that make no sense,
        RefNotFound for a `model` or `base` that is none.
        """
        rows = self.find(
            prefix,
            where=where,
            target=self._id_of(model),
            base=self._id_of(base),
            since=nanoseconds(since) if since is not None else None,
            until=nanoseconds(until) if until is not None else None,
            limit=limit,
        )
        return [RefInfo.of(row) for row in sorted(rows, key=lambda row: row.name)]

    def show(self, ref_or_id: str) -> ModelDescription:
        """Return what a model consists of, and what storing it costs. Raises RefNotFound."""
        from casstore.ops.describe import describe  # noqa: PLC0415 - see the top of this file

        return describe(self, ref_or_id)

    def diff(self, a: str, b: str, *, callback: Callback | None = None) -> ModelDiff:
        """Say what differs from model `a` to model `b`: tensor by tensor, whatever the formats of their files, and by file.

        Tensors of which the chunks are equal are not read. `callback` counts the bytes of those that are. Raises RefNotFound,
        and MissingObject, as `open_file` does.
        """
        from casstore.ops.diff import compare_models  # noqa: PLC0415 - see the top of this file

        def read(model: Model, objects: ObjectStore) -> ModelDiff:
            return self.read_with(
                b,
                lambda other, others: compare_models(
                    model, other, objects=(objects, others), callback=callback
                ),
            )

        return self.read_with(a, read)

    def lineage(self, ref_or_id: str) -> Lineage:
        """Return what a model was made from, what was made from it, and the evaluations of all of these.

        Raises RefNotFound.
        """
        from casstore.ops.lineage import lineage  # noqa: PLC0415 - see the top of this file

        return lineage(self, ref_or_id)

    def log(self, ref: str) -> list[RefInfo]:
        """Return every value that a ref has had and the store still knows, the newest first.

        A deletion is a value without a `model_id`. Raises RefNotFound if there never was such a ref.
        """
        name = ref if ref.partition("/")[0] in names.NAMESPACES else self.resolve(ref).ref
        records = self.history(name)
        if not records:
            raise not_found(name)
        return [RefInfo.of(record) for record in reversed(records)]

    def pin(self, ref_or_id: str) -> str:
        """Keep the model that a ref or id means now from every policy, until `unpin`; return the pin, a tag below `tags/pins/`.

        Raises RefNotFound.
        """
        return pin(self, ref_or_id)

    def unpin(self, ref_or_id: str) -> list[str]:
        """Delete the pin that `pin` made for a ref or id, else all pins of that model; return them.

        Raises RefNotFound if there is none.
        """
        return unpin(self, ref_or_id)

    def undelete(self, ref: str) -> RefInfo:
        """Give a deleted ref its last value again; possible until the next collection.

        Raises RefNotFound if there never was such a ref, ConfigError if it is not deleted, MissingObject if `gc` has freed
        what it named.
        """
        return RefInfo.of(undelete(self, ref))

    @property
    def is_private(self) -> bool:
        """Whether the store is marked as used by this machine and user alone."""
        return is_private(self.backend)

    def mark_private(self) -> None:
        """Mark the store as used by this machine and user alone, in the place of another machine's mark.

        Only then may `gc` delete what was not used for long, or make the store fit a size, and only then are uses noted.
        Raises ConfigError where this user has no folder for the machine's id.
        """
        mark_private(self.backend)
        self.last_use.keep()

    def files(self, ref_or_id: str) -> list[FileInfo]:
        """Return the files of a model, ordered by path. Raises RefNotFound."""
        model = self.model(ref_or_id)
        return [
            FileInfo(entry.path, entry.size, (entry.file_id or b"").hex(), entry.path in model.executable)
            for entry in model.tree.files
        ]

    def tensors(self, ref_or_id: str) -> list[TensorInfo]:
        """Return the tensors in all files of a model that are of a known format, file by file. Raises RefNotFound."""
        model = self.model(ref_or_id)
        return [
            TensorInfo(span.name, span.dtype, span.shape, entry.path)
            for entry, layout in zip(model.tree.files, model.layouts, strict=True)
            for span in layout.spans
        ]

    def get_file(
        self,
        ref_or_id: str,
        path: str,
        dest: str | os.PathLike[str],
        *,
        force: bool = False,
        callback: Callback | None = None,
    ) -> str:
        """Write one file of a model to `dest`, or into it if that is a folder or ends with "/"; return where it is.

        Folders above are made. A file that is there is an error, and is replaced with `force`. Raises RefNotFound,
        PathNotFound for no such file in the model, ConfigError as `get` does.
        """
        from casstore.store.checkout.single_file import write_file  # noqa: PLC0415 - see the top of this file

        return self.read_with(
            ref_or_id,
            lambda model, objects: write_file(model, path, dest, objects, force=force, callback=callback),
        )

    def cat(self, ref_or_id: str, path: str) -> bytes:
        """Return the bytes of one file of a model; `open_file` reads a large one in parts. Raises as `open_file` does."""

        def read(model: Model, objects: ObjectStore) -> bytes:
            layout = model.layout(path)
            return bytes(read_range(open_chunks(layout, objects), 0, layout.size))

        return self.read_with(ref_or_id, read)

    def _open_other(
        self,
        place: str | os.PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
        fallback: bool = True,
    ) -> Store:
        return Store(place, create=create, read_only=read_only, fallback=fallback)

    def _id_of(self, ref_or_id: str | None) -> str | None:
        """Return a model id; a whole one need not be in the store any more."""
        if ref_or_id is None or is_hex(ref_or_id):
            return ref_or_id
        return self.resolve(ref_or_id).model_id
