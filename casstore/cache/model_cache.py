"""Models of a pipeline: their configs and files go into the store, and come back with paths that exist here."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casstore.cache.directories import checked_id
from casstore.cache.placements.placement import PlacedFile, Placement, is_below
from casstore.cache.transfer import ModelFileTransfer, config_in_order
from casstore.errors import BackendError, RefNotFound
from casstore.machine.local_names import local_path
from casstore.store.adding.sources import place_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fsspec import Callback

    from casstore.api.store import Store
    from casstore.cache.document import CollectedModel, ModelDocument
    from casstore.cache.placements.placements import Placements
    from casstore.format.record import Record
    from casstore.store.adding.add import AddResult
    from casstore.store.adding.sources import SourceFile

_PREFIX = "models/"


class ModelCacheManager:
    """Caches and loads the models of one cache. Every failure raises; safe in threads."""

    def __init__(
        self,
        store: Store,
        placements: Placements,
        *,
        collect: Callable[[dict[str, Any]], CollectedModel],
        callback: Callback | None = None,
        note: Callable[[str, Exception], None] | None = None,
    ) -> None:
        """`collect` finds the files that a model config names; raises ConfigError for one that cannot be stored.

        `note(doing, error)` is called for files that could not be written into the cache and are elsewhere.
        """
        self._store = store
        self._placements = placements
        self._collect = collect
        self._note = note
        self._lock = threading.Lock()
        self._outside: dict[str, tuple[Path, Placement]] = {}
        self._transfer = ModelFileTransfer(store, callback=callback)

    def cache_model(
        self,
        name: str,
        model_json: dict[str, Any],
        *,
        base: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> AddResult:
        """Store a model config and every file that it names, as `models/<name>`; return what that added.

        The files stay where they are and go on being used from there. `base` is the cached model that this
        one was made from. Raises ConfigError for a config that names what does not exist.
        """
        collected = self._collect(model_json)
        before = place_sources(collected.files).files
        ref = model_ref(name)
        added = self._transfer.upload_model(
            collected,
            ref,
            base=model_ref(base) if base is not None and self.record(base) is not None else None,
            metadata=metadata,
        )
        record = self._store.record(ref)
        is_ours = record is not None and record.target == bytes.fromhex(added.model_id)
        if record is not None and is_ours and before == place_sources(collected.files).files:
            files = _placed(before, self._transfer.file_ids(record))
            try:
                self._placements.keep_working(
                    name, Placement(added.model_id, collected.config(), files, self._store.store_id)
                )
            except OSError as error:
                # Invariant 11: the pipeline's cache logs it, and gets the files from the store; others get the error.
                if self._note is None:
                    raise
                self._note(f"note where the files of {name} are", error)
        return added

    def load_model(self, name: str, *, verify: bool = False, deferred: bool = False) -> dict[str, Any] | None:
        """Return the config of a cached model with paths that exist; None if there is no such model.

        Files that are here unchanged are used as they are; otherwise they are written from the store,
        verified. With `verify`, they are always written from the store; with `deferred`, not now: the paths are
        those that `check_out` writes to. Raises IntegrityError for damage in the store.
        """
        record = self.record(name)
        if record is None or record.target is None:
            return None
        placement = None if verify else self.placed(name, record)
        self._store.last_use.note(record.target)
        if placement is None and deferred and (config := self.future_config(self._store, record)) is not None:
            return config_in_order(config, record)
        return config_in_order((placement or self._check_out(record)).model, record)

    def check_out(self, name: str) -> Path | None:
        """Return the folder with a checkout of a cached model, written unless it is there; None if there is no such model.

        Raises as `load_model` does.
        """
        record = self.record(name)
        if record is None or record.target is None:
            return None
        content = _content(record)
        placement = self._placements.checkout(content) or self._intact_outside(content)
        placement = placement or self._check_out(record)
        inside = self._placements.checkout_path(content)
        if all(is_below(file.location, inside) for file in placement.files):
            return inside
        with self._lock:
            return self._outside[content][0] / "files"

    def placed(self, name: str, record: Record) -> Placement | None:
        """Return the files of a cached model that are on this machine and hold what was cached, else None."""
        content = _content(record)
        placement = self._placements.working(name, content) or self._placements.checkout(content)
        return placement or self._intact_outside(content)

    def _intact_outside(self, content: str) -> Placement | None:
        with self._lock:
            outside = self._outside.get(content)
        return outside[1].verified() if outside is not None else None

    def _check_out(self, record: Record) -> Placement:
        """Write the files of a model into the cache, or elsewhere if it has no room."""
        content = _content(record)
        try:
            made = self._placements.scratch()
            with _deleted_on_failure(made):
                placement = self._write_files(record, made, self._placements.checkout_path(content))
                return self._placements.finish_checkout(made, placement)
        except (OSError, BackendError) as error:
            # Invariant 11: if the cache has no room, the files go elsewhere.
            if self._note is None:
                raise
            folder = Path(tempfile.mkdtemp(prefix="casstore-checkout-"))
            with _deleted_on_failure(folder):
                placement = self._write_files(record, folder, folder / "files")
            with self._lock:
                if content in self._outside:
                    earlier = self._outside[content]
                    self._outside[str(earlier[0])] = earlier
                self._outside[content] = (folder, placement)
            self._note(f"write {record.name} into the cache, so it is in {tempfile.gettempdir()}", error)
            return placement

    def _write_files(self, record: Record, folder: Path, final: Path) -> Placement:
        """Write a model's files below the new folder `folder`; the config names them below `final`."""
        files = folder / "files"
        files.mkdir()
        document = self._transfer.write_files(record, files)
        written = place_sources({"files": str(files)}).files
        placed = _placed(written, self._transfer.file_ids(record), prefix="files/")
        return Placement(_content(record), _at(document, final), placed, self._store.store_id)

    def close(self) -> None:
        """Delete the files that were written outside the cache."""
        with self._lock:
            outside, self._outside = self._outside, {}
        for folder, _ in outside.values():
            # Invariant 13: the system cleans its temporary directory.
            shutil.rmtree(folder, ignore_errors=True)

    def future_config(self, source: Store, record: Record) -> dict[str, Any] | None:
        """Return the config of a model of a store, with the paths that its files will have here.

        `{}` for the model of a failed pass, which has no files; None for a model without a config.
        """
        document = ModelFileTransfer(source).read_config(record)
        if document is None or not document.model:
            return document.model if document is not None else None
        return _at(document, self._placements.checkout_path(_content(record)))

    def record(self, name: str) -> Record | None:
        """Return the record of a cached model, None if there is none."""
        return self._store.record(model_ref(name))

    def holds(self, name: str, model_id: bytes) -> bool:
        """Say whether `name` is, or was, the model with this id, and every file or every object of it is here.

        Files are not read: they may have changed.
        """
        records = self._store.history(model_ref(name))
        if not records or records[-1].target is None:
            return False
        record = next((item for item in reversed(records) if item.target == model_id), None)
        is_here = record is not None and (
            self._placements.seems_intact(name, model_id.hex()) or not self._store.lacks(record)
        )
        if is_here:
            self._store.last_use.note(model_id)
        return is_here

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


def _content(record: Record) -> str:
    assert record.target is not None
    return record.target.hex()


@contextlib.contextmanager
def _deleted_on_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # Invariant 4: an incomplete folder never gets its name, and is removed.
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _placed(
    files: tuple[SourceFile, ...], file_ids: Mapping[str, bytes], *, prefix: str = ""
) -> tuple[PlacedFile, ...]:
    return tuple(
        PlacedFile(file.location, file.identity, file_ids[file.path.removeprefix(prefix)]) for file in files
    )


def _at(document: ModelDocument | None, files: Path) -> dict[str, Any]:
    if document is None:
        return {"config": {"model_path": str(files)}}
    return document.located(lambda path: local_path(files, path))
