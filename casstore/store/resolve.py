"""Which model a name or an id means, and the name that a model is added under."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.digest import is_hex
from casstore.errors import ConfigError, NameTaken, RefNotFound
from casstore.format import names
from casstore.machine.local_names import system_path
from casstore.refs.refs import not_found

if TYPE_CHECKING:
    from casstore.format.record import Record
    from casstore.refs.refs import Refs

_PREFIX = re.compile(r"[0-9a-f]{4,63}")
_NOT_IN_A_NAME = re.compile(r"[@\x00-\x1f\x7f-\x9f\ufffd]+")


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a name or id means: its ref and the model id."""

    ref: str
    model_id: str
    record: Record


def find_model(refs: Refs, ref_or_id: str) -> Record:
    """Return the record that a ref, a model id, a prefix of one (4 digits or more) or a bare name means.

    If several refs name the model of an id, the one written last counts. Raises RefNotFound if there is none, or if
    several models have ids with this prefix.
    """
    if not is_hex(ref_or_id):
        for name in (ref_or_id, f"models/{ref_or_id}", f"tags/{ref_or_id}"):
            if names.names_model(name):
                record = refs.value(name) if _is_name(name) else None
                if record is not None:
                    return record
        if not _PREFIX.fullmatch(ref_or_id):
            raise not_found(ref_or_id)
    targets, record = refs.naming(ref_or_id)
    if len(targets) > 1:
        some = ", ".join(target.hex()[:16] for target in targets[:4])
        raise RefNotFound(f"{ref_or_id!r} is ambiguous: {len(targets)} model ids begin with it ({some}, …).")
    if record is None:
        if is_hex(ref_or_id):
            refs.value(f"models/{ref_or_id}")  # Raises the reason if the ref is there and cannot be read.
        raise not_found(ref_or_id)
    return record


def find_name(refs: Refs, ref: str, *, deleted: bool = False) -> str:
    """Return the full name of a ref that is to be deleted or, with `deleted`, restored: `minilm` is `models/minilm` or `tags/minilm`.

    A model id is no name, as several refs may have that model. Raises RefNotFound if there is no such ref, or if there
    are two, ConfigError for what cannot name one.
    """
    if ref.partition("/")[0] in names.NAMESPACES:
        names.check_name(ref)
        return ref
    if is_hex(ref):
        raise RefNotFound(
            f"{ref} is a model id, not the name of a ref. `casstore ls --model {ref}` lists its refs."
        )
    full = [f"{namespace}/{ref}" for namespace in names.MODEL_NAMESPACES]
    heads = {name: refs.heads(name) for name in full if _is_name(name)}
    if not heads:
        names.check_name(full[0])  # Raises the reason.
    known = [name for name, head in heads.items() if head.number]
    is_deleted = {name: heads[name].value is None and not heads[name].hidden for name in known}
    found = [name for name in known if is_deleted[name] == deleted] or (known if deleted else [])
    if not found and _PREFIX.fullmatch(ref):
        raise RefNotFound(
            f"No ref named {ref!r}. Of a model id, give the name of a ref: `casstore ls --model {ref}` lists them."
        )
    if not found:
        raise not_found(ref)
    if len(found) > 1:
        raise RefNotFound(f"{ref!r} is ambiguous: give {' or '.join(found)}.")
    return found[0]


def find_model_id(refs: Refs, ref_or_id: str) -> bytes:
    """Return the id of the model that a name or an id means; quick for the id of a model that an add named by it."""
    if is_hex(ref_or_id):
        record = refs.value(f"models/{ref_or_id}")
        if record is not None and record.target == bytes.fromhex(ref_or_id):
            return record.target
    target = find_model(refs, ref_or_id).target
    assert target is not None
    return target


def full_name(ref: str) -> str:
    """Return the ref that a name given to an add means: `minilm` is `models/minilm`.

    Raises ConfigError for one that cannot name a model, also for `tag/x`, which may be a slip for `tags/x`.
    """
    name = ref if "/" in ref or ref in names.NAMESPACES else f"models/{ref}"
    names.check_name(name)
    if not names.names_model(name):
        raise ConfigError(f"{name} cannot name a model: use models/… or tags/….")
    return name


def name_of_path(path: str | os.PathLike[str]) -> str | None:
    """Return the ref that an add of this file or folder makes by default; None if its name gives none.

    A name that looks like a model id would mislead, and the root of a file system has no name. The name is the same
    whatever the locale.
    """
    own = os.path.basename(os.path.abspath(system_path(os.fspath(path)))).decode(errors="replace")
    name = f"models/{_NOT_IN_A_NAME.sub('-', own)}"
    return name if _is_name(name) and not is_hex(name.removeprefix("models/")) else None


def check_free(record: Record | None, model_id: bytes) -> None:
    """Raise NameTaken if a default name's record names another model than the one that is added."""
    if record is not None and record.target not in (None, model_id):
        assert record.target is not None
        raise NameTaken(
            f"{record.name} names another model already, {record.target.hex()[:16]}…. "
            "Choose a name for this one with `ref=` (`--ref` on the command line)."
        )


def _is_name(name: str) -> bool:
    try:
        names.check_name(name)
    except ConfigError:
        return False  # Not a valid name, so no ref can have it.
    return True
