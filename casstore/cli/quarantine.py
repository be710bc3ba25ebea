"""`casstore quarantine`: set damaged packs apart."""

from casstore.cli.options import DebugOption, JsonOption, ModelArgument, QuietOption, StoreOption
from casstore.cli.session import session


def run(
    *,
    ref_or_id: ModelArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Set apart the damaged packs that a model is read from, so that it can be added or pushed anew.

    They stay where they are, and what is whole in them is still read; nothing new relies on them.
    """
    from casstore.ops.quarantine import quarantine_damaged  # noqa: PLC0415 - see cli/__init__.py

    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        with out.open() as opened:
            resolved = opened.resolve(ref_or_id)
            found = quarantine_damaged(opened, resolved.record)
        if out.as_json:
            out.print_json({"ref": resolved.ref, "packs": found})
            return
        for pack, reason in found.items():
            out.print_line(pack, reason)
        if found:
            out.summary(
                f"Set {len(found)} apart. Add {resolved.ref} again, or push it here with --overwrite from a store "
                "that has it."
            )
        else:
            out.summary(f"Nothing that {resolved.ref} is read from is damaged.")
