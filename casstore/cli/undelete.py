"""`casstore undelete`: give deleted refs their last values again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casstore.cli.support.command import Command, several
from casstore.cli.support.text import short_id

if TYPE_CHECKING:
    from casstore.cli.support.session import Session


@click.command(cls=Command)
@several("refs", metavar="REF", what="Refs that were deleted: models/NAME, NAME, or tags/NAME.")
def run(out: Session, *, refs: tuple[str, ...]) -> None:
    """Give deleted refs their last values again.

    That works until the next `gc`, which frees what no ref reaches.
    """
    with out.open() as store:
        found = [store.undelete(ref) for ref in refs]
    out.report(
        [{"ref": row.name, "model_id": row.model_id} for row in found],
        *(
            f"{row.name} is back{f', model {short_id(row.model_id)}' if row.model_id else ''}."
            for row in found
        ),
    )
