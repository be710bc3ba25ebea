"""Which objects the records of one store need, read from the nearer store in few requests."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casstore.digest import DIGEST_SIZE
from casstore.errors import FormatError, IntegrityError
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.format import names
from casstore.objects import batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from casstore.errors import CasstoreError
    from casstore.format.manifest import ModelManifest
    from casstore.format.record import Record
    from casstore.store.model_store import ModelStore

_MANIFESTS = 1024
_BATCH = 32 << 20
"""Limit of the plain bytes of trees and layouts in memory at once, unless one model has more."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The objects that records depend on, by their manifests.

    `found` are the joined ids, each once, of all objects; `failed` says why the objects of a manifest are unknown
    or missing. `described` is the model that a manifest describes.
    """

    found: dict[bytes, bytes] = field(default_factory=dict)
    failed: dict[bytes, CasstoreError] = field(default_factory=dict)
    described: dict[bytes, bytes] = field(default_factory=dict)

    def of(self, record: Record) -> bytes:
        """Return the joined ids that a record depends on: none where its manifest lies inside it."""
        return self.found.get(record.manifest or b"", b"")

    def error(self, record: Record) -> CasstoreError | None:
        """Return why a record cannot be copied, None if it can."""
        manifest = record.manifest or b""
        if self.described.get(manifest, record.target) != record.target:
            return FormatError(f"The manifest of {record.name} is another model's: add the model again.")
        return self.failed.get(manifest)

    def add_bases(self, src: ModelStore) -> None:
        """Count the bases of deltas of `src` among what their records depend on."""
        for manifest, joined in self.found.items():
            self.found[manifest] = b"".join(src.objects.with_bases(split(joined)))

    def fail(self, lost: Mapping[bytes, CasstoreError]) -> None:
        """Note that objects are lost, with the reason for each."""
        self.failed.update(lacking(self.found, lost))


def needs_of(src: ModelStore, dst: ModelStore, records: Iterable[Record]) -> Needs:
    """Return what records of `src` need.

    Objects in both stores are read from `dst` if that is near and `src` is not.
    """
    needs = Needs()
    ids: dict[bytes, None] = {}
    for record in records:
        if record.manifest is not None and names.names_model(record.name):
            ids[record.manifest] = None
        elif record.manifest is not None:
            needs.found[record.manifest] = record.manifest
    models = list(ids)
    for start in range(0, len(models), _MANIFESTS):
        plain, unread = _read(src, dst, models[start : start + _MANIFESTS])
        needs.failed.update(unread)
        manifests: dict[bytes, ModelManifest] = {}
        for manifest_id, data in plain.items():
            with _noting(needs.failed, manifest_id):
                manifests[manifest_id] = manifest_format.decode_model(data)
                needs.described[manifest_id] = manifests[manifest_id].model_id
        for batch in _batches(src, dst, manifests):
            asked = list(
                dict.fromkeys(
                    object_id
                    for manifest_id in batch
                    for object_id in (manifests[manifest_id].model_id, *manifests[manifest_id].layouts)
                )
            )
            plain, unread = _read(src, dst, asked)
            for manifest_id in batch:
                with _noting(needs.failed, manifest_id):
                    needs.found[manifest_id] = _join(manifest_id, manifests[manifest_id], plain, unread)
    return needs


@contextmanager
def _noting(failed: dict[bytes, CasstoreError], manifest_id: bytes) -> Iterator[None]:
    """Note damage under its model, so that the others go on."""
    try:
        yield
    except IntegrityError as error:
        # Invariant 11: no error is lost: the caller raises or reports it.
        failed[manifest_id] = error


def _join(
    manifest_id: bytes,
    manifest: ModelManifest,
    plain: dict[bytes, bytes],
    unread: dict[bytes, CasstoreError],
) -> bytes:
    for object_id in (manifest.model_id, *manifest.layouts):
        if object_id in unread:
            raise unread[object_id]
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


def _batches(
    src: ModelStore, dst: ModelStore, manifests: dict[bytes, ModelManifest]
) -> Iterator[list[bytes]]:
    """Divide the models into lists whose trees and layouts are small together."""

    def size(manifest: ModelManifest) -> int:
        ids = [manifest.model_id, *manifest.layouts]
        # The segments of `src` may be far, and need not be fetched for this.
        found = src.objects.find(ids, load=False), dst.objects.find(ids)
        return max(int(located.rows["raw"].sum()) for located in found)

    ids = list(manifests)
    for batch in batches(map(size, manifests.values()), _BATCH):
        yield ids[batch.start : batch.stop]


def _read(
    src: ModelStore, dst: ModelStore, ids: Sequence[bytes]
) -> tuple[dict[bytes, bytes], dict[bytes, CasstoreError]]:
    """Return the plain bytes of objects by their ids, and why others cannot be read in `src`."""
    if dst.backend.is_remote or not src.backend.is_remote:
        return src.objects.read_present(ids)
    there = dst.objects.find(ids).found.tolist()
    near = [object_id for object_id, found in zip(ids, there, strict=True) if found]
    # Invariant 4: `src` has what is gone from `dst` meanwhile, or damaged there.
    plain, _ = dst.objects.read_present(near)
    far, failed = src.objects.read_present([item for item in ids if item not in plain])
    return {**plain, **far}, failed


def lacking(needs: Mapping[bytes, bytes], lost: Mapping[bytes, CasstoreError]) -> dict[bytes, CasstoreError]:
    """Return why something that needs objects cannot have all of them: its key → the first reason."""
    failed = {}
    for key, joined in needs.items():
        reason = next((lost[object_id] for object_id in split(joined) if object_id in lost), None)
        if reason is not None:
            failed[key] = reason
    return failed


def split(joined: bytes) -> list[bytes]:
    """Return the ids of which `joined` is made."""
    return [joined[at : at + DIGEST_SIZE] for at in range(0, len(joined), DIGEST_SIZE)]
