"""How long a user waits before anything happens: the import, beyond numpy's, and the command's help."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import REPOSITORY, BenchmarkError, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.harness import Harness, Measurement, Sample

_IMPORTS = ("import casstore", "from casstore import Store")
MILLISECONDS = Metric("time", "ms", "lower")
_TIMED = """
import time{first}
start = time.perf_counter()
{timed}
print(time.perf_counter() - start)
"""


def run(harness: Harness) -> list[Measurement]:
    trials: dict[str, Callable[[], Sample]] = {
        "import numpy": lambda: _printed(harness, _TIMED.format(first="", timed="import numpy")),
        **{f"{timed}, beyond numpy": partial(_import, harness, timed) for timed in _IMPORTS},
        "python -c pass": lambda: _whole(harness, [sys.executable, "-c", "pass"]),
        "casstore --help": lambda: _whole(harness, [*_command(), "--help"]),
    }
    return harness.interleave("startup", "fresh process", trials, repeats=max(harness.options.repeats, 7))


def _import(harness: Harness, timed: str) -> Sample:
    return _printed(harness, _TIMED.format(first=", numpy", timed=timed))


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
