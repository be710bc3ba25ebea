"""`casstore get`: write a model's files to a folder."""

import time
from typing import Annotated

import typer

from casstore.cli.support.options import DebugOption, JsonOption, ModelArgument, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import human_bytes, human_duration, human_rate, short_id


def run(
    *,
    ref_or_id: ModelArgument,
    dest: Annotated[
        str,
        typer.Argument(metavar="DEST", help="A folder that is empty or not there yet.", show_default=False),
    ],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write into a folder that is not empty: files of the same names are replaced, nothing is deleted.",
            show_default=False,
        ),
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the files of a model, every byte verified."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        with out.open(read_only=True) as opened, out.progress("Getting") as callback:
            started = time.perf_counter()
            model = opened.get(ref_or_id, dest, force=force, callback=callback)
            seconds = time.perf_counter() - started
        size, count = model.tree.size, len(model.tree.files)
        if out.as_json:
            out.print_json(
                {
                    "ref": model.record.name,
                    "model_id": model.model_id,
                    "dest": dest,
                    "files": count,
                    "bytes_total": size,
                    "seconds": seconds,
                }
            )
        else:
            files = "1 file" if count == 1 else f"{count} files"
            out.summary(
                f"{model.record.name}: model {short_id(model.model_id)}, {files}, {human_bytes(size)} in {dest}"
                f"; {human_duration(seconds)}, {human_rate(size, seconds)}."
            )
