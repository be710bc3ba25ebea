"""Reads models although packs vanish: from other packs, as what the ref names by then, and from other stores."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from casstore.errors import ConfigError, MissingObject, ObjectNotFound, RefNotFound
from casstore.format import names
from casstore.objects import ReadThrough
from casstore.store.reading.missing import tell_missing
from casstore.store.reading.model import Model, read_model
from casstore.store.resolve import find_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from casstore.backend.base import Backend
    from casstore.format.record import Record
    from casstore.objects import ObjectStore
    from casstore.refs.refs import Refs
    from casstore.store.reading.other_stores import OtherStores

T = TypeVar("T")

_RESOLVED = 3
"""Values of one ref that are tried while others replace it and collectors delete what it named."""

_KEPT_MODELS = 8
"""Models whose description stays in memory, so that reading tensor after tensor does not read it again."""


class ModelReader:
    """The models of one store for those who read them; safe in threads and after a fork.

    `objects` gives what the store has, and what `others` have of the rest. Whoever works on the store itself reads its own
    objects, so that it sees what is missing.
    """

    def __init__(
        self,
        backend: Backend,
        own: ObjectStore,
        refs: Refs,
        *,
        others: OtherStores | None,
        chunk_cache: int,
    ) -> None:
        self._backend = backend
        self._own = own
        self._refs = refs
        self._others = others
        self._kept: OrderedDict[tuple[bytes, bool], Model] = OrderedDict()
        self.objects = own
        if others is not None:
            self.objects = ReadThrough(own, backend, others, chunk_cache=chunk_cache)

    def close(self) -> None:
        """Drop what is cached, and close the other stores that were opened."""
        self.objects.close()
        if self._others is not None:
            self._others.close()

    def of(self, record: Record, *, elsewhere: bool) -> Model:
        """Return what the model of one record consists of, as far as the store has it itself unless `elsewhere` is set."""
        if record.manifest is None or record.target is None or not names.names_model(record.name):
            raise ConfigError(f"{record.name} is not a model.")
        key = record.manifest, elsewhere
        kept = self._kept.get(key)
        if kept is not None and kept.record.target == record.target:
            return replace(kept, record=record)
        self._own.expect(record.packs)
        objects = self.objects if elsewhere else self._own
        model = read_model(record, record.manifest, objects=objects, backend=self._backend)
        self._kept[key] = model
        if len(self._kept) > _KEPT_MODELS:
            self._kept.popitem(last=False)
        return model

    def read(self, ref_or_id: str, read: Callable[[Model, ObjectStore], T]) -> T:
        """Return what `read` makes of a model and of the objects that it may read.

        What a pack that has vanished held is looked for in other packs; if it is in none, the ref may name something else by
        now, which is read instead; and last, other stores are asked. Raises RefNotFound, and MissingObject, which says what is
        missing.
        """
        record = find_model(self._refs, ref_or_id)
        for attempt in range(_RESOLVED):
            model = None
            try:
                model = self.of(record, elsewhere=True)
                return read(model, self._objects_while(ref_or_id, record))
            except (MissingObject, ObjectNotFound) as error:
                newer = find_model(self._refs, ref_or_id)
                # Not by the manifest: a model that was deleted, collected and added again has the same one.
                if newer.write_id == record.write_id or attempt == _RESOLVED - 1:
                    # Invariant 11: nothing has it.
                    if model is not None:
                        tell_missing(error, model, self._own)
                    raise
                record = newer
        raise AssertionError("the loop returns or raises")

    def _objects_while(self, ref_or_id: str, record: Record) -> ObjectStore:
        """Return the objects to read; other stores are asked only while the name means the model of this record."""
        if self._others is None:
            return self._own

        def is_current() -> bool:
            try:
                return find_model(self._refs, ref_or_id).manifest == record.manifest
            except RefNotFound:
                return False

        return ReadThrough(
            self._own, self._backend, self._others, chunks=self.objects.chunks, wanted=is_current
        )
