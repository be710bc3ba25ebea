"""One revision of a model as the API tells of it: one that the store has, or one that is on its way from another hub."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from casstore.integrations.hub.endpoint import values
from casstore.integrations.hub.endpoint.card import CARD, LONGEST, ModelCard, parse_card

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.integrations.hub.context import ServerContext
    from casstore.integrations.hub.repositories import Commit
    from casstore.store.reading.model import Model

__all__ = ["Snapshot", "StoredSnapshot", "read_card"]


class Snapshot(Protocol):
    """What the API needs to know of a revision."""

    @property
    def sha(self) -> str:
        """The commit."""

    @property
    def paths(self) -> Sequence[str]:
        """The files, in the order of their paths."""

    def folders(self) -> dict[str, dict[str, Any]]:
        """Return the values of all folders, by path."""

    def last_commit(self) -> dict[str, Any]:
        """Return the commit as files have it."""

    async def info(self, wanted: set[str]) -> dict[str, Any]:
        """Return what is said of the model; `wanted` names what takes more time to find out."""

    async def files(self, paths: Sequence[str]) -> list[dict[str, Any]]:
        """Return the values of some files, with their hashes."""


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A revision that the store has."""

    context: ServerContext
    commit: Commit
    model: Model

    @property
    def sha(self) -> str:
        """The commit."""
        return self.commit.sha

    @property
    def paths(self) -> Sequence[str]:
        """The files, in the order of their paths."""
        return [entry.path for entry in self.model.tree.files]

    def folders(self) -> dict[str, dict[str, Any]]:
        """Return the values of all folders, by path."""
        entries = self.model.tree.entries
        return values.folder_values(
            [(entry.path, entry.file_id or b"", not entry.is_file) for entry in entries]
        )

    def last_commit(self) -> dict[str, Any]:
        """Return the commit as files have it."""
        return values.last_commit_value(self.commit)

    async def info(self, wanted: set[str]) -> dict[str, Any]:
        """Return what is said of the model."""
        card = await self.context.run(read_card, self.context, self.model)
        value = values.model_value(self.commit, self.paths, card)
        if "safetensors" in wanted:
            value |= await self.context.run(_parameters, self.model)
        if "usedStorage" in wanted:
            value["usedStorage"] = self.model.tree.size
        return value

    async def files(self, paths: Sequence[str]) -> list[dict[str, Any]]:
        """Return the values of some files; hashes that are not known are computed."""
        entries = {entry.path: entry for entry in self.model.tree.files}

        async def value_of(path: str) -> dict[str, Any]:
            entry = entries[path]
            assert entry.file_id is not None
            lfs = self.commit.is_lfs(path, entry.size)
            found = self.context.hashes.known(entry.file_id, entry.size, lfs=lfs)
            if found is None:
                layout = await self.context.run(self.model.layout, path)
                found = await self.context.hashes.of(layout, lfs=lfs, name=f"{self.commit.repo}/{path}")
            return values.file_value(path, entry.size, found, lfs=lfs)

        return await asyncio.gather(*(value_of(path) for path in paths))


def read_card(context: ServerContext, model: Model) -> ModelCard:
    """Return the card of a model, an empty one if it has none; reads the store, so call it in a thread."""
    if not any(entry.path == CARD for entry in model.tree.files):
        return ModelCard()
    layout = model.layout(CARD)
    end = min(layout.size, LONGEST)
    return parse_card(bytes(context.store.read_part(layout, 0, end, name=CARD)) if end else b"")


def _parameters(model: Model) -> dict[str, Any]:
    """Return how many elements of each type a model has in safetensors, as the Hub counts them."""
    counts: dict[str, int] = {}
    positions = [at for at, entry in enumerate(model.tree.files) if entry.path.endswith(".safetensors")]
    for layout in model.layouts_at(positions):
        for span in layout.spans:
            elements = 1
            for length in span.shape:
                elements *= length
            counts[span.dtype] = counts.get(span.dtype, 0) + elements
    return {"safetensors": {"parameters": counts, "total": sum(counts.values())}} if counts else {}
