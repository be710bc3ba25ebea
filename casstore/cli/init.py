"""`casstore init`: make a store."""

from typing import Annotated, Literal

import typer

from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session


def run(
    *,
    shared: Annotated[
        Literal["group"] | None,
        typer.Option(
            "--shared",
            help="Who else may read and write it: the group of the folder. Private without this.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a store; one that is there already is left as it is."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        opened, created = out.open_or_create(shared=shared)
        with opened:
            url, store_id = opened.backend.url, opened.store_id
        if out.as_json:
            out.print_json({"url": url, "store_id": store_id, "created": created})
        else:
            out.summary(f"Made a store at {url}." if created else f"There is a store at {url} already.")
