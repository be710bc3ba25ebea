"""casstore through its command."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.base import Receipt, import_peer, tree_bytes
from benchmarks.peers.programs import run_program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.base import Model


class CasstoreCli:
    """One `casstore add` and one `casstore get` per model, each in a process of its own."""

    name = "casstore-cli"
    setting = "durability full, one process per model"

    def __init__(self) -> None:
        import_peer("casstore", install="pip install .")
        beside = Path(sys.executable).parent / "casstore"
        found = str(beside) if beside.exists() else shutil.which("casstore")
        self._command = [found] if found else [sys.executable, "-m", "casstore"]

    def version(self) -> str:
        """What `casstore --version` says, the number alone."""
        return run_program([*self._command, "--version"]).split()[1]

    def prepare(self, store: Path) -> None:
        """`casstore init`."""
        self._run(store, "init")

    def add(self, store: Path, models: Sequence[Model], *, reread: bool) -> Receipt:
        """`casstore add --ref`, with its base, and `--no-stat-cache` if files must be read again."""
        for model in models:
            options = ["--ref", f"models/{model.name}"]
            if model.base is not None:
                options += ["--base", f"models/{model.base}"]
            if reread:
                options.append("--no-stat-cache")
            self._run(store, "add", *options, model.folder)
        return {"models": [model.name for model in models]}

    def restore(self, store: Path, receipt: Receipt, dest: Path) -> None:
        """`casstore get`."""
        for name in receipt["models"]:
            self._run(store, "get", f"models/{name}", dest / name)

    def remove(self, store: Path, receipt: Receipt, models: Sequence[int]) -> None:
        """`casstore rm`, one for each."""
        for at in models:
            self._run(store, "rm", f"models/{receipt['models'][at]}")

    def collect(self, store: Path) -> None:
        """`casstore gc`."""
        self._run(store, "gc")

    def stored_bytes(self, store: Path) -> int:
        """Everything in the store: packs, index, refs."""
        return tree_bytes(store)

    def _run(self, store: Path, *arguments: str | Path) -> str:
        return run_program([*self._command, "--quiet", "--store", store, *arguments])
