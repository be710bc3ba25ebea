"""The command: `run` measures, `stages` says where casstore's time goes, `scale` what upkeep takes, `report` shows, `compare` tells what changed."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import compare, plots, report
from benchmarks.harness import BenchmarkError, Harness, Options
from benchmarks.network.carriers import CARRIERS
from benchmarks.network.link import Shape
from benchmarks.network.servers import KINDS as REMOTES
from benchmarks.peers import PEERS
from benchmarks.scenarios import SCENARIOS, scale, stages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.harness import Measurement

SMOKE_SCENARIOS = tuple(name for name in SCENARIOS if name != "startup")
"""What CI runs: all that says something about the code in seconds."""

SMOKE = Options(
    peers=("casstore", "copy"),
    corpora=("synthetic:4",),
    cuts_corpora=("synthetic:4",),
    orders=1,
    repeats=1,
    warmups=0,
    memory_gb=(0.008,),
    growth_chunks=(5_000,),
    scale_chunks=2_000,
    scale_packs=20,
    scale_refs=10,
    refs_counts=(20,),
    writers=2,
    remotes=("folder", "s3"),
    carriers=("casstore", "whole-files"),
    link=Shape(bits_per_s=1e9, round_trip_s=0.004),
    many_models=5,
    serve_corpus="synthetic:4",
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = given.call
    try:
        return command(given)
    except report.NotAResult as error:
        print(f"Failed: {error}", file=sys.stderr)
        return 2
    except (BenchmarkError, plots.PlotsMissing, ValueError, OSError) as error:
        print(f"Failed: {error}", file=sys.stderr)
        return 1


def _run(given: argparse.Namespace) -> int:
    chosen = given.scenario or (SMOKE_SCENARIOS if given.smoke else tuple(SCENARIOS))
    return _measure(given, {name: SCENARIOS[name] for name in chosen})


def _stages(given: argparse.Namespace) -> int:
    return _measure(given, {"stages": stages.run})


def _scale(given: argparse.Namespace) -> int:
    return _measure(given, {"scale": scale.run})


def _measure(
    given: argparse.Namespace, scenarios: Mapping[str, Callable[[Harness], list[Measurement]]]
) -> int:
    """Run scenarios; keep the result after each, so that a failure loses only what it could not measure."""
    options = replace(SMOKE if given.smoke else Options(), **_chosen(given))
    harness = Harness(options)
    try:
        measurements: list[Measurement] = []
        for measure in scenarios.values():
            measurements += measure(harness)
            result = harness.result(measurements)
            if given.out is not None:
                given.out.write_text(json.dumps(result, indent=1) + "\n")
        print(report.markdown(result))
    finally:
        harness.close()
    return 0


def _report(given: argparse.Namespace) -> int:
    result = report.read_result(given.file)
    images = []
    if given.plots is not None:
        page = Path.cwd() if given.into is None else given.into.resolve().parent
        for title, path in plots.draw(result, given.plots):
            images.append((title, os.path.relpath(path.resolve(), page)))
            print(f"{path} (and .svg)", file=sys.stderr)
        if not images:
            print("There is nothing to plot in this result.", file=sys.stderr)
    text = report.markdown(result, images=images)
    if given.into is None:
        print(text)
    else:
        given.into.write_text(report.placed(text, given.into.read_text()))
    return 0


def _compare(given: argparse.Namespace) -> int:
    first, second = (report.read_result(path) for path in (given.first, given.second))
    found = compare.compare(first, second, threshold=given.threshold)
    print(json.dumps(found.as_json(), indent=1) if given.json else compare.markdown(found))
    return 1 if found.regressions else 0


def _chosen(given: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given on the command line."""
    return {
        name: value
        for name in Options.__dataclass_fields__
        if (value := getattr(given, name, None)) is not None
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    defaults = Options()

    run = commands.add_parser("run", help="measure and print a report")
    run.set_defaults(call=_run)
    run.add_argument("scenario", nargs="*", choices=[[], *SCENARIOS], help=f"{', '.join(SCENARIOS)} (all)")
    for option, known, what in (
        ("--peers", tuple(PEERS), "peer"),
        ("--remotes", REMOTES, "remote of the sync scenario"),
        ("--carriers", tuple(CARRIERS), "carrier of the sync scenario"),
    ):
        run.add_argument(
            option, type=_some_of(known, what), help=f"{what}s, comma-separated: {','.join(known)} (all)"
        )
    run.add_argument(
        "--link", type=_shape, metavar="MBIT,MS", help="rate and round trip of the sync scenario (200,50)"
    )
    run.add_argument("--page-cache", choices=["warm", "cold"], help="inputs in the page cache or not (warm)")
    for option, field, kind, help_text in (
        ("--memory-gb", "memory_gb", float, "sizes of the memory scenario's files"),
        ("--growth-chunks", "growth_chunks", int, "chunks in the stores of the growth scenario"),
        ("--refs", "refs_counts", int, "refs in the stores of the refs scenario"),
    ):
        usual = ",".join(f"{value:g}" if kind is float else f"{value}" for value in getattr(defaults, field))
        run.add_argument(option, dest=field, type=_numbers(kind), help=f"{help_text} ({usual})")
    run.add_argument(
        "--writers", type=_positive, help=f"processes of the concurrent scenario ({defaults.writers})"
    )
    run.add_argument(
        "--serve-corpus", metavar="NAME", help=f"corpus of the serve scenario ({defaults.serve_corpus})"
    )
    run.add_argument(
        "--orders", type=_count, help=f"shuffled orders of the deltas scenario ({defaults.orders})"
    )
    _add_measuring(run, defaults)

    stage = commands.add_parser("stages", help="measure each stage of casstore on its own, on one core")
    stage.set_defaults(call=_stages, peers=())
    _add_measuring(stage, defaults)

    large = commands.add_parser("scale", help="measure gc, du, stats and ls on a large synthetic store")
    large.set_defaults(call=_scale, peers=())
    for what in ("chunks", "packs", "refs"):
        usual = getattr(defaults, f"scale_{what}")
        large.add_argument(
            f"--{what}", dest=f"scale_{what}", type=_positive, help=f"{what} in the store ({usual})"
        )
    _add_measuring(large, defaults)

    show = commands.add_parser("report", help="print a result as Markdown")
    show.set_defaults(call=_report)
    show.add_argument("file", type=Path)
    show.add_argument("--into", type=Path, help="replace what stands between the result marks of this page")
    show.add_argument("--plots", type=Path, metavar="FOLDER", help="draw plots there, as PNG and SVG")

    against = commands.add_parser(
        "compare",
        help="compare two results",
        description=compare.__doc__,
        epilog="Exit code: 0, or 1 when something became worse, or 2 when a file is no result.",
    )
    against.set_defaults(call=_compare)
    against.add_argument("first", type=Path, help="the result to compare with")
    against.add_argument("second", type=Path, help="the newer result")
    against.add_argument(
        "--threshold", type=_factor, default=compare.THRESHOLD, help="how many times worse counts (1.10)"
    )
    against.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_measuring(parser: argparse.ArgumentParser, defaults: Options) -> None:
    """Add the options that every command that measures has."""
    corpora, repeats, warmups = ",".join(defaults.corpora), defaults.repeats, defaults.warmups
    parser.add_argument("--corpus", dest="corpora", type=_names, help=f"comma-separated ({corpora})")
    parser.add_argument("--repeats", type=_positive, help=f"timed runs of each ({repeats})")
    parser.add_argument("--warmups", type=_count, help=f"untimed runs of each before ({warmups})")
    parser.add_argument("--cache", type=Path, help="where corpora are kept (the user's cache directory)")
    parser.add_argument(
        "--work", type=Path, help="where stores are written, the disk to measure (in the cache)"
    )
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument(
        "--smoke", action="store_true", help="everything, tiny, in seconds: does it still work?"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(kind: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    def numbers(text: str) -> tuple[float, ...]:
        values = tuple(map(kind, _names(text)))
        if not all(0 < value < math.inf for value in values):
            raise argparse.ArgumentTypeError(f"{text} is not all above 0")
        return values

    return numbers


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return int(text)


def _factor(text: str) -> float:
    value = float(text)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no factor of 1 and more")
    return value


def _shape(text: str) -> Shape:
    megabits, milliseconds = _numbers(float)(text)
    return Shape(megabits * 1e6, milliseconds / 1e3)


def _some_of(known: Sequence[str], what: str) -> Callable[[str], tuple[str, ...]]:
    def chosen(text: str) -> tuple[str, ...]:
        unknown = set(_names(text)) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(
                f"no {what} {', '.join(sorted(unknown))}; there are {', '.join(known)}"
            )
        return _names(text)

    return chosen


if __name__ == "__main__":
    sys.exit(main())
