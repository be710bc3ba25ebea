"""Models of a pipeline: their configs and files go into the store, and come back with paths that exist here."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casstore.cache.directories import checked_id
from casstore.cache.olive.document import collect, mark_lazy
from casstore.cache.placements.placement import PlacedFile, Placement
from casstore.cache.transfer import ModelFileTransfer, config_in_order
from casstore.errors import BackendError, RefNotFound
from casstore.machine.local_names import local_path
from casstore.store.adding.sources import place_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fsspec import Callback

    from casstore.api.store import Store
    from casstore.cache.olive.document import ModelDocument
    from casstore.cache.placements.placements import Placements
    from casstore.format.record import Record
    from casstore.machine.stat_identity import StatIdentity

_PREFIX = "models/"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A cached model: its name in the pipeline, its model id, and the bytes that storing it added."""

    name: str
    model_id: str
    files: int
    bytes_total: int
    bytes_stored: int


class ModelCacheManager:
    """Caches and loads the models of one cache. Every failure raises; safe in threads."""

    def __init__(
        self,
        store: Store,
        placements: Placements,
        *,
        callback: Callback | None = None,
        note: Callable[[str, Exception], None] | None = None,
    ) -> None:
        """`note(doing, error)` is called for files that could not be written into the cache and are elsewhere."""
        self._store = store
        self._placements = placements
        self._note = note
        self._lock = threading.Lock()
        self._outside: dict[str, tuple[str, Placement]] = {}
        self._transfer = ModelFileTransfer(store, callback=callback)

    def cache_model(
        self,
        name: str,
        model_json: dict[str, Any],
        *,
        base: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> CachedModel:
        """Take a model config and every file that it names into the store, as `models/<name>`.

        The files stay where they are and go on being used from there. `base` is the cached model that this
        one was made from. Raises ConfigError for a config that names what does not exist.
        """
        collected = collect(model_json)
        before = identities(collected.places)
        ref = model_ref(name)
        added = self._transfer.upload_model(
            collected,
            ref,
            base=model_ref(base) if base is not None and self.record(base) is not None else None,
            metadata={**(metadata or {}), "type": str(model_json.get("type", ""))},
        )
        record = self._store.record(ref)
        if (
            before == identities(collected.places)
            and record is not None
            and record.target == bytes.fromhex(added.model_id)
        ):
            model = _as_cached(collected.document, collected.places)
            files = _placed(before, self._transfer.file_ids(record))
            # Invariant 11: without the note, the files come from the store.
            with self._noting(f"note where the files of {name} are"):
                self._placements.keep_working(name, Placement(added.model_id, model, files))
        return CachedModel(name, added.model_id, added.files, added.bytes_total, added.bytes_stored)

    def load_model(self, name: str, *, verify: bool = False) -> dict[str, Any] | None:
        """Return the config of a cached model with paths that exist; None if there is no such model.

        Files that are here unchanged are used as they are; otherwise they are written from the store,
        verified. With `verify`, they are always written from the store. Raises IntegrityError for damage in the store.
        """
        record = self.record(name)
        if record is None or record.target is None:
            return None
        if not verify:
            placement = self.placed(name, record)
            if placement is not None:
                return config_in_order(placement.model, record)
        return self.materialise(record)

    def placed(self, name: str, record: Record) -> Placement | None:
        """Return the files of a cached model that are on this machine and hold what was cached, else None."""
        assert record.target is not None
        content = record.target.hex()
        placement = self._placements.working(name, content) or self._placements.checkout(content)
        if placement is None and content in self._outside:
            placement = self._outside[content][1].verified()
        return placement

    def stands(self, name: str, record: Record) -> bool:
        """Say whether the files of a cached model are on this machine, without reading them; they may have changed."""
        assert record.target is not None
        return self._placements.stands(name, record.target.hex())

    def restore(self, name: str, source: Store) -> dict[str, Any] | None:
        """Take a model from another store and add it again, whatever this one holds of it; None if there is none.

        For a model that is damaged here: quarantined packs are not relied on, so this repairs the store.
        """
        record = source.record(model_ref(name))
        if record is None or record.target is None:
            return None
        config = self.materialise(record, ModelFileTransfer(source))
        self._transfer.upload_model(
            collect(config), model_ref(name), base=self._ref_of(record.base), metadata=dict(record.metadata)
        )
        return config

    def _ref_of(self, model_id: bytes | None) -> str | None:
        """Return a ref of this store that names this model, None if there is none."""
        with contextlib.suppress(RefNotFound):
            return self._store.resolve(model_id.hex()).ref if model_id is not None else None
        return None

    def materialise(self, record: Record, transfer: ModelFileTransfer | None = None) -> dict[str, Any]:
        """Write the files of a model into the checkout area; return its config with paths there.

        They come from this store, or from that of `transfer`.
        """
        transfer = transfer or self._transfer
        try:
            placement = self._check_out(record, transfer)
        except (OSError, BackendError) as error:
            # Invariant 11: if the cache has no room, the files go elsewhere.
            if self._note is None:
                raise
            placement = self._check_out_elsewhere(record, transfer)
            self._note(f"write {record.name} into the cache, so it is in {tempfile.gettempdir()}", error)
        return config_in_order(placement.model, record)

    def close(self) -> None:
        """Delete the files that were written outside the cache."""
        with self._lock:
            outside, self._outside = self._outside, {}
        for folder, _ in outside.values():
            shutil.rmtree(
                folder, ignore_errors=True
            )  # Invariant 13: the system cleans its temporary directory.

    def _check_out(self, record: Record, transfer: ModelFileTransfer) -> Placement:
        assert record.target is not None
        content = record.target.hex()
        made = self._placements.scratch()
        try:
            files = made / "files"
            document = transfer.download_model(record, files)
            placed = _placed(identities({"files": str(files)}), transfer.file_ids(record), prefix="files/")
            model = _at(document, self._placements.checkout_path(content))
            return self._placements.finish_checkout(made, Placement(content, model, placed))
        except BaseException:
            # Invariant 4: an incomplete folder never gets its name, and is removed.
            shutil.rmtree(made, ignore_errors=True)
            raise

    def _check_out_elsewhere(self, record: Record, transfer: ModelFileTransfer) -> Placement:
        assert record.target is not None
        content = record.target.hex()
        folder = tempfile.mkdtemp(prefix="casstore-checkout-")
        try:
            files = os.path.join(folder, "files")
            document = transfer.download_model(record, files)
            placed = _placed(identities({"files": files}), transfer.file_ids(record), prefix="files/")
        except BaseException:
            # Invariant 4, as above.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        placement = Placement(content, _at(document, Path(files)), placed)
        with self._lock:
            self._outside[folder if content in self._outside else content] = (folder, placement)
        return placement

    @contextlib.contextmanager
    def _noting(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Invariant 11: the pipeline's cache logs it and goes on; for other callers it is raised.
            if self._note is None:
                raise
            self._note(doing, error)

    def future_config(self, transfer: ModelFileTransfer, record: Record) -> dict[str, Any] | None:
        """Return the config of a model that is elsewhere, with the paths that it will have, marked as such.

        `{}` for the model of a failed pass, which has no files; None for a model without a config.
        """
        assert record.target is not None
        document = transfer.read_config(record)
        if document is None or not document.model:
            return document.model if document is not None else None
        return mark_lazy(_at(document, self._placements.checkout_path(record.target.hex())))

    def record(self, name: str) -> Record | None:
        """Return the record of a cached model, None if there is none."""
        return self._store.record(model_ref(name))

    def record_of(self, name: str, model_id: bytes) -> Record | None:
        """Return the newest record that says that `name` is the model with this id."""
        records = self._store.history(model_ref(name))
        if not records or records[-1].target is None:
            return None
        return next((item for item in reversed(records) if item.target == model_id), None)

    def list(self) -> dict[str, Record]:
        """Return every cached model by name."""
        refs = self._store.refs(_PREFIX)
        return {name.removeprefix(_PREFIX): record for name, record in refs.items()}

    def delete(self, name: str) -> None:
        """Forget a cached model; a later gc frees what only it held. Raises RefNotFound if there is none."""
        if self.record(name) is None:
            raise RefNotFound(f"No cached model named {name!r}.")
        self._store.rm(model_ref(name))


def model_ref(name: str) -> str:
    """Return the ref of a cached model; raise ConfigError for an id that is not one safe name."""
    return f"{_PREFIX}{checked_id(name)}"


def identities(places: Mapping[str, str]) -> tuple[tuple[str, str, StatIdentity], ...]:
    """Return the path in the tree, the place and the identity of each file that `places` names, as it is now."""
    return tuple((file.path, file.location, file.identity) for file in place_sources(places).files)


def _placed(
    found: tuple[tuple[str, str, StatIdentity], ...], file_ids: Mapping[str, bytes], *, prefix: str = ""
) -> tuple[PlacedFile, ...]:
    return tuple(
        PlacedFile(location, identity, file_ids[path.removeprefix(prefix)])
        for path, location, identity in found
    )


def _at(document: ModelDocument | None, files: Path) -> dict[str, Any]:
    if document is None:
        return {"config": {"model_path": str(files)}}
    return document.located(lambda path: local_path(files, path))


def _as_cached(document: ModelDocument, places: dict[str, str]) -> dict[str, Any]:
    """Return the config with the paths that it was cached with."""

    def locate(path: str) -> str:
        for name, location in places.items():
            if path == name:
                return location
            if path.startswith(f"{name}/"):
                return local_path(location, path[len(name) + 1 :])
        raise AssertionError(path)

    return document.located(locate)
