"""`casstore diff`: what differs between two models, tensor by tensor."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from casstore.cli.support.command import Command
from casstore.cli.support.diff_plot import draw_diff, require_matplotlib
from casstore.cli.support.text import human_bytes, short_id
from casstore.machine.local_names import tree_name
from casstore.machine.user_folders import expand_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casstore import FileDiff, ModelDiff, TensorDiff, TensorSide
    from casstore.cli.support.session import Session


@click.command(cls=Command)
@click.argument(
    "a", type=tree_name, metavar="A", help="A ref, a model id, or the first 4 or more digits of one."
)
@click.argument("b", type=tree_name, metavar="B", help="The model that A is compared with.")
@click.option("--all", "everything", is_flag=True, help="Also list what is the same.")
@click.option(
    "--plot", metavar="PNG", help="Draw the change by layer into this file; its suffix says the format."
)
def run(out: Session, *, a: str, b: str, everything: bool, plot: str | None) -> None:
    """Compare two models tensor by tensor.

    Each tensor is the same, changed (by how much: the largest and the mean absolute difference), cast, transposed, quantised,
    reshaped, added or removed. Tensors are matched by name across file formats, then by their bytes and values.
    """
    if plot is not None:
        # What is missing is said before the work.
        require_matplotlib()
    with out.open(read_only=True) as store, out.progress("comparing") as progress:
        diff = store.diff(a, b, callback=progress)
    if plot is not None:
        draw_diff(diff, expand_home(plot))
        out.note(f"drew {plot}.")
    tensors = [tensor for tensor in diff.tensors if everything or tensor.change != "same" or tensor.renamed]
    files = [file for file in diff.files if everything or file.change != "same"]
    if out.as_json:
        out.print_json(_as_json(diff))
    elif out.quiet:
        for tensor in tensors:
            out.print_line(tensor.name)
    else:
        out.table(("model", diff.a, diff.b), _models(diff), label="model")
        out.table(
            ("change", ">tensors"),
            [(change, str(count)) for change, count in diff.counts.items()],
            label="change",
        )
        if tensors:
            out.table(
                ("tensor", "change", ">differing", ">max", ">mean", "A", "B", "was"),
                map(_tensor_cells, tensors),
                label="tensor",
            )
        if files:
            out.table(("file", "change", ">in A", ">in B"), map(_file_cells, files), label="file")


def _as_json(diff: ModelDiff) -> dict[str, Any]:
    return {
        **asdict(diff),
        "counts": diff.counts,
        "tensors": [
            {"name": tensor.name, **asdict(tensor), "renamed": tensor.renamed} for tensor in diff.tensors
        ],
    }


def _models(diff: ModelDiff) -> Iterator[tuple[str, str, str]]:
    yield "id", short_id(diff.model_id_a), short_id(diff.model_id_b)
    counts = [sum(side is not None for side in sides) for sides in (_of_a(diff), _of_b(diff))]
    yield "tensors", str(counts[0]), str(counts[1])
    yield "in both", human_bytes(diff.shared_bytes), human_bytes(diff.shared_bytes)


def _of_a(diff: ModelDiff) -> Iterator[TensorSide | None]:
    return (tensor.a for tensor in diff.tensors)


def _of_b(diff: ModelDiff) -> Iterator[TensorSide | None]:
    return (tensor.b for tensor in diff.tensors)


def _tensor_cells(tensor: TensorDiff) -> tuple[str, ...]:
    return (
        tensor.name,
        _change(tensor),
        "-" if tensor.differing is None else str(tensor.differing),
        _figure(tensor.max_abs),
        _figure(tensor.mean_abs),
        _kind(tensor.a),
        _kind(tensor.b),
        tensor.a.name if tensor.a is not None and tensor.renamed else "-",
    )


def _change(tensor: TensorDiff) -> str:
    text: str = tensor.change
    if tensor.change == "transposed" and tensor.a and tensor.b and tensor.a.dtype != tensor.b.dtype:
        text += " and cast"
    if tensor.unexplained:
        text += f", but for {tensor.unexplained}"
    if tensor.not_finite:
        text += f", {tensor.not_finite} not finite"
    return text


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _kind(side: TensorSide | None) -> str:
    return "-" if side is None else f"{side.dtype} {'x'.join(map(str, side.shape)) or 'scalar'}"


def _file_cells(file: FileDiff) -> tuple[str, ...]:
    sizes = ("-" if size is None else human_bytes(size) for size in (file.size_a, file.size_b))
    return file.path, file.change, *sizes
