"""`casstore stats`: what the store holds and what it costs."""

from dataclasses import asdict

from casstore.cli.support.leftovers import leftovers_text
from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import human_bytes, human_percent


def run(
    *,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the store: models, bytes as files, bytes as stored, what is left over, frames by encoding."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        with out.open(read_only=True) as opened:
            stats = out.answer_for(opened).stats()
            left = opened.leftovers()
        if out.as_json:
            out.print_json({**asdict(stats), "bytes_stored": stats.bytes_stored, "leftovers": asdict(left)})
            return
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
                ("left over", leftovers_text(left)),
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
