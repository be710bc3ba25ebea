"""`casstore add`: bring a model into the store."""

from dataclasses import asdict
from typing import Annotated

import typer

from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import human_bytes, human_duration, human_rate, short_id
from casstore.machine.local_names import tree_name


def _metadata(pairs: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE.", param_hint="--metadata")
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice.", param_hint="--metadata")
        found[tree_name(key)] = tree_name(value)
    return found


def run(
    *,
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A model: a file or a folder.", show_default=False)
    ],
    ref: Annotated[
        str | None,
        typer.Option(
            parser=tree_name,
            metavar="NAME",
            help="The ref to set: models/NAME; without it models/<model id>.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(parser=tree_name, metavar="REF_OR_ID", help="The model that this one was made from."),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Kept with the ref; may be given several times."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave out what matches, as in .gitignore, besides what the folder's .casstoreignore names;"
            " may be given several times.",
        ),
    ] = None,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Refuse links instead of following them.", show_default=False)
    ] = False,
    no_stat_cache: Annotated[
        bool,
        typer.Option("--no-stat-cache", help="Read files even if they look unchanged.", show_default=False),
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Add a model; only what the store lacks is written."""
    kept = _metadata(metadata)
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        opened, created = out.open_or_create() if out.uses_default else (out.open(), False)
        if created:
            out.note(f"made your own store at {out.place}.")
        with opened, out.progress("Adding") as callback:
            result = opened.add(
                path,
                ref=ref,
                base=base,
                metadata=kept,
                callback=callback,
                follow_links=not no_follow,
                stat_cache=not no_stat_cache,
                exclude=[tree_name(pattern) for pattern in exclude or ()],
            )
        if out.as_json:
            out.print_json(asdict(result))
        elif out.quiet:
            out.print_line(result.model_id)
        else:
            files = "1 file" if result.files == 1 else f"{result.files} files"
            out.summary(f"{result.ref}: model {short_id(result.model_id)}, {files}.")
            out.summary(
                f"{human_bytes(result.bytes_total)}, of which {human_bytes(result.bytes_new)} new"
                f" ({result.chunks_new} of {result.chunks} chunks), stored in {human_bytes(result.bytes_stored)}"
                f"; {human_duration(result.seconds)}, {human_rate(result.bytes_total, result.seconds)}."
            )
