"""Which objects the records of one store need, read from wherever they are near, in few requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.digest import DIGEST_SIZE
from casstore.errors import FormatError, IntegrityError
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.format import names
from casstore.store.round_trips import is_far

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casstore.format.manifest import ModelManifest
    from casstore.format.record import Record
    from casstore.store.store import Store

_MANIFESTS = 1024
_BATCH = 32 << 20
"""Plain bytes of trees and layouts that are in memory at once, unless one model has more."""


def needs_of(src: Store, dst: Store, records: Iterable[Record]) -> dict[bytes, bytes]:
    """Return manifest id → the joined ids, each once, of all objects that a record with it depends on.

    What both stores hold is read from `dst` if that is near and `src` is not. Raises IntegrityError for a
    model of `src` that is not whole.
    """
    listed = list(records)
    runs = {record.manifest for record in listed if not names.names_model(record.name)}
    models: dict[bytes, bytes] = {}
    for record in listed:
        if record.manifest is not None and record.manifest not in runs:
            assert record.target is not None
            if models.setdefault(record.manifest, record.target) != record.target:
                raise FormatError(
                    f"The manifest of {record.name} does not fit its tree: add the model again."
                )
    found = {manifest: manifest for manifest in runs if manifest is not None}
    ids = list(models)
    for start in range(0, len(ids), _MANIFESTS):
        part = ids[start : start + _MANIFESTS]
        manifests = [manifest_format.decode_model(data) for data in _read(src, dst, part)]
        for manifest, target in zip(manifests, (models[item] for item in part), strict=True):
            if manifest.model_id != target:
                raise FormatError(f"A manifest of the model {target.hex()} is another model's: add it again.")
        for first, end in _batches(src, dst, manifests):
            asked = list(
                dict.fromkeys(
                    object_id for item in manifests[first:end] for object_id in (item.model_id, *item.layouts)
                )
            )
            plain = dict(zip(asked, _read(src, dst, asked), strict=True))
            for manifest_id, manifest in zip(part[first:end], manifests[first:end], strict=True):
                found[manifest_id] = _join(manifest_id, manifest, plain)
    return found


def _join(manifest_id: bytes, manifest: ModelManifest, plain: dict[bytes, bytes]) -> bytes:
    tree = manifest_format.decode_tree(plain[manifest.model_id])
    layouts = [layout_format.decode(plain[item]) for item in manifest.layouts]
    if [(entry.file_id, entry.size) for entry in tree.files] != [
        (item.file_id, item.size) for item in layouts
    ]:
        raise FormatError(
            f"The manifest of the model {manifest.model_id.hex()} does not fit its tree: add the model again."
        )
    chunks = [chunk for layout in layouts for chunk in layout.chunk_ids()]
    return b"".join(dict.fromkeys((manifest_id, manifest.model_id, *manifest.layouts, *chunks)))


def _batches(src: Store, dst: Store, manifests: Sequence[ModelManifest]) -> Iterator[tuple[int, int]]:
    """Divide the models into ranges whose trees and layouts are small together."""
    first = size = 0
    for at, manifest in enumerate(manifests):
        ids = [manifest.model_id, *manifest.layouts]
        here, there = src.index.glance(ids), dst.index.locate(ids)
        more = max(int(here.rows["raw"].sum()), int(there.rows["raw"].sum()))
        if at > first and size + more > _BATCH:
            yield first, at
            first, size = at, 0
        size += more
    if first < len(manifests):
        yield first, len(manifests)


def _read(src: Store, dst: Store, ids: Sequence[bytes]) -> list[bytes]:
    if is_far(dst.backend) or not is_far(src.backend):
        return src.objects.read_many(ids)
    there = dst.index.locate(ids).found.tolist()
    near = [object_id for object_id, found in zip(ids, there, strict=True) if found]
    plain: dict[bytes, bytes] = {}
    if near:
        try:
            plain = dict(zip(near, dst.objects.read_many(near), strict=True))
        except IntegrityError:
            plain = {}  # Invariant 4: gone from there since, or damaged there; `src` has it.
    far = [object_id for object_id in ids if object_id not in plain]
    if far:
        plain.update(zip(far, src.objects.read_many(far), strict=True))
    return [plain[object_id] for object_id in ids]


def split(joined: bytes) -> list[bytes]:
    """Return the ids of which `joined` is made."""
    return [joined[at : at + DIGEST_SIZE] for at in range(0, len(joined), DIGEST_SIZE)]
