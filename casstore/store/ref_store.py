"""RefStore: the refs and objects of one directory or bucket, whatever the refs name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore.digest import digest
from casstore.errors import ConfigError, FormatError
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.rows import Kind
from casstore.objects import CHUNK_CACHE, ObjectStore, check_object, encode_object
from casstore.refs.refs import Refs, not_found
from casstore.refs.rows import RefQuery
from casstore.store.record_limits import check_record
from casstore.store.resolve import find_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

    from casstore.backend.base import Backend
    from casstore.format.record import Record
    from casstore.machine.state import MachineState
    from casstore.objects import Damage, Publication
    from casstore.refs.rows import RefRow


class RefStore:
    """The refs of one store, their records, and the manifests of runs and evaluations.

    Safe in threads, and in a child process after a fork. Once it is closed, whatever needs its refs or objects raises
    ConfigError.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        store_id: bytes,
        machine: MachineState,
        index_copies: str | None = None,
        chunk_cache: int = CHUNK_CACHE,
    ) -> None:
        """`index_copies` is where this machine keeps index segments of a remote store, None for nowhere."""
        self.store_id = store_id.hex()
        self.machine = machine
        self._closed = False
        self.backend = backend
        self._open_objects = ObjectStore(backend, index_copies=index_copies, chunk_cache=chunk_cache)
        self._open_refs = Refs(backend, machine)

    def close(self) -> None:
        """Release files and connections; the store must not be used afterwards."""
        self._closed = True
        self._open_objects.close()
        self.machine.close()
        self.backend.close()

    def _require_open(self) -> None:
        if self._closed:
            raise ConfigError(f"The store {self.backend.url} is closed. Open it again to use it.")

    @property
    def objects(self) -> ObjectStore:
        """The objects of the store."""
        self._require_open()
        return self._open_objects

    @property
    def _refs(self) -> Refs:
        self._require_open()
        return self._open_refs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.backend.url!r})"

    @property
    def on_damage(self) -> Callable[[Damage], None]:
        """Called for each entry that work on the whole store leaves out because it cannot be read.

        By default a warning is logged. It may be called from any thread.
        """
        return self._refs.on_damage

    @on_damage.setter
    def on_damage(self, tell: Callable[[Damage], None]) -> None:
        self._refs.on_damage = tell

    def refs(
        self,
        prefix: str = "",
        *,
        strict: bool = False,
        on_damage: Callable[[Damage], None] | None = None,
    ) -> dict[str, Record]:
        """Return the current record of every ref whose name starts with `prefix`.

        One that cannot be read is left out, and `on_damage` called, by default the store's own; with `strict`,
        that is an error.
        """
        return self._refs.values(prefix, strict=strict, on_damage=on_damage)

    def find(
        self,
        prefix: str = "",
        *,
        where: Mapping[str, Any] | None = None,
        target: bytes | str | None = None,
        base: bytes | str | None = None,
        since: int | None = None,
        until: int | None = None,
        limit: int | None = None,
        newest_first: bool = True,
        strict: bool = False,
    ) -> list[RefRow]:
        """Return the refs for which all conditions hold, as light rows, ordered by time and then name.

        `prefix` is how names begin. `where` gives fields of the metadata and the values that they must equal,
        as Python compares; "a.b" is the field `b` of the map `a`, and None also matches a field that is
        absent. `target` and `base` are whole ids. `since` (inclusive) and `until` (exclusive) are nanoseconds
        since 1970. A ref that cannot be read is left out, and `on_damage` called; with `strict`, that is an error.
        Raises ConfigError for conditions that make no sense.
        """
        if limit is not None and limit < 0:
            raise ConfigError(f"Cannot list {limit} refs: give a limit of 0 or more.")
        query = RefQuery.of(prefix, where=where, target=target, base=base, since=since, until=until)
        return self._refs.find(query, limit=limit, newest_first=newest_first, strict=strict)

    def record(self, name: str) -> Record | None:
        """Return the current record of one ref, None if there is none or it is deleted.

        Raises IntegrityError if there is one that cannot be read.
        """
        names.check_name(name)
        return self._refs.value(name)

    def history(self, name: str) -> list[Record]:
        """Return every record of one ref that the store keeps, oldest first; the last one is its value.

        An older one that cannot be read is left out, and `on_damage` called; an unreadable newest one is an error.
        """
        names.check_name(name)
        return self._refs.history(name)

    def rm(self, ref: str, *, dry_run: bool = False) -> str:
        """Delete a ref, readable or not, and return its full name; a later gc can free what only it reached.

        `minilm` means `models/minilm` or `tags/minilm`, whichever there is. With `dry_run` nothing is deleted. Raises
        RefNotFound if there is none, or both.
        """
        name = find_name(self._refs, ref)
        heads = self._refs.heads(name)
        if not heads.hidden and heads.value is None:
            # Invariant 2: whoever deleted it may not have made that durable yet.
            self.backend.make_durable([record.key for record in heads.records[-1:]])
            raise not_found(name)
        if not dry_run:
            # On a full disk, deleting is the first step to free it (design §8).
            self.backend.in_spare_room(lambda: self._refs.put(self._refs.draft(name, target=None)))
            self.backend.keep_spare_room()
        return name

    def draft_copy(self, record: Record, packs: tuple[bytes, ...] = (), *, again: bool = False) -> Record:
        """Return this store's record for the value of `record`, of another store.

        It has a number and a write id of this store's; `packs` are hints at the packs here that cover it. With `again` it
        is new, though a record that has become unreadable says the same. Raises RefConflict as moving the ref would.
        """
        origin = record.origin or record.write_id
        return self._refs.draft_copy(record, packs, origin=origin, again=again)

    def put_manifest(
        self,
        name: str,
        manifest: bytes,
        *,
        metadata: dict[str, Any] | None = None,
        unless: Callable[[Record], bool] | None = None,
    ) -> Record:
        """Make the ref `name`, of a run or an evaluation, name a manifest; return its record.

        A manifest of up to 8 KiB lies inside the record, a larger one in a pack. `metadata` is what listings
        show and filter by. Nothing is written if the newest record has this value already, or `unless` accepts it
        instead. Raises ConfigError for a manifest, or metadata, that is too large to be read back.
        """
        names.check_name(name)
        if names.names_model(name):
            raise ConfigError(f"{name} names a model: only runs and evaluations have manifests of their own.")
        check_object(Kind.MANIFEST, manifest)
        check_record(name, metadata or {})
        target = digest(manifest)
        if len(manifest) <= record_format.MAX_INLINE:
            # The record needs no pack, so there is nothing that a collector could delete.
            with self.backend.publish_lock():
                record = self._refs.draft(
                    name, target=target, inline=manifest, metadata=metadata, unless=unless
                )
                return self._refs.put(record)
        with self.publication() as publication:
            publication.write_objects(Kind.MANIFEST, {target: manifest})
            return publication.commit(
                lambda packs: self._refs.draft(
                    name, target=target, manifest=target, metadata=metadata, packs=packs, unless=unless
                ),
                lambda _: iter([encode_object(Kind.MANIFEST, manifest)]),
            )

    def manifest_of(self, record: Record) -> bytes:
        """Return the verified manifest that the record of a run or an evaluation names."""
        if record.target is None or names.names_model(record.name):
            raise ConfigError(f"{record.name} is not a run or an evaluation.")
        manifest = record.inline if record.inline is not None else self.objects.read(record.target)
        if digest(manifest) != record.target:
            raise FormatError(f"The manifest inside {record.name} is not the one that it names.")
        return manifest

    def publication(self, *, pack_target: int | None = None) -> Publication:
        """Return a publish of this store, to be used as a context manager (see objects/publishing/publication.py)."""
        return self.objects.publication(self._refs.put, pack_target=pack_target)
