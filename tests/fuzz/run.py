"""Fuzz for as long as you like: `python tests/fuzz/run.py [TARGET…] --seconds 300 [--corpus FOLDER]`.

Uses atheris (libFuzzer, guided by coverage) where it is installed, in a process for each target, and mutation without
guidance elsewhere. An input that breaks a property is written to FOLDER/TARGET.crash-…; inputs that reached something
new stay in FOLDER/TARGET, from where the next run goes on. Exits with 1 if any target failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import re
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[2]))

from fuzz.mutation import mutated

try:
    import atheris
except ImportError:
    atheris = None

MAX_INPUT = 64 << 10
LIBFUZZER_MEMORY = 4096
"""MiB of a process with atheris, which needs more with each input. What one input needs, targets.py bounds."""

LIBFUZZER_PATIENCE = 300
"""Seconds after which an input counts as endless, by the clock: a process of low priority may wait. targets.py bounds
processor time."""


def load():
    """Import the targets; with atheris, all of casstore reports which branches it takes."""
    with nullcontext() if atheris is None else atheris.instrument_imports(include=["casstore"]):
        return importlib.import_module("fuzz.targets")


def fuzz_one(name, seconds, folder):
    """Fuzz one target in this process, which ends with it."""
    targets = load()
    corpus = folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.TARGETS[name][1]):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT}",
        f"-artifact_prefix={folder}/{name}.",
        f"-rss_limit_mb={LIBFUZZER_MEMORY}",
        f"-timeout={LIBFUZZER_PATIENCE}",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: targets.run(name, data))
    atheris.Fuzz()


def fuzz_in_a_process(name, seconds, folder):
    """Return what a run of one target did, as one line, and whether it found nothing."""
    command = [sys.executable, __file__, name, "--seconds", str(seconds), "--corpus", str(folder), "--here"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    inputs = re.search(r"number_of_executed_units:\s+(\d+)", done.stderr)
    peak = re.search(r"peak_rss_mb:\s+(\d+)", done.stderr)
    if done.returncode or inputs is None:
        sys.stderr.write(done.stderr[-6000:])
        return f"{name}: FAILED", False
    return f"{name}: {inputs[1]} inputs in {seconds} s, peak {peak[1]} MiB, no defect", True


def mutate(name, seconds, folder, *, inputs=None):
    """The same by mutation alone; `inputs` is how many there are, whatever time they take."""
    targets = load()
    seeds = targets.TARGETS[name][1]
    number, begun = 0, time.monotonic()
    while time.monotonic() < begun + seconds if inputs is None else number < inputs:
        data = mutated(random.Random(f"{name} {number}"), seeds)
        try:
            targets.run(name, data)
        except Exception:
            (folder / f"{name}.crash-{number}").write_bytes(data)
            raise
        number += 1
    seconds = time.monotonic() - begun
    return (
        f"{name}: {number} inputs in {seconds:.0f} s, peak {targets.peak_memory() >> 20} MiB, no defect",
        True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--inputs", type=int, help="so many for each target, by mutation alone")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"), help="where inputs are kept")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.corpus.mkdir(parents=True, exist_ok=True)
    corpus = chosen.corpus.resolve()
    if chosen.here:
        fuzz_one(chosen.targets[0], chosen.seconds, corpus)
    guided = atheris is not None and chosen.inputs is None
    fuzz = fuzz_in_a_process if guided else partial(mutate, inputs=chosen.inputs)
    well = True
    for name in chosen.targets or load().TARGETS:
        line, ok = fuzz(name, chosen.seconds, corpus)
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        well = well and ok
    return 0 if well else 1


if __name__ == "__main__":
    warnings.simplefilter("error")
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
