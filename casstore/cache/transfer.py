"""Moves model files between folders and stores: only what is missing, verified, and visible only when complete."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from casstore.cache.olive.document import DOCUMENT_NAME, ModelDocument, decode_document
from casstore.errors import ConfigError, IntegrityError
from casstore.format.key_order import in_key_order, key_order
from casstore.store.checkout.staging import folder_beside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsspec import Callback

    from casstore.api.store import Store
    from casstore.cache.olive.document import CollectedModel
    from casstore.format.record import Record
    from casstore.store.adding.add import AddResult
    from casstore.store.model import Model


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
        """Add a config with all files that it names as the model `ref`; the order of its keys is metadata."""
        order = key_order(collected.document.model)
        if order:
            metadata = {**(metadata or {}), _KEY_ORDER: order}
        with placed_with_document(collected) as places:
            return self._store.add(places, ref=ref, base=base, metadata=metadata, callback=self._callback)

    def model_id(self, collected: CollectedModel) -> str:
        """Return the model id that `upload_model` would give; nothing is added."""
        with placed_with_document(collected) as places:
            return self._store.content_id(places)

    def download_model(
        self, ref_or_record: str | Record, dest: str | os.PathLike[str]
    ) -> ModelDocument | None:
        """Write a model's files into the folder `dest`, which must not exist or be empty; return its config.

        The folder appears whole or not at all, its files read-only. None is returned for a model that has no
        config, one that `Store.add` made. Raises IntegrityError for damage, and then writes nothing.
        """
        store, dest = self._store, os.path.abspath(dest)
        record = store.resolve(ref_or_record).record if isinstance(ref_or_record, str) else ref_or_record
        if os.path.isdir(dest) and os.listdir(dest):
            raise ConfigError(f"{dest} is not empty: give a folder that does not exist or is empty.")
        with folder_beside(dest) as made:
            model = store.checkout_record(record, made, read_only=True, callback=self._callback)
            document = read_document(store, model)
            if os.path.isdir(dest):
                os.rmdir(dest)
            os.rename(made, dest)  # Invariant 4: the folder gets its name only when complete and verified.
        return document

    def file_ids(self, record: Record) -> dict[str, bytes]:
        """Return the id of each file of a model, by its path."""
        files = self._store.model_of(record).tree.files
        return {entry.path: entry.file_id for entry in files if entry.file_id is not None}

    def read_config(self, record: Record) -> ModelDocument | None:
        """Return the config of a model, fetching nothing else; None for a model that has none."""
        return read_document(self._store, self._store.model_of(record))


@contextlib.contextmanager
def placed_with_document(collected: CollectedModel) -> Iterator[dict[str, str]]:
    """Give the places of all files of a model, including its config."""
    with tempfile.TemporaryDirectory(prefix="casstore-") as folder:
        path = os.path.join(folder, DOCUMENT_NAME)
        with open(path, "wb") as file:
            file.write(collected.document.encode())
        yield {**collected.places, DOCUMENT_NAME: path}


def read_document(store: Store, model: Model) -> ModelDocument | None:
    """Return the config in a model, verified; its paths must name files of the model."""
    if not any(entry.path == DOCUMENT_NAME for entry in model.tree.files):
        return None
    layout = model.layout(DOCUMENT_NAME)
    document = decode_document(b"".join(store.objects.read_many(layout.chunk_ids())))
    known = {entry.path for entry in model.tree.entries}
    known |= {"/".join(path.split("/")[:depth]) for path in known for depth in range(1, path.count("/") + 1)}
    for pointer in document.paths:
        value: Any = document.model
        for key in pointer:
            value = value[key]
        if value not in known:
            raise IntegrityError(f"The config of {model.record.name} names {value!r}, which the model lacks.")
    return replace(document, model=config_in_order(document.model, model.record))


def config_in_order(config: dict[str, Any], record: Record) -> dict[str, Any]:
    """Return a copy of a model's config with its keys in the order in which it was cached, sorted if unknown."""
    order = record.metadata.get(_KEY_ORDER, "")
    with contextlib.suppress(ValueError):  # Metadata is not trusted; the keys themselves are verified.
        if isinstance(order, str):
            ordered: dict[str, Any] = in_key_order(config, order)
            return ordered
    return copy.deepcopy(config)
