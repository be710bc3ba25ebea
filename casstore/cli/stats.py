"""`casstore stats`: what the store holds and what it costs."""

from dataclasses import asdict

import click

from casstore.cli.support.command import Command
from casstore.cli.support.session import Session
from casstore.cli.support.text import human_bytes, human_percent, leftovers_text


@click.command(cls=Command)
def run(out: Session) -> None:
    """Measure what a store holds and what it takes.

    Models, bytes as files, bytes as stored, what is left over, what gc would free, and frames by encoding.
    """
    with out.open(read_only=True) as store:
        stats = out.answer_for(store).stats()
    if out.as_json:
        out.print_json({**asdict(stats), "bytes_stored": stats.bytes_stored})
        return
    to_free = stats.bytes_to_free
    unknown = "nothing, because something is damaged: run casstore check"
    out.table(
        ("store", stats.url),
        (
            ("store id", stats.store_id),
            ("refs", str(stats.refs)),
            ("models", str(stats.models)),
            ("as files", human_bytes(stats.bytes_logical)),
            ("stored", human_bytes(stats.bytes_stored)),
            ("share", human_percent(stats.bytes_stored, stats.bytes_logical)),
            (f"{stats.packs} packs", human_bytes(stats.bytes_packs)),
            ("index", human_bytes(stats.bytes_index)),
            ("records", human_bytes(stats.bytes_refs)),
            ("saved by deltas", f"about {human_bytes(stats.bytes_saved_by_deltas)}"),
            ("left over", leftovers_text(stats.leftovers)),
            ("needed by no ref", human_bytes(stats.bytes_unneeded)),
            ("gc would free", unknown if to_free is None else f"about {human_bytes(to_free)}"),
        ),
    )
    out.table(
        ("kind", "encoding", ">frames", ">plain", ">stored", ">share"),
        (
            (
                row.kind,
                row.encoding,
                str(row.frames),
                human_bytes(row.bytes_plain),
                human_bytes(row.bytes_stored),
                human_percent(row.bytes_stored, row.bytes_plain),
            )
            for row in stats.frames
        ),
        label="frames",
    )
