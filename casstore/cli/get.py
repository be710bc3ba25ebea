"""`casstore get`: write a model's files to a folder."""

import time

import click

from casstore.cli.support.command import MODEL, Command
from casstore.cli.support.session import Session
from casstore.cli.support.text import counted, human_bytes, human_duration, human_rate, short_id


@click.command(cls=Command)
@MODEL
@click.argument("dest", metavar="DEST", help="A folder that is empty or not there yet.")
@click.option(
    "--force",
    is_flag=True,
    help="Write into a folder that is not empty: files of the same names are replaced, nothing is deleted.",
)
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Only files that match, such as '*.json'; may be given several times.",
)
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="No files that match; may be given several times."
)
def run(
    out: Session,
    *,
    ref_or_id: str,
    dest: str,
    force: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> None:
    """Write the files of a model, every byte verified."""
    with out.open(read_only=True) as store, out.progress("Getting") as callback:
        started = time.perf_counter()
        model = store.get(
            ref_or_id, dest, include=include or None, exclude=exclude or None, force=force, callback=callback
        )
        seconds = time.perf_counter() - started
    ref, size, count = model.record.name, model.tree.size, len(model.tree.files)
    out.report(
        {
            "ref": ref,
            "model_id": model.model_id,
            "dest": dest,
            "files": count,
            "bytes_total": size,
            "seconds": seconds,
        },
        f"{ref}: model {short_id(model.model_id)}, {counted(count, 'file')}, {human_bytes(size)} in {dest}"
        f"; {human_duration(seconds)}, {human_rate(size, seconds)}.",
    )
