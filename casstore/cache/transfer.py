"""Moves model files between folders and stores: only what is missing, verified, and visible only when complete."""

from __future__ import annotations

import contextlib
import copy
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from casstore.cache.document import DOCUMENT_NAME, ModelDocument, decode_document, text_at
from casstore.errors import IntegrityError
from casstore.format.key_order import in_key_order, key_order

if TYPE_CHECKING:
    from fsspec import Callback

    from casstore.api.store import Store
    from casstore.cache.document import CollectedModel
    from casstore.format.record import Record
    from casstore.store.adding.add import AddResult


_KEY_ORDER = "key_order"
"""Metadata of a cached model's record: the order of its config's keys, which are sorted in `model.json`."""


class ModelFileTransfer:
    """Adds files and folders to one store, local or remote, and gets them back. Safe in threads."""

    def __init__(self, store: Store, *, callback: Callback | None = None) -> None:
        self._store = store
        self._callback = callback

    def upload_model_files(
        self,
        model_path: str | os.PathLike[str] | None,
        ref: str,
        *,
        base: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> AddResult | None:
        """Add a file or folder as the model `ref`, except for chunks that the store has.

        None if there is no such file: the name of a model on a hub has no files here. Raises what `Store.add`
        raises.
        """
        if not model_path or not os.path.exists(model_path):
            return None
        return self._store.add(
            model_path, ref=ref, base=base, metadata=metadata, callback=self._callback, ignore_file=False
        )

    def upload_model(
        self,
        collected: CollectedModel,
        ref: str,
        *,
        base: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> AddResult:
        """Add a config with all files that it names as the model `ref`; its type and key order are metadata."""
        model = collected.document.model
        stated = {**(metadata or {}), "type": str(model.get("type", ""))}
        if order := key_order(model):
            stated[_KEY_ORDER] = order
        with collected.with_document() as files:
            return self._store.add(files, ref=ref, base=base, metadata=stated, callback=self._callback)

    def model_id(self, collected: CollectedModel) -> str:
        """Return the model id that `upload_model` would give; nothing is added."""
        with collected.with_document() as files:
            return self._store.content_id(files)

    def download_model(
        self, ref_or_record: str | Record, dest: str | os.PathLike[str]
    ) -> ModelDocument | None:
        """Write a model's files into the folder `dest`, which must not exist or be empty; return its config.

        The folder appears whole or not at all, its files read-only. None is returned for a model that has no
        config, one that `Store.add` made. Raises IntegrityError for damage, and then writes nothing.
        """
        record = ref_or_record
        if isinstance(record, str):
            record = self._store.resolve(record).record
        # Without an empty folder in the way, all files appear in one rename (invariant 4). The checkout reports other faults.
        with contextlib.suppress(OSError, ValueError):
            os.rmdir(dest)
        return self.write_files(record, dest)

    def write_files(self, record: Record, folder: str | os.PathLike[str]) -> ModelDocument | None:
        """Write a model's files, read-only, into an empty folder; return its config as `download_model` does.

        They appear one by one, each complete and verified: the caller names the folder when all are there.
        """
        document = self.read_config(record)
        self._store.checkout_record(record, folder, read_only=True, callback=self._callback)
        return document

    def file_ids(self, record: Record) -> dict[str, bytes]:
        """Return the id of each file of a model, by its path."""
        files = self._store.model_of(record).tree.files
        return {entry.path: entry.file_id for entry in files if entry.file_id is not None}

    def read_config(self, record: Record) -> ModelDocument | None:
        """Return the config of a model, fetching nothing else; None for a model that has none.

        Raises IntegrityError if a path in it names no file of the model.
        """
        model = self._store.model_of(record)
        if not any(entry.path == DOCUMENT_NAME for entry in model.tree.files):
            return None
        chunk_ids = model.layout(DOCUMENT_NAME).chunk_ids()
        document = decode_document(b"".join(self._store.objects.read_many(chunk_ids)))
        known = {entry.path for entry in model.tree.entries}
        known |= {path[:at] for path in known for at, letter in enumerate(path) if letter == "/"}
        for pointer in document.paths:
            path = text_at(document.model, pointer)
            if path not in known:
                raise IntegrityError(f"The config of {record.name} names {path!r}, which the model lacks.")
        return replace(document, model=config_in_order(document.model, record))


def config_in_order(config: dict[str, Any], record: Record) -> dict[str, Any]:
    """Return a copy of a model's config with its keys in the order in which it was cached, sorted if unknown."""
    order = record.metadata.get(_KEY_ORDER, "")
    with contextlib.suppress(ValueError):  # Metadata is not trusted; the keys themselves are verified.
        if isinstance(order, str):
            ordered: dict[str, Any] = in_key_order(config, order)
            return ordered
    return copy.deepcopy(config)
