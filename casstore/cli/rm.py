"""`casstore rm`: delete a ref."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casstore.cli.support.command import DRY_RUN, Command
from casstore.cli.support.text import local_time, short_id
from casstore.errors import ConfigError, IntegrityError, RefNotFound
from casstore.machine.local_names import tree_name
from casstore.store.pins import PREFIX as PINS

if TYPE_CHECKING:
    from casstore import Store
    from casstore.cli.support.session import Session
    from casstore.format.record import Record


@click.command(cls=Command)
@click.argument(
    "ref", type=tree_name, metavar="REF", help="The whole name of a ref, as `casstore ls` prints it."
)
@DRY_RUN
def run(out: Session, *, ref: str, dry_run: bool) -> None:
    """Delete a ref.

    The model's bytes stay until they are collected, and as long as another ref, such as a pin, needs them. Until then
    `casstore undelete` brings the ref back.
    """
    with out.open(read_only=dry_run) as store:
        record, readable = _look(store, ref)
        if record is None and readable:
            raise RefNotFound(_missing(ref, sorted(row.name for row in store.find())))
        model_id = record.target.hex() if record is not None and record.target is not None else None
        named = store.find(target=model_id) if model_id else []
        others = sorted(other.name for other in named if other.name != ref)
        if not dry_run:
            store.rm(ref)
    did = "Would delete" if dry_run else "Deleted"
    if record is None or model_id is None:
        lines = [f"{did} {ref}, of which the newest record could not be read."]
    else:
        lines = [f"{did} {ref} (model {short_id(model_id)}, written {local_time(record.time)})."]
        some = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        lines.append(
            f"Other refs of this model: {len(others)} ({some})."
            if others
            else "No other ref names this model."
        )
        pins = [other for other in others if other.startswith(PINS)]
        if pins:
            lines.append(f"The pin {pins[0]} keeps its bytes: `casstore unpin {pins[0]}` deletes that.")
        if not dry_run:
            lines.append(f"Until the next gc, `casstore undelete {ref}` brings it back.")
    out.report({"ref": ref, "model_id": model_id, "deleted": not dry_run, "other_refs": others}, *lines)


def _look(store: Store, ref: str) -> tuple[Record | None, bool]:
    """Return the record of a ref, if there is one, and whether it could be read."""
    try:
        return store.record(ref), True
    except ConfigError:
        return None, True  # Not a valid name, so no ref has it.
    except IntegrityError:
        return None, False  # What deletes it needs no more than its number.


def _missing(ref: str, names: list[str]) -> str:
    close = [name for name in names if name.partition("/")[2] == ref]
    if close:
        return f"{ref!r} is not a whole ref name, which rm needs. Give {' or '.join(close)}."
    return f"No ref named {ref!r}; rm takes the whole name, as `casstore ls` prints it."
