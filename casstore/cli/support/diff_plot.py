"""A plot of what differs between two models, layer by layer; needs matplotlib."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from casstore.errors import ConfigError
from casstore.store.adding.bases.tensors.names import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casstore import ModelDiff, TensorDiff

__all__ = ["Layer", "draw_diff", "layers_of", "require_matplotlib"]

_NUMBER = re.compile(r"(?:^|[./_])(\d+)(?=[./_]|$)")
_LABELS = 40
"""Names of layers that fit below a plot."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The tensors of one layer, or of one module that has no number: the figures are of all their elements together."""

    name: str
    elements: int
    largest: float
    mean: float


def require_matplotlib() -> None:
    """Raise ConfigError, which says what to install, unless matplotlib is here."""
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "--plot needs matplotlib, which is not installed: run `pip install 'casstore[plot]'`."
        )


def layers_of(tensors: Iterable[TensorDiff]) -> list[Layer]:
    """Return the layers of which the differences are known: those with numbers in their order, between others in theirs."""
    groups: dict[str, list[TensorDiff]] = defaultdict(list)
    for tensor in tensors:
        if tensor.mean_abs is not None and tensor.elements:
            groups[_layer_of(tensor.name)].append(tensor)
    layers = [_layer(name, group) for name, group in groups.items()]
    first = min((at for at, layer in enumerate(layers) if _is_number(layer.name)), default=len(layers))
    numbered = sorted((layer for layer in layers if _is_number(layer.name)), key=lambda item: _key(item.name))
    before = layers[:first]
    after = [layer for layer in layers[first:] if not _is_number(layer.name)]
    return [*before, *numbered, *after]


def draw_diff(diff: ModelDiff, path: str) -> None:
    """Draw the change by layer into a file; raises ConfigError if nothing can be drawn, or the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an optional package
    from matplotlib.figure import Figure  # noqa: PLC0415

    layers = layers_of(diff.tensors)
    if not layers:
        raise ConfigError(
            f"No tensors of {diff.a} and {diff.b} can be compared by their values: nothing to draw."
        )
    figure = Figure(figsize=(max(6.0, min(16.0, 2 + 0.3 * len(layers))), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(layers))
    axes.plot(places, [layer.largest for layer in layers], "o-", color="#b3541e", label="largest")
    axes.plot(places, [layer.mean for layer in layers], "s-", color="#1e6fb3", label="mean")
    smallest = min((layer.mean for layer in layers if layer.mean > 0), default=0.0)
    if smallest:
        # What does not differ at all is at 0, where the scale is linear.
        axes.set_yscale("symlog", linthresh=smallest)
    axes.set_ylim(bottom=0)
    step = -(-len(layers) // _LABELS)
    axes.set_xticks(places[::step], [layer.name for layer in layers[::step]], rotation=45, ha="right")
    axes.set_xlabel("layer")
    axes.set_ylabel("absolute difference")
    axes.set_title(f"{diff.a} and {diff.b}")
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        # Invariant 11: what could not be written is an error for whoever asked for it.
        raise ConfigError(f"The plot could not be written to {path}: {error}.") from error


def _layer_of(name: str) -> str:
    plain = plain_name(name)
    found = _NUMBER.search(plain)
    return found[1] if found else plain.partition(".")[0]


def _layer(name: str, tensors: list[TensorDiff]) -> Layer:
    elements = sum(tensor.elements for tensor in tensors)
    total = sum((tensor.mean_abs or 0.0) * tensor.elements for tensor in tensors)
    return Layer(name, elements, max(tensor.max_abs or 0.0 for tensor in tensors), total / elements)


def _is_number(name: str) -> bool:
    return name.isdecimal()


def _key(name: str) -> int:
    return int(name)
