"""`casstore quarantine`: stop relying on damaged packs."""

from casstore.cli.support.options import DebugOption, JsonOption, ModelArgument, QuietOption, StoreOption
from casstore.cli.support.session import session


def run(
    *,
    ref_or_id: ModelArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Quarantine the damaged packs of a model, so that it can be added or pushed again.

    The packs stay in place, and what is undamaged in them can still be read; nothing new relies on them.
    """
    from casstore.ops.quarantine import find_damage, set_apart  # noqa: PLC0415 - see cli/__init__.py

    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        with out.open() as opened:
            resolved = opened.resolve(ref_or_id)
            damage = find_damage(opened, resolved.record)
            set_apart(opened, damage.packs)
        if out.as_json:
            packs = {pack.hex(): reason for pack, reason in damage.packs.items()}
            out.print_json({"ref": resolved.ref, "packs": packs, "missing": damage.missing})
            return
        for pack, reason in damage.packs.items():
            out.print_line(pack.hex(), reason)
        if not damage.complete:
            out.summary(
                f"What describes {resolved.ref} cannot be read, so the packs that its record names were."
            )
        way_back = f"Add {resolved.ref} again, or push it here with --overwrite from a store that has it."
        if damage.packs and damage.complete and not damage.missing:
            out.summary(
                f"Set {len(damage.packs)} apart. {resolved.ref} is whole without: nothing is to be done."
            )
        elif damage.packs:
            out.summary(f"Set {len(damage.packs)} apart. {way_back}")
        elif damage.missing:
            out.summary(f"{damage.missing} objects of {resolved.ref} are in no pack. {way_back}")
        else:
            out.summary(f"Nothing that {resolved.ref} is read from is damaged.")
