"""Which refs a sync is about, and in which order they are copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.concurrency.fan_out import ask_all
from casstore.errors import RefNotFound
from casstore.format import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casstore.format.record import Record
    from casstore.ops.sync.culprits import Culprits
    from casstore.store.model_store import ModelStore

__all__ = ["bases_first", "choose_refs"]


def choose_refs(src: ModelStore, refs: Sequence[str] | None, culprits: Culprits) -> dict[str, Record]:
    """Return the source's records that are meant, by name."""
    if refs is None:
        return _refs_of(src, "", culprits)
    found = ask_all(lambda item: _meant(src, item, culprits), refs, at_once=src.backend.is_remote)
    return {name: record for part in found for name, record in part.items()}


def _refs_of(src: ModelStore, prefix: str, culprits: Culprits) -> dict[str, Record]:
    return src.refs(prefix, strict=not culprits.keep_going, on_damage=culprits.found.append)


def _meant(src: ModelStore, item: str, culprits: Culprits) -> dict[str, Record]:
    """Return the records that one name, prefix or model id means."""
    if item.endswith("/"):
        before = len(culprits.found)
        found = _refs_of(src, item, culprits)
        if not found and len(culprits.found) == before and item[:-1] not in names.NAMESPACES:
            raise RefNotFound(f"No ref of {src.backend.url} starts with {item!r}.")
        return found
    found = {}
    with culprits.about(item):
        record = src.record(item) if item.partition("/")[0] in names.NAMESPACES else None
        if record is None:
            record = _best_named(src, item)
        found[record.name] = record
    return found


def _best_named(src: ModelStore, item: str) -> Record:
    """Return the record for an id or short name: an id names a model, not one of its refs."""
    resolved = src.resolve(item)
    if resolved.ref.partition("/")[2] == item:
        return resolved.record
    # The name that adding it gives, else the first.
    named = [row.name for row in src.find(target=resolved.model_id) if names.names_model(row.name)]
    name = min(named, key=lambda name: (name != f"models/{resolved.model_id}", name), default=resolved.ref)
    return src.record(name) or resolved.record


def bases_first(chosen: dict[str, Record], wanted: Iterable[str]) -> list[str]:
    """Return names in the order of copying: models first, each after the one that it was made from, then the others.

    A delta is copied as it is only where its base is there.
    """
    ordered = sorted(wanted, key=lambda name: (not names.names_model(name), name))
    naming: dict[bytes, str] = {}
    for name in ordered:
        target = chosen[name].target
        if names.names_model(name) and target is not None:
            naming.setdefault(target, name)
    done: dict[str, None] = {}
    for name in ordered:
        chain = []
        above: str | None = name
        while above is not None and above not in done and above not in chain:
            chain.append(above)
            above = naming.get(chosen[above].base or b"")
        done.update(dict.fromkeys(reversed(chain)))
    return list(done)
