"""What to tell somebody who cannot read a model because objects of it are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.errors import CasstoreError, MissingObject
from casstore.store.reading.model import some_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.format.layout import Layout
    from casstore.objects import ObjectStore
    from casstore.store.reading.model import Model

_IDS = 3


def tell_missing(error: CasstoreError, model: Model, objects: ObjectStore) -> None:
    """Add to an error which objects and files of a model the store lacks, as far as its layouts can be read."""
    try:
        paths, layouts = [entry.path for entry in model.tree.files], model.layouts
    except CasstoreError:
        return  # Invariant 11: the caller's own error is raised; it names what is missing.
    tell_missing_in(error, model.ref, paths, layouts, objects)


def tell_missing_in(
    error: CasstoreError, name: str, paths: Sequence[str], layouts: Sequence[Layout], objects: ObjectStore
) -> None:
    """Add to an error which objects, of which of these files, the store lacks; `name` is what they are files of."""
    if not isinstance(error, MissingObject):
        return
    lost: dict[bytes, None] = {}
    files = []
    for path, layout in zip(paths, layouts, strict=True):
        ids = layout.chunk_ids()
        found = objects.resolve(ids).found.tolist()
        missing = [object_id for object_id, there in zip(ids, found, strict=True) if not there]
        if missing:
            files.append(path)
            lost.update(dict.fromkeys(missing))
    if lost:
        some = ", ".join(object_id.hex() for object_id in list(lost)[:_IDS])
        named = f"{some}, …" if len(lost) > _IDS else some
        lacks = f"{name} lacks {len(lost)} objects ({named}) of {len(files)} of its {len(paths)} files: {some_of(files)}."
        error.args = (f"{error} In all, {lacks}",)
