"""`casstore add`: add a model to the store."""

import click

from casstore.cli.support.command import Command
from casstore.cli.support.session import Session
from casstore.cli.support.text import counted, human_bytes, human_duration, human_rate, short_id
from casstore.machine.local_names import tree_name
from casstore.store.adding.bases.policy import DeltaOption


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE.")
    return tree_name(key), tree_name(value)


@click.command(cls=Command)
@click.argument("path", metavar="PATH", help="A model: a file or a folder.")
@click.option(
    "--ref",
    type=tree_name,
    metavar="NAME",
    help="The ref to set, NAME or models/NAME; without it the name of the file or folder.",
)
@click.option("--base", type=tree_name, metavar="REF_OR_ID", help="The model that this one was made from.")
@click.option(
    "--metadata",
    type=_pair,
    multiple=True,
    metavar="KEY=VALUE",
    help="Kept with the ref; may be given several times.",
)
@click.option(
    "--exclude",
    type=tree_name,
    multiple=True,
    metavar="PATTERN",
    help="Leave out what matches, as in .gitignore, besides what the folder's .casstoreignore names;"
    " may be given several times.",
)
@click.option(
    "--delta",
    type=click.Choice(["off", "balanced", "max"]),
    default="balanced",
    show_default=True,
    help="When chunks are stored as deltas against like tensors of the store: where that saves a tenth and reading stays"
    " fast, wherever it saves anything, or never.",
)
@click.option("--no-follow", is_flag=True, help="Refuse links instead of following them.")
@click.option("--no-stat-cache", is_flag=True, help="Read files even if they look unchanged.")
def run(
    out: Session,
    *,
    path: str,
    ref: str | None,
    base: str | None,
    metadata: tuple[tuple[str, str], ...],
    exclude: tuple[str, ...],
    delta: DeltaOption,
    no_follow: bool,
    no_stat_cache: bool,
) -> None:
    """Add a model; only what the store lacks is written."""
    kept = dict(metadata)
    if len(kept) < len(metadata):
        raise click.BadParameter("A key is given twice.", param_hint="--metadata")
    with out.open_to_fill() as store, out.progress("Adding") as callback:
        result = store.add(
            path,
            ref=ref,
            base=base,
            metadata=kept,
            callback=callback,
            follow_links=not no_follow,
            stat_cache=not no_stat_cache,
            exclude=exclude,
            delta=delta,
        )
    if result.files == 0:
        out.note(f"{result.ref} has no files: the folder is empty, or everything in it is excluded.")
    if out.quiet and not out.as_json:
        out.print_line(result.model_id)
    out.report(
        result,
        f"{result.ref}: model {short_id(result.model_id)}, {counted(result.files, 'file')}.",
        f"{human_bytes(result.bytes_total)}, of which {human_bytes(result.bytes_new)} new"
        f" ({result.chunks_new} of {result.chunks} chunks), stored in {human_bytes(result.bytes_stored)}"
        f"; {human_duration(result.seconds)}, {human_rate(result.bytes_total, result.seconds)}.",
    )
