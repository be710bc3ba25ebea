"""`casstore rm`: delete a ref."""

from typing import Annotated

import typer

import casstore
from casstore.cli.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.session import session
from casstore.cli.text import local_time, short_id


def run(
    *,
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="The whole name of a ref, as `casstore ls` prints it.", show_default=False
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
        with out.open(readonly=dry_run) as opened:
            row = next((row for row in opened.find(ref) if row.name == ref), None)
            if row is None:
                raise casstore.RefNotFound(_missing(ref, sorted(row.name for row in opened.find())))
            others = sorted(other.name for other in opened.find(target=row.target) if other.name != ref)
            if not dry_run:
                opened.delete_ref(ref)
        if out.as_json:
            out.print_json(
                {"ref": ref, "model_id": row.target.hex(), "deleted": not dry_run, "other_refs": others}
            )
        else:
            did = "Would delete" if dry_run else "Deleted"
            out.summary(f"{did} {ref} (model {short_id(row.target.hex())}, written {local_time(row.time)}).")
            if others:
                some = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
                out.summary(f"The model keeps {len(others)} other name(s): {some}.")
            else:
                out.summary("No other ref names this model.")


def _missing(ref: str, names: list[str]) -> str:
    close = [name for name in names if name.partition("/")[2] == ref]
    if close:
        return f"{ref!r} is not a whole ref name, and rm guesses nothing. Give {' or '.join(close)}."
    return f"No ref is called {ref!r}; rm takes the whole name, as `casstore ls` prints it."
