"""casstore through its library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers.base import Receipt, import_peer, tree_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

    from benchmarks.peers.base import Model
    from casstore import Store


class CasstoreLibrary:
    """One `Store.add` per model and one `Store.get` per model, on one open store."""

    name = "casstore"
    setting = "durability full"

    def __init__(self) -> None:
        self._casstore: ModuleType = import_peer("casstore", install="pip install .")
        # The name is what loads the library, which must not happen inside a timed run.
        self._store: type[Store] = self._casstore.Store

    def version(self) -> str:
        """The version of the package that is imported."""
        return str(self._casstore.__version__)

    def prepare(self, store: Path) -> None:
        """`Store(create=True)`."""
        self._store(store, create=True).close()

    def add(self, store: Path, models: Sequence[Model], *, reread: bool) -> Receipt:
        """One `Store.add` each, with its base, on one open store."""
        with self._store(store, durability="full") as opened:
            for model in models:
                base = None if model.base is None else f"models/{model.base}"
                opened.add(model.folder, ref=f"models/{model.name}", base=base, stat_cache=not reread)
        return {"models": [model.name for model in models]}

    def restore(self, store: Path, receipt: Receipt, dest: Path) -> None:
        """One `Store.get` each, on one open store."""
        with self._store(store) as opened:
            for name in receipt["models"]:
                opened.get(f"models/{name}", dest / name)

    def remove(self, store: Path, receipt: Receipt, models: Sequence[int]) -> None:
        """One `Store.rm` each, on one open store."""
        with self._store(store, durability="full") as opened:
            for at in models:
                opened.rm(f"models/{receipt['models'][at]}")

    def collect(self, store: Path) -> None:
        """`Store.gc`."""
        with self._store(store, durability="full") as opened:
            opened.gc()

    def stored_bytes(self, store: Path) -> int:
        """Everything in the store: packs, index, refs."""
        return tree_bytes(store)
