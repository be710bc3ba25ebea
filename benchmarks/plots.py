"""Draws what benchmarks.figures takes from a result, as PNG and SVG. Measures nothing.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; peers differ by their marker, too, and lines
are labelled where they end.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from benchmarks import figures
from benchmarks.report import OURS, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.figures import Bars, Line, Panel, Plot

    Sheet = Callable[[float, float], Any]
    """Makes an empty figure of a width and height in inches."""

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, BLACK, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#000000", "#7F7F7F"
PEERS = {
    OURS: (BLUE, "o"),
    f"{OURS}-cli": (SKY, "o"),
    "hf-xet": (RED, "s"),
    "restic": (GREEN, "^"),
    "restic-batch": (GREEN, "<"),
    "borg": (PURPLE, "D"),
    "borg-batch": (PURPLE, "d"),
    "zstd-files": (ORANGE, "v"),
    "zipnn": (BLACK, "P"),
    "reminis": (BLACK, "X"),
    "copy": (GREY, "*"),
    "whole-files": (RED, "s"),
    "rclone": (ORANGE, "v"),
    "aws-s3-sync": (PURPLE, "D"),
}
_OTHERS = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (BLACK, "P"), (GREY, "X"))
_PARTS = {
    figures.LEFT: (BLUE, ""),
    figures.STORED: (GREY, ""),
    "saved by dedup": ("#DDDDDD", ""),
    "saved by zstd": (GREEN, "...."),
    "saved by planes": (SKY, "////"),
    "saved by delta": (ORANGE, "\\\\\\\\"),
}
_STYLE = {
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.titlesize": 12,
    "font.size": 9,
    "grid.color": "#E5E5E5",
    "hatch.color": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "casstore",
}
_WIDE_RANGE = 50
"""A linear axis from zero would hide what is this many times smaller than the largest value."""

_LABEL_GAP = 0.075
"""The least distance between the labels of two lines, in heights of their axes."""


class PlotsMissing(Exception):
    """Plots cannot be drawn here; the text says what to install."""


def draw(result: dict[str, Any], folder: Path) -> list[tuple[str, Path]]:
    """Draw every plot that the result has figures for; return titles and PNG files, beside which an SVG lies.

    Raises PlotsMissing without matplotlib.
    """
    try:
        matplotlib, figure_module, canvas_module = map(
            importlib.import_module,
            ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"),
        )
    except ImportError as error:
        raise PlotsMissing("Plots need matplotlib, which is not here: pip install '.[bench]'") from error

    def sheet(width: float, height: float) -> Any:
        figure = figure_module.Figure(figsize=(width, height), layout="constrained")
        canvas_module.FigureCanvasAgg(figure)
        return figure

    saved = []
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        for plot, figure in _drawn(result, sheet):
            figure.suptitle(plot.title, x=0.01, ha="left", weight="bold")
            _name_missing(figure, figures.missing(result) if plot.compares_peers else [])
            figure.savefig(folder / f"{plot.name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{plot.name}.png", dpi=150)
            saved.append((plot.title, folder / f"{plot.name}.png"))
    return saved


def _drawn(result: dict[str, Any], sheet: Sheet) -> Iterator[tuple[Plot | Bars, Any]]:
    for plot in figures.throughput(result):
        yield plot, _draw_throughput(plot, sheet)
    for bars in figures.stored(result):
        yield bars, _draw_stored(bars, sheet)
    for plot in figures.growth(result):
        yield plot, _draw_lines(plot, sheet, "chunks in the store")
    for plot in figures.memory(result):
        yield plot, _draw_lines(plot, sheet, "file size (GB)")
    for plot in figures.sharing(result):
        yield plot, _draw_lines(plot, sheet, "new bytes, encoded (MB)", logarithmic=False)
    for bars in figures.sent(result):
        yield bars, _draw_stored(bars, sheet)


def _draw_throughput(plot: Plot, sheet: Sheet) -> Any:
    figure = sheet(4.8 * len(plot.panels), 4.4)
    for axes, panel in zip(_axes(figure, len(plot.panels)), plot.panels, strict=True):
        values = [value for line in panel.lines for value in (line.points[0].low, line.points[0].high)]
        axes.set_xlim(0, 1.15 * max(1, *(line.points[0].x for line in panel.lines)))
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.6, max(values) * 1.6)
        _plain_ticks(axes.yaxis)
        axes.grid(visible=True)
        axes.set(title=panel.title, xlabel="stored share of plain bytes (left is better)")
        axes.set_ylabel(f"plain {panel.unit}, logarithmic (up is better)")
        for at, line in enumerate(panel.lines):
            colour, marker = _look(line.label, at)
            (point,) = line.points
            axes.errorbar(
                point.x,
                point.y,
                yerr=[[point.y - point.low], [point.high - point.y]],
                color=colour,
                marker=marker,
                markersize=9 if line.label == OURS else 7,
                linestyle="",
                elinewidth=1,
            )
        _label_points(figure, axes, panel.lines)
    return figure


def _label_points(figure: Any, axes: Any, lines: Sequence[Line]) -> None:
    """Write each label beside its point, where it covers neither a point nor another label."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    spots = [axes.transData.transform((line.points[0].x, line.points[0].y)) for line in lines]
    taken: list[Any] = []
    for at, line in enumerate(lines):
        text = None
        for dx, dy in ((9, -3), (9, 8), (9, -14), (-9, -3), (-9, 8), (-9, -14), (9, 19), (9, -25)):
            if text is not None:
                text.remove()
            text = axes.annotate(
                line.label,
                (line.points[0].x, line.points[0].y),
                (dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right",
                color=_look(line.label, at)[0],
                weight="bold" if line.label == OURS else "normal",
            )
            box = text.get_window_extent(renderer)
            free = not any(box.overlaps(other) for other in taken)
            padded = box.padded(8)
            if free and not any(padded.contains(*spot) for k, spot in enumerate(spots) if k != at):
                break
        assert text is not None
        taken.append(text.get_window_extent(renderer))


def _draw_stored(plot: Bars, sheet: Sheet) -> Any:
    figure = sheet(9, 1.6 + 0.42 * len(plot.bars))
    (axes,) = _axes(figure, 1)
    largest = max([plot.plain or 0, *(sum(size for _, size in bar.parts) for bar in plot.bars)])
    unit, name = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    labelled = set()
    for at, bar in enumerate(plot.bars):
        start = 0.0
        for part, size in bar.parts:
            colour, hatch = _PARTS.get(part, (PURPLE, "xxxx"))
            axes.barh(
                at,
                size / unit,
                left=start / unit,
                height=0.7,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.8,
                label=None
                if part in labelled or len(bar.parts) == 1
                else _part_label(part, size, unit, name),
            )
            labelled.add(part)
            start += size
    axes.set_yticks(range(len(plot.bars)), [_bar_label(bar, plot.plain, unit, name) for bar in plot.bars])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.03 * largest / unit)
    axes.set_xlabel(f"{name} (left is better)")
    axes.xaxis.grid(visible=True)
    if plot.plain:
        axes.axvline(plot.plain / unit, color=BLACK, linewidth=1, linestyle=":")
        axes.set_title(f"dotted: all plain bytes, {plot.plain / unit:.2f} {name}", loc="right", fontsize=9)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(
            loc="outside lower center", ncols=3, frameon=False, title=f"{OURS}'s bar, from the left"
        )
    return figure


def _part_label(part: str, size: float, unit: float, name: str) -> str:
    return f"{part}: {size / unit:.2f} {name}"


def _bar_label(bar: figures.Bar, plain: float | None, unit: float, name: str) -> str:
    share = f", {100 * bar.stored / plain:.0f}%" if plain else ""
    return f"{bar.subject}  {bar.stored / unit:.2f} {name}{share}"


def _draw_lines(plot: Plot, sheet: Sheet, x_label: str, *, logarithmic: bool = True) -> Any:
    columns = min(len(plot.panels), 2)
    rows = -(-len(plot.panels) // columns)
    figure = sheet(5.4 * columns, 3.4 * rows + 0.3)
    for axes, panel in zip(_axes(figure, len(plot.panels), rows, columns), plot.panels, strict=True):
        points = [point for line in panel.lines for point in line.points]
        low, high = min(point.x for point in points), max(point.x for point in points)
        if logarithmic:
            axes.set_xscale("log")
            axes.set_xlim(low / 1.4, high * 1.4)
            axes.set_xticks(sorted({point.x for point in points}), minor=False)
            axes.set_xticks([], minor=True)
            axes.set_xticklabels([_short(x) for x in sorted({point.x for point in points})])
        else:
            axes.set_xlim(0, 1.05 * high)
        _scale(axes, panel)
        axes.yaxis.grid(visible=True)
        axes.set(title=panel.title, xlabel=f"{x_label}, logarithmic" if logarithmic else x_label)
        for at, line in enumerate(panel.lines):
            colour, marker = _look(line.label, at)
            axes.errorbar(
                [point.x for point in line.points],
                [point.y for point in line.points],
                yerr=[
                    [point.y - point.low for point in line.points],
                    [point.high - point.y for point in line.points],
                ],
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=2 if line.label == OURS else 1.4,
                elinewidth=0.8,
            )
        _label_ends(figure, axes, panel.lines)
    return figure


def _scale(axes: Any, panel: Panel) -> None:
    """Let the y axis begin at zero, unless that would hide the small values."""
    values = [value for line in panel.lines for point in line.points for value in (point.low, point.high)]
    low, high = min(values), max(values)
    if low > 0 and high / low > _WIDE_RANGE:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * 1.5)
        _plain_ticks(axes.yaxis)
        axes.set_ylabel(f"{panel.unit}, logarithmic")
    else:
        axes.set_ylim(0, 1.12 * high or 1)
        axes.set_ylabel(panel.unit)


def _label_ends(figure: Any, axes: Any, lines: Sequence[Line]) -> None:
    """Write each line's label at its right end, moved up or down where two would meet."""
    figure.draw_without_rendering()
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((line.points[-1].x, line.points[-1].y))[1] for line in lines]
    for at, height in enumerate(figures.spread(ends, _LABEL_GAP)):
        axes.annotate(
            f"{lines[at].label} {number(lines[at].points[-1].y)}",
            (1.01, height),
            xycoords="axes fraction",
            va="center",
            color=_look(lines[at].label, at)[0],
            weight="bold" if lines[at].label == OURS else "normal",
        )


def _axes(figure: Any, count: int, rows: int = 1, columns: int | None = None) -> list[Any]:
    return [figure.add_subplot(rows, columns or count, at + 1) for at in range(count)]


def _look(label: str, at: int) -> tuple[str, str]:
    """Return colour and marker: a peer's own, or by position for lines that are not about peers."""
    return PEERS.get(label, _OTHERS[at % len(_OTHERS)])


def _plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis at 1, 2 and 5, without exponents."""
    ticker = importlib.import_module("matplotlib.ticker")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(ticker.NullLocator())


def _short(value: float) -> str:
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _name_missing(figure: Any, missing: Sequence[str]) -> None:
    if missing:
        figure.text(
            0.99, 0.99, f"missing: {', '.join(missing)}", ha="right", va="top", fontsize=8, color=GREY
        )
