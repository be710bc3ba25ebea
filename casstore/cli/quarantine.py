"""`casstore quarantine`: stop relying on damaged packs."""

import click

from casstore.cli.support.command import MODEL, Command
from casstore.cli.support.session import Session
from casstore.cli.support.text import counted
from casstore.ops.quarantine import find_damage, set_apart


@click.command(cls=Command)
@MODEL
def run(out: Session, *, ref_or_id: str) -> None:
    """Stop relying on the damaged packs of a model.

    For a model that is to be added or pushed again afterwards; `casstore repair REF` does this, too, and takes good copies
    from wherever there are some. The packs stay in place, and what is undamaged in them can still be read; nothing new
    relies on them.
    """
    with out.open() as store:
        resolved = store.resolve(ref_or_id)
        damage = find_damage(store, resolved.record)
        set_apart(store, damage.packs)
    if out.as_json:
        packs = {pack.hex(): reason for pack, reason in damage.packs.items()}
        out.print_json({"ref": resolved.ref, "packs": packs, "missing": damage.missing})
        return
    for pack, reason in damage.packs.items():
        out.print_line(pack.hex(), reason)
    if not damage.complete:
        out.summary(
            f"What describes {resolved.ref} cannot be read, so the packs that its record names were checked."
        )
    again = f"Add {resolved.ref} again, or push it here with --overwrite from a store that has it."
    done = f"Quarantined {counted(len(damage.packs), 'pack')}."
    if damage.packs and damage.complete and not damage.missing:
        out.summary(f"{done} {resolved.ref} is still complete: there is nothing else to do.")
    elif damage.packs:
        out.summary(f"{done} {again}")
    elif damage.missing:
        out.summary(f"{resolved.ref} lacks {counted(damage.missing, 'object')}, found in no pack. {again}")
    else:
        out.summary(f"No pack of {resolved.ref} is damaged.")
