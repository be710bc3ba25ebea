"""`casstore show`: what a model consists of, where it comes from; what a run or an evaluation was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from casstore.cli.support.command import Command
from casstore.cli.support.lineage import (
    lineage_as_json,
    link_cells,
    metrics_text,
    node_cells,
    plain,
    value_text,
)
from casstore.cli.support.records import show_evaluation, show_run
from casstore.cli.support.text import human_bytes, human_percent, local_time, short_id, utc_time
from casstore.machine.local_names import tree_name
from casstore.ops.describe import describe
from casstore.ops.lineage import lineage

if TYPE_CHECKING:
    from casstore.cli.support.session import Session
    from casstore.ops.delta_bases import DeltaShare
    from casstore.ops.describe import FileDescription, ModelDescription
    from casstore.ops.lineage import Lineage


@click.command(cls=Command)
@click.argument(
    "ref_or_id",
    type=tree_name,
    metavar="REF_OR_ID",
    help="A ref (of a model, a run or an evaluation), a model id, or the first 4 or more digits of one.",
)
@click.option("--tensors", is_flag=True, help="List every tensor.")
def run(out: Session, *, ref_or_id: str, tensors: bool) -> None:
    """Show a model, a run or an evaluation.

    Of a model: its files, tensors, chunks, encodings and lineage.
    """
    with out.open(read_only=True) as store:
        if ref_or_id.startswith("runs/"):
            show_run(out, store, ref_or_id)
            return
        if ref_or_id.startswith("evaluations/"):
            show_evaluation(out, store, ref_or_id)
            return
        model = describe(store, ref_or_id)
        about = lineage(store, model.record.name)
    if out.as_json:
        out.print_json(_as_json(model, about))
    else:
        _print(out, model, tensors=tensors)
        _print_lineage(out, about)


def _as_json(model: ModelDescription, about: Lineage) -> dict[str, Any]:
    record = model.record
    return {
        "ref": record.name,
        "model_id": model.model_id,
        "time": utc_time(record.time),
        "time_ns": record.time,
        "writer": record.writer,
        "base": record.base or None,
        "metadata": plain(record.metadata),
        "bytes_total": model.size,
        "bytes_stored": model.bytes_stored,
        "chunks": model.chunks,
        "encodings": model.encodings,
        "deltas": model.deltas,
        "files": [
            {
                "path": file.path,
                "executable": file.executable,
                "file_id": file.file_id,
                "bytes_total": file.size,
                "bytes_stored": file.bytes_stored,
                "chunks": file.chunks,
                "encodings": file.encodings,
                "tensors": [
                    {"name": s.name, "dtype": s.dtype, "shape": s.shape, "begin": s.begin, "end": s.end}
                    for s in file.tensors
                ],
            }
            for file in model.files
        ],
        "empty_directories": model.empty_directories,
        **lineage_as_json(about),
    }


def _print(out: Session, model: ModelDescription, *, tensors: bool) -> None:
    record = model.record
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in model.dtypes.items())
    out.table(
        ("ref", record.name),
        [
            ("model", model.model_id),
            ("written", f"{local_time(record.time)} on {record.writer}"),
            ("base", record.base.hex() if record.base else "-"),
            *((f"metadata {key}", value_text(value)) for key, value in sorted(record.metadata.items())),
            ("files", str(len(model.files))),
            ("tensors", dtypes or "-"),
            ("as files", human_bytes(model.size)),
            (
                "stored",
                f"{human_bytes(model.bytes_stored)} ({human_percent(model.bytes_stored, model.size)})",
            ),
            *([("deltas", _deltas_text(model.deltas))] if model.deltas is not None else []),
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


def _deltas_text(deltas: DeltaShare) -> str:
    """Say what deltas take and save, and against which models."""
    names = [base.ref for base in deltas.bases] + (["chunks of other models"] if deltas.unknown else [])
    return (
        f"{human_bytes(deltas.bytes_plain)} in {human_bytes(deltas.bytes_stored)}, which saves about "
        f"{human_bytes(deltas.bytes_saved)}; against {', '.join(names)}"
    )


def _print_lineage(out: Session, about: Lineage) -> None:
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


def _file_row(file: FileDescription) -> tuple[str, ...]:
    return (
        file.path,
        human_bytes(file.size),
        human_bytes(file.bytes_stored),
        str(len(file.tensors)),
        str(file.chunks),
        ", ".join(f"{share.chunks} {share.encoding}" for share in file.encodings) or "-",
    )
