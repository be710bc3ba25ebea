"""A revision that is on its way from another hub: what that one says of it is told at once, its files when they are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.integrations.hub.endpoint import values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.integrations.hub.mirror.fetching import RemoteFile
    from casstore.integrations.hub.mirror.mirror import Job, Mirror
    from casstore.integrations.hub.repositories import Commit

__all__ = ["PendingSnapshot"]


@dataclass(frozen=True, slots=True)
class PendingSnapshot:
    """What the other hub said of a commit; `said` is its answer, `remote` are the files in the order of their paths."""

    repo: str
    sha: str
    said: dict[str, Any]
    remote: Sequence[RemoteFile]
    job: Job
    mirror: Mirror

    @property
    def paths(self) -> Sequence[str]:
        """The files, in the order of their paths."""
        return [item.path for item in self.remote]

    def file(self, path: str) -> RemoteFile | None:
        """Return a file, None if there is none."""
        return next((item for item in self.remote if item.path == path), None)

    def folders(self) -> dict[str, dict[str, Any]]:
        """Return the values of all folders, by path."""
        return values.folder_values([(item.path, item.found.encode(), False) for item in self.remote])

    def last_commit(self) -> dict[str, Any]:
        """Return the commit as files have it."""
        return {
            "id": self.sha,
            "title": "",
            "date": self.said.get("lastModified") or "1970-01-01T00:00:00.000Z",
        }

    async def info(self, wanted: set[str]) -> dict[str, Any]:  # noqa: ARG002 - the other hub says what it says
        """Return what the other hub says of the model."""
        return {**self.said, "id": self.repo, "modelId": self.repo, "sha": self.sha}

    async def files(self, paths: Sequence[str]) -> list[dict[str, Any]]:
        """Return the values of some files, without what only that hub can do."""
        found = {item.path: item.value for item in self.remote}
        return [found[path] for path in paths]

    async def arrival(self) -> Commit:
        """Wait a while for the commit, and return it. Raises HubError."""
        return await self.mirror.arrival(self)
