"""Adding a model: ingest its files, describe them in a tree and a manifest, and publish a record."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.digest import digest
from casstore.errors import IntegrityError, ObjectNotFound
from casstore.format import canonical, marks
from casstore.format import manifest as manifest_format
from casstore.format.manifest import ModelManifest, TreeEntry
from casstore.format.rows import Kind
from casstore.objects import encode_object
from casstore.store.adding.bases.deltas import Deltas
from casstore.store.adding.bases.policy import delta_policy
from casstore.store.adding.claims import Claims
from casstore.store.adding.executable import own_bits
from casstore.store.adding.ingest import Ingest
from casstore.store.adding.sources import list_sources
from casstore.store.dependencies import is_whole
from casstore.store.record_limits import check_record
from casstore.store.resolve import check_free, find_model_id, full_name, name_of_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fsspec import Callback

    from casstore.format.record import Record
    from casstore.objects import EncodedFrames
    from casstore.refs.refs import Refs
    from casstore.store.adding.exclusion import Exclusion
    from casstore.store.adding.sources import SourceFile
    from casstore.store.model_store import ModelStore


@dataclass(frozen=True, slots=True)
class AddResult:
    """The result of an add: `bytes_new` are plain bytes that the store lacked, `bytes_stored` what they take."""

    model_id: str
    ref: str
    files: int
    bytes_total: int
    bytes_new: int
    bytes_stored: int
    chunks: int
    chunks_new: int
    seconds: float


def add_model(
    store: ModelStore,
    refs: Refs,
    path: str | os.PathLike[str] | Mapping[str, str],
    *,
    ref: str | None,
    base: str | None,
    metadata: dict[str, Any] | None,
    callback: Callback | None,
    follow_links: bool,
    stat_cache: bool,
    exclusion: Exclusion,
    delta: str,
) -> AddResult:
    """Add files to a store as `ModelStore.add` describes; `refs` are the store's."""
    started = time.perf_counter()
    policy = delta_policy(delta)
    given = full_name(ref) if ref is not None else None
    # Encoded and decoded once before any work is done: metadata that cannot be kept is refused now, and compared
    # in its stored form.
    metadata = canonical.decode(canonical.encode({"metadata": metadata or {}}), what="metadata")["metadata"]
    check_record(given or f"models/{'0' * 64}", metadata)
    base_id = find_model_id(refs, base) if base is not None else None
    root = store.backend.local_path(marks.FORMAT_KEY)
    own = os.path.realpath(os.path.dirname(root)) if root else None
    sources = list_sources(path, follow=follow_links, store=own, exclusion=exclusion)
    default = name_of_path(path) if given is None and not isinstance(path, Mapping) else None
    with contextlib.ExitStack() as stack:
        publication = stack.enter_context(store.publication())
        claims = Claims(publication)
        deltas = None
        if policy is not None:
            deltas = Deltas(store, refs, policy, base=base_id, ranks=claims.ranks)
        ingest = stack.enter_context(
            Ingest(
                publication=publication,
                claims=claims,
                objects=store.objects,
                machine=store.machine,
                stat_cache=stat_cache,
                callback=callback,
                deltas=deltas,
            )
        )
        added = ingest.run(sources)
        entries = [TreeEntry(item.source.path, item.layout.size, item.layout.file_id) for item in added]
        entries += [TreeEntry(name, 0, None) for name in sources.empty]
        tree = manifest_format.encode_tree(manifest_format.make_tree(entries))
        model_id = digest(tree)
        manifest = manifest_format.encode_model(
            ModelManifest(
                model_id,
                tuple(item.layout_id for item in added),
                _executable(store, refs, model_id, [item.source for item in added]),
            )
        )
        objects = {Kind.TREE: tree, Kind.MANIFEST: manifest}
        for kind, plain in objects.items():
            publication.write_objects(kind, {digest(plain): plain})
        name = given or default or f"models/{model_id.hex()}"

        def supply(missing: set[bytes]) -> Iterator[EncodedFrames]:
            for kind, plain in objects.items():
                if digest(plain) in missing:
                    yield encode_object(kind, plain)
            yield from ingest.supply(missing)

        def refuse_taken(newest: Record) -> bool:
            check_free(newest, model_id)
            return False

        def draft(packs: tuple[bytes, ...]) -> Record:
            if default is not None:
                check_free(refs.value(default), model_id)  # Raises as well for a record that cannot be read.
            return refs.draft(
                name,
                target=model_id,
                manifest=digest(manifest),
                base=base_id,
                metadata=metadata,
                packs=packs,
                stands=lambda record: is_whole(store, record, publication),
                unless=refuse_taken if default is not None else None,
            )

        record = publication.commit(draft, supply)
        if default is not None:
            _yield_to_rival(refs, record)
        ingest.remember(model_id)
    counts = ingest.counts
    return AddResult(
        model_id=model_id.hex(),
        ref=name,
        files=len(added),
        bytes_total=counts.bytes_total,
        bytes_new=counts.bytes_new,
        bytes_stored=publication.bytes_stored,
        chunks=counts.chunks,
        chunks_new=counts.chunks_new,
        seconds=time.perf_counter() - started,
    )


def _yield_to_rival(refs: Refs, record: Record) -> None:
    """Raise NameTaken if another add gave the same default name to another model at the same time.

    The other one may have returned already, so its model keeps the name even if our record would win.
    """
    heads = [other for other in refs.heads(record.name).records if other.seq == record.seq]
    rival = next((other for other in heads if other.target not in (None, record.target)), None)
    if rival is None:
        return
    if record.order > rival.order:
        # Its objects are there: its own publish has seen to that, and both records keep them from a collector.
        again = refs.draft(
            rival.name,
            target=rival.target,
            manifest=rival.manifest,
            base=rival.base,
            metadata=rival.metadata,
            packs=rival.packs,
        )
        refs.put(again)
    check_free(rival, record.target or b"")


def _executable(
    store: ModelStore, refs: Refs, model_id: bytes, files: Sequence[SourceFile]
) -> tuple[int, ...]:
    """Return the positions of the files that are executable.

    Where a file system has no such bit, the bits that the store has for the same files are kept.
    """
    own = own_bits(files, store.file_system_type)
    known = _known_executable(store, refs, model_id) if len(own) < len(files) else frozenset()
    return tuple(at for at, file in enumerate(files) if own.get(file.path, file.path in known))


def _known_executable(store: ModelStore, refs: Refs, model_id: bytes) -> frozenset[str]:
    _, record = refs.naming(model_id.hex())
    try:
        return store.model_of(record).executable if record is not None else frozenset()
    except (IntegrityError, ObjectNotFound):
        return frozenset()  # Invariant 13: damage to an earlier model does not prevent adding it again.
