"""`casstore rm`: delete a ref."""

from typing import TYPE_CHECKING, Annotated

import typer

import casstore
from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import local_time, short_id
from casstore.machine.local_names import tree_name

if TYPE_CHECKING:
    from casstore import Store
    from casstore.format.record import Record


def run(
    *,
    ref: Annotated[
        str,
        typer.Argument(
            parser=tree_name,
            metavar="REF",
            help="The whole name of a ref, as `casstore ls` prints it.",
            show_default=False,
        ),
    ],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="Say what would be done; change nothing.", show_default=False),
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Delete a ref. The model's bytes stay until they are collected, and as long as another ref needs them."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        with out.open(read_only=dry_run) as opened:
            record, readable = _look(opened, ref)
            if record is None and readable:
                raise casstore.RefNotFound(_missing(ref, sorted(row.name for row in opened.find())))
            model_id = record.target.hex() if record is not None and record.target is not None else None
            others = (
                sorted(other.name for other in opened.find(target=model_id) if other.name != ref)
                if model_id
                else []
            )
            if not dry_run:
                opened.rm(ref)
        did = "Would delete" if dry_run else "Deleted"
        if out.as_json:
            out.print_json({"ref": ref, "model_id": model_id, "deleted": not dry_run, "other_refs": others})
        elif record is None or model_id is None:
            out.summary(f"{did} {ref}, of which the newest record could not be read.")
        else:
            out.summary(f"{did} {ref} (model {short_id(model_id)}, written {local_time(record.time)}).")
            if others:
                some = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
                out.summary(f"The model keeps {len(others)} other name(s): {some}.")
            else:
                out.summary("No other ref names this model.")


def _look(store: "Store", ref: str) -> "tuple[Record | None, bool]":
    """Return the record of a ref, if there is one, and whether it could be read."""
    try:
        return store.record(ref), True
    except casstore.ConfigError:
        return None, True  # Not a valid name, so no ref has it.
    except casstore.IntegrityError:
        return None, False  # What deletes it needs no more than its number.


def _missing(ref: str, names: list[str]) -> str:
    close = [name for name in names if name.partition("/")[2] == ref]
    if close:
        return f"{ref!r} is not a whole ref name, which rm needs. Give {' or '.join(close)}."
    return f"No ref named {ref!r}; rm takes the whole name, as `casstore ls` prints it."
