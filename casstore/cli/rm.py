"""`casstore rm`: delete a ref."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casstore.cli.support.command import DRY_RUN, Command
from casstore.cli.support.text import local_time, short_id
from casstore.errors import IntegrityError
from casstore.machine.local_names import tree_name
from casstore.store.pins import PREFIX as PINS

if TYPE_CHECKING:
    from casstore import Store
    from casstore.cli.support.session import Session
    from casstore.format.record import Record


@click.command(cls=Command)
@click.argument("ref", type=tree_name, metavar="REF", help="A ref; NAME alone is models/NAME or tags/NAME.")
@DRY_RUN
def run(out: Session, *, ref: str, dry_run: bool) -> None:
    """Delete a ref.

    The model's bytes stay until the next `gc`, and longer if another ref, such as a pin, needs them. Until then
    `casstore undelete` restores the ref.
    """
    with out.open(read_only=dry_run) as store:
        ref = store.rm(ref, dry_run=True)
        record = _readable(store, ref)
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


def _readable(store: Store, ref: str) -> Record | None:
    try:
        return store.record(ref)
    except IntegrityError:
        return None  # What deletes it needs no more than its number.
