"""Pins: tags below `tags/pins/` that keep models from every policy of a collector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.errors import ConfigError, RefNotFound
from casstore.format import names

if TYPE_CHECKING:
    from casstore.store.model_store import ModelStore

PREFIX = "tags/pins/"


def pin(store: ModelStore, ref_or_id: str) -> str:
    """Pin the model that a ref or id means now; return the pin's name, which says what was pinned."""
    found = store.resolve(ref_or_id)
    if found.ref.startswith(PREFIX) and found.ref == ref_or_id:
        return found.ref
    is_name = ref_or_id in (found.ref, found.ref.partition("/")[2])
    pinned = found.ref if is_name else found.model_id
    name = PREFIX + pinned
    if not _is_name(name):
        name = PREFIX + found.model_id  # The ref's name leaves no room for more.
    return store.tag(name, pinned)


def unpin(store: ModelStore, ref_or_id: str) -> list[str]:
    """Delete the pins that `find_pins` finds; return their names."""
    found = find_pins(store, ref_or_id)
    for name in found:
        store.rm(name)
    return found


def find_pins(store: ModelStore, ref_or_id: str) -> list[str]:
    """Return the pin of this ref or id, else all pins of the model that it means. Raises RefNotFound if there is none."""
    own = [ref_or_id] if ref_or_id.startswith(PREFIX) else []
    own += [f"{PREFIX}{prefix}{ref_or_id}" for prefix in ("", "models/", "tags/")]
    found = [name for name in own if _is_name(name) and store.record(name) is not None][:1]
    if not found:
        model_id = store.resolve(ref_or_id).model_id
        found = sorted(row.name for row in store.find(PREFIX, target=model_id))
    if not found:
        raise RefNotFound(f"{ref_or_id!r} is not pinned. `casstore ls {PREFIX}` lists the pins.")
    return found


def _is_name(name: str) -> bool:
    try:
        names.check_name(name)
    except ConfigError:
        return False  # No ref can have it.
    return True
