"""`casstore show`: what a model consists of, where it comes from; what a run or an evaluation was."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casstore.cli.support.options import DebugOption, JsonOption, QuietOption, StoreOption
from casstore.cli.support.session import session
from casstore.cli.support.text import human_bytes, human_percent, local_time, short_id, utc_time
from casstore.machine.local_names import tree_name

if TYPE_CHECKING:
    from casstore.cli.support.session import Session
    from casstore.ops.describe import EncodingShare, FileDescription, ModelDescription
    from casstore.ops.lineage import Lineage


def run(
    *,
    ref_or_id: Annotated[
        str,
        typer.Argument(
            parser=tree_name,
            metavar="REF_OR_ID",
            help="A ref (of a model, a run or an evaluation), a model id, or the first 4 or more digits of one.",
            show_default=False,
        ),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor.", show_default=False)
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Show a model's files, tensors, chunks, encodings and lineage; or a run, or an evaluation."""
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        from casstore.ops.describe import describe  # noqa: PLC0415 - see cli/__init__.py
        from casstore.ops.lineage import lineage  # noqa: PLC0415 - as above

        with out.open(read_only=True) as opened:
            if ref_or_id.startswith(("runs/", "evaluations/")):
                from casstore.cli.support.records import show_evaluation, show_run  # noqa: PLC0415 - as above

                shown = show_run if ref_or_id.startswith("runs/") else show_evaluation
                shown(out, opened, ref_or_id)
                return
            model = describe(opened, ref_or_id)
            about = lineage(opened, model.record.name)
        if out.as_json:
            out.print_json(_as_json(model, about))
        else:
            _print(out, model, tensors=tensors)
            _print_lineage(out, about)


def _as_json(model: "ModelDescription", about: "Lineage") -> dict[str, Any]:
    from casstore.cli.support.lineage import lineage_as_json, plain  # noqa: PLC0415 - see cli/__init__.py

    record = model.record
    return {
        "ref": record.name,
        "model_id": model.model_id,
        "time": utc_time(record.time),
        "time_ns": record.time,
        "writer": record.writer,
        "base": record.base.hex() if record.base else None,
        "metadata": plain(record.metadata),
        "bytes_total": model.size,
        "bytes_stored": model.bytes_stored,
        "chunks": model.chunks,
        "encodings": [_share_as_json(share) for share in model.encodings],
        "files": [
            {
                "path": file.path,
                "executable": file.executable,
                "file_id": file.file_id,
                "bytes_total": file.size,
                "bytes_stored": file.bytes_stored,
                "chunks": file.chunks,
                "encodings": [_share_as_json(share) for share in file.encodings],
                "tensors": [
                    {"name": s.name, "dtype": s.dtype, "shape": list(s.shape), "begin": s.begin, "end": s.end}
                    for s in file.tensors
                ],
            }
            for file in model.files
        ],
        "empty_directories": list(model.empty_directories),
        **lineage_as_json(about),
    }


def _share_as_json(share: "EncodingShare") -> dict[str, Any]:
    return {
        "encoding": share.encoding,
        "chunks": share.chunks,
        "bytes_plain": share.bytes_plain,
        "bytes_stored": share.bytes_stored,
    }


def _print(out: "Session", model: "ModelDescription", *, tensors: bool) -> None:
    record = model.record
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in model.dtypes.items())
    out.table(
        ("ref", record.name),
        [
            ("model", model.model_id),
            ("written", f"{local_time(record.time)} on {record.writer}"),
            ("base", record.base.hex() if record.base else "-"),
            *((f"metadata {key}", _text(value)) for key, value in sorted(record.metadata.items())),
            ("files", str(len(model.files))),
            ("tensors", dtypes or "-"),
            ("as files", human_bytes(model.size)),
            (
                "stored",
                f"{human_bytes(model.bytes_stored)} ({human_percent(model.bytes_stored, model.size)})",
            ),
        ],
    )
    out.table(
        ("file", ">size", ">stored", ">tensors", ">chunks", "encodings"),
        (_file_row(file) for file in model.files),
        label="file",
    )
    out.table(
        ("encoding", ">chunks", ">plain", ">stored", ">share"),
        (
            (
                share.encoding,
                str(share.chunks),
                human_bytes(share.bytes_plain),
                human_bytes(share.bytes_stored),
                human_percent(share.bytes_stored, share.bytes_plain),
            )
            for share in model.encodings
        ),
        label="encoding",
    )
    if tensors:
        out.table(
            ("tensor", "type", "shape", ">size", "file"),
            (
                (
                    span.name,
                    span.dtype,
                    "x".join(map(str, span.shape)) or "scalar",
                    human_bytes(span.end - span.begin),
                    file.path,
                )
                for file in model.files
                for span in file.tensors
            ),
            label="tensor",
        )


def _print_lineage(out: "Session", about: "Lineage") -> None:
    from casstore.cli.support.lineage import link_cells, metrics_text, node_cells  # noqa: PLC0415 - see cli/__init__.py

    for kind, nodes in (("ancestor", about.ancestors), ("descendant", about.descendants)):
        if nodes:
            out.table((kind, "model", "time"), (node_cells(node) for node in nodes), label=kind)
    if about.links:
        out.table(
            ("run", "pass", "input", "status", ">took", "output"),
            (
                (
                    f"runs/{link.run}" if link.run else "(base of an add)",
                    *link_cells(link),
                    short_id(link.output) or "-",
                )
                for link in about.links
            ),
            label="run",
        )
    if about.evaluations:
        out.table(
            ("evaluation", "model", "metrics"),
            (
                (f"evaluations/{item.name}", short_id(item.model) or "-", metrics_text(item.result) or "-")
                for item in about.evaluations
            ),
            label="evaluation",
        )


def _file_row(file: "FileDescription") -> tuple[str, ...]:
    return (
        file.path,
        human_bytes(file.size),
        human_bytes(file.bytes_stored),
        str(len(file.tensors)),
        str(file.chunks),
        ", ".join(f"{share.chunks} {share.encoding}" for share in file.encodings) or "-",
    )


def _text(value: Any) -> str:
    from casstore.cli.support.lineage import plain  # noqa: PLC0415 - see cli/__init__.py

    return value if isinstance(value, str) else json.dumps(plain(value))
