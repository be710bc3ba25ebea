"""Which objects the record of a ref depends on, and whether a store holds all of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import IntegrityError, MissingObject, ObjectNotFound
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.format import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casstore.format.layout import Layout
    from casstore.format.record import Record
    from casstore.objects import Publication
    from casstore.store.model_store import ModelStore
    from casstore.store.reading.model import Model


def described(model: Model) -> list[bytes]:
    """Return the ids of a model's manifest, tree, layouts and chunks."""
    assert model.record.manifest is not None
    chunks = [chunk_id for layout in model.layouts for chunk_id in layout.chunk_ids()]
    return [model.record.manifest, bytes.fromhex(model.model_id), *model.layout_ids, *chunks]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a record depends on, as far as its description can be read, bases of deltas left out; `complete` if it can.

    `description` are the objects that describe a model, or the manifest of a run; `files` are the paths and layouts of a
    model's files, as far as both are known.
    """

    description: tuple[bytes, ...]
    files: tuple[tuple[str, Layout], ...] = ()
    chunks: tuple[bytes, ...] = ()
    complete: bool = True

    @property
    def ids(self) -> list[bytes]:
        """All objects, each once."""
        return list(dict.fromkeys((*self.description, *self.chunks)))


def needs_of(record: Record, read: Callable[[bytes], bytes]) -> Needs:
    """Return what a record depends on; `read` returns the verified bytes of an object, or raises an IntegrityError."""
    if record.manifest is None:
        return Needs(())
    if not names.names_model(record.name):
        return Needs((record.manifest,))
    try:
        manifest = manifest_format.decode_model(read(record.manifest))
    except IntegrityError:
        # Invariant 4: it is damaged, so it is not used; the tree is known all the same.
        target = () if record.target is None else (record.target,)
        return Needs((record.manifest, *target), complete=False)
    paths: list[str] = []
    # Invariant 4: as above; chunks are known without it.
    with contextlib.suppress(IntegrityError):
        paths = [entry.path for entry in manifest_format.decode_tree(read(manifest.model_id)).files]
    layouts: list[Layout | None] = []
    for layout_id in manifest.layouts:
        try:
            layouts.append(layout_format.decode(read(layout_id)))
        except IntegrityError:  # noqa: PERF203  # reading costs far more
            layouts.append(None)  # Invariant 4: as above, for one file.
    known = [layout for layout in layouts if layout is not None]
    return Needs(
        (record.manifest, manifest.model_id, *manifest.layouts),
        tuple((path, layout) for path, layout in zip(paths, layouts, strict=False) if layout is not None),
        tuple(chunk for layout in known for chunk in layout.chunk_ids()),
        complete=len(known) == len(layouts),
    )


def objects_of(store: ModelStore, record: Record) -> list[bytes]:
    """Return the ids of all objects that a record depends on, the bases of deltas included."""
    if record.manifest is None:
        return []
    direct = described(store.model_of(record)) if names.names_model(record.name) else [record.manifest]
    return store.objects.with_bases(direct)


def count_lacking(store: ModelStore, record: Record) -> int:
    """Return how many objects that a record depends on are in no pack of the store that can be seen."""
    try:
        for ids in _in_order(store, record):
            store.objects.locate(ids)
            lacking = store.objects.missing(ids, condemned=frozenset())
            if lacking:
                return len(lacking)
    except (MissingObject, ObjectNotFound):
        return 1  # Invariant 5: an object that no pack holds does not exist.
    return 0


def is_whole(store: ModelStore, record: Record, publication: Publication) -> bool:
    """Say whether all that a record of a model needs is there; if so, the publish depends on it."""
    try:
        return publication.covers(objects_of(store, record))
    except (IntegrityError, ObjectNotFound):
        return False  # Invariant 7: an unreadable record must not stand for what was just added.


def _in_order(store: ModelStore, record: Record) -> Iterator[list[bytes]]:
    """Yield the objects that a record depends on, those that describe others first."""
    if record.manifest is None:
        return
    yield [record.manifest]
    if names.names_model(record.name):
        manifest = manifest_format.decode_model(store.objects.read(record.manifest))
        yield [manifest.model_id, *manifest.layouts]
        yield [chunk_id for layout in store.model_of(record).layouts for chunk_id in layout.chunk_ids()]
