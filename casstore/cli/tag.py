"""`casstore tag`: give a model another name."""

from typing import Annotated

import typer

from casstore.cli.support.options import DebugOption, JsonOption, ModelArgument, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import short_id
from casstore.machine.local_names import tree_name


def run(
    *,
    name: Annotated[
        str,
        typer.Argument(
            parser=tree_name, metavar="NAME", help="The tag: NAME or tags/NAME.", show_default=False
        ),
    ],
    ref_or_id: ModelArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a tag name a model; a tag that exists is moved."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        with out.open() as opened:
            ref = opened.tag(name, ref_or_id)
            model_id = opened.resolve(ref).model_id
        if out.as_json:
            out.print_json({"ref": ref, "model_id": model_id})
        else:
            out.summary(f"{ref} is model {short_id(model_id)} now.")
