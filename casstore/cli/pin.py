"""`casstore pin`: keep models from every policy."""

import click

from casstore.cli.support.command import Command, several
from casstore.cli.support.session import Session
from casstore.cli.support.text import short_id


@click.command(cls=Command)
@several("refs_or_ids", metavar="REF_OR_ID", what="Refs, model ids, or the first 4 or more digits of one.")
def run(out: Session, *, refs_or_ids: tuple[str, ...]) -> None:
    """Keep models, whatever `gc` is told to delete.

    A pin is a tag below tags/pins/, so `ls tags/pins/` lists them, and they are synced. It keeps the model that the name
    means now: pin again when the name moves.
    """
    with out.open() as store:
        pins = [store.pin(item) for item in refs_or_ids]
        found = [{"pin": pin, "model_id": store.resolve(pin).model_id} for pin in pins]
    out.report(found, *(f"{item['pin']} keeps model {short_id(item['model_id'])}." for item in found))
