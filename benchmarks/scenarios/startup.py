"""How long a user waits before anything happens: the import, beyond numpy's, and the command's help."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import REPOSITORY, BenchmarkError, Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Harness, Measurement, Sample

MILLISECONDS = Metric("time", "ms", "lower")
_IMPORT = """
import time, numpy
start = time.perf_counter()
import casstore
print(time.perf_counter() - start)
"""
_NUMPY = """
import time
start = time.perf_counter()
import numpy
print(time.perf_counter() - start)
"""


def run(harness: Harness) -> list[Measurement]:
    trials = {
        "import numpy": lambda: _printed(harness, _NUMPY),
        "import casstore, beyond numpy": lambda: _printed(harness, _IMPORT),
        "python -c pass": lambda: _whole(harness, [sys.executable, "-c", "pass"]),
        "casstore --help": lambda: _whole(harness, [*_command(), "--help"]),
    }
    return harness.interleave("startup", "fresh process", trials, repeats=max(harness.options.repeats, 7))


def _printed(harness: Harness, program: str) -> Sample:
    done = _run(harness, [sys.executable, "-c", program])
    return {MILLISECONDS: 1000 * float(done)}


def _whole(harness: Harness, command: Sequence[str]) -> Sample:
    started = time.perf_counter()
    _run(harness, command)
    return {MILLISECONDS: 1000 * (time.perf_counter() - started)}


def _command() -> list[str]:
    """Return the installed command, that of this environment first."""
    beside = Path(sys.executable).parent / "casstore"
    found = str(beside) if beside.exists() else shutil.which("casstore")
    return [found] if found else [sys.executable, "-m", "casstore"]


def _run(harness: Harness, command: Sequence[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env=harness.environment, check=False
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout
