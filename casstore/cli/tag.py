"""`casstore tag`: give a model another name."""

import click

from casstore.cli.support.command import MODEL, Command
from casstore.cli.support.session import Session
from casstore.cli.support.text import short_id
from casstore.machine.local_names import tree_name


@click.command(cls=Command)
@click.argument("tag", type=tree_name, metavar="NAME", help="The tag: NAME or tags/NAME.")
@MODEL
def run(out: Session, *, tag: str, ref_or_id: str) -> None:
    """Point a tag at a model; an existing tag is moved."""
    with out.open() as store:
        ref = store.tag(tag, ref_or_id)
        model_id = store.resolve(ref).model_id
    out.report({"ref": ref, "model_id": model_id}, f"{ref} is model {short_id(model_id)} now.")
