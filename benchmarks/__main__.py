"""The command: `python -m benchmarks run [SCENARIO…]` measures, `python -m benchmarks report FILE` shows."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.harness import BenchmarkError, Harness, Options
from benchmarks.peers import PEERS
from benchmarks.scenarios import SCENARIOS

SMOKE_SCENARIOS = ("add", "add-again", "restore", "memory", "cuts")
SMOKE = Options(
    peers=("casstore", "copy"),
    corpora=("synthetic:4",),
    cuts_corpora=("synthetic:4",),
    repeats=1,
    warmups=0,
    memory_gb=(0.008,),
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = _parser().parse_args(arguments)
    if given.command == "report":
        text = report.markdown(json.loads(given.file.read_text()))
        if given.into is None:
            print(text)
        else:
            given.into.write_text(report.placed(text, given.into.read_text()))
        return 0
    options = replace(SMOKE if given.smoke else Options(), **_chosen(given))
    scenarios = given.scenario or (SMOKE_SCENARIOS if given.smoke else list(SCENARIOS))
    harness = Harness(options)
    try:
        measurements = []
        for name in scenarios:
            measurements += SCENARIOS[name](harness)
            result = harness.result(measurements)
            if given.out is not None:
                given.out.write_text(json.dumps(result, indent=1) + "\n")
        print(report.markdown(result))
    except (BenchmarkError, ValueError) as error:
        print(f"Failed: {error}", file=sys.stderr)
        return 1
    finally:
        harness.close()
    return 0


def _chosen(given: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given on the command line."""
    names = ("peers", "corpora", "repeats", "warmups", "page_cache", "memory_gb", "cache", "work")
    chosen = {name: getattr(given, name) for name in names}
    return {name: value for name, value in chosen.items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure and print a report")
    run.add_argument("scenario", nargs="*", choices=[[], *SCENARIOS], help=f"{', '.join(SCENARIOS)} (all)")
    run.add_argument("--peers", type=_peers, help=f"comma-separated: {','.join(PEERS)} (all)")
    run.add_argument("--corpus", dest="corpora", type=_names, help="comma-separated (minilm-variants)")
    run.add_argument("--repeats", type=int, help="timed runs of each (5)")
    run.add_argument("--warmups", type=int, help="untimed runs of each before (1)")
    run.add_argument("--page-cache", choices=["warm", "cold"], help="inputs in the page cache or not (warm)")
    run.add_argument("--memory-gb", type=_sizes, help="sizes of the memory scenario's files (0.0625,0.5)")
    run.add_argument("--cache", type=Path, help="where corpora are kept (the user's cache directory)")
    run.add_argument("--work", type=Path, help="where stores are written, the disk to measure (in the cache)")
    run.add_argument("--out", type=Path, help="write the result as JSON")
    run.add_argument("--smoke", action="store_true", help="everything, tiny, in seconds: does it still work?")
    show = commands.add_parser("report", help="print a result as Markdown")
    show.add_argument("file", type=Path)
    show.add_argument("--into", type=Path, help="replace what stands between the result marks of this file")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _sizes(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _peers(text: str) -> tuple[str, ...]:
    unknown = set(_names(text)) - set(PEERS)
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no peer {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}"
        )
    return _names(text)


if __name__ == "__main__":
    sys.exit(main())
