"""Web servers that list their directories, through aiohttp. Read-only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore.backend.base import STORE_FILE
from casstore.backend.fsspec.drivers.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from casstore.backend.fsspec.drivers.driver import Found


class HttpDriver(Driver):
    """A directory of a web server."""

    protocols = frozenset({"http", "https"})
    extra = "http"
    is_read_only = True
    may_be_locked_by_others = False  # nobody publishes through it
    advice = "the web server has no file 'format' there. Check the URL."

    @staticmethod
    def open(url: str, options: Mapping[str, Any]) -> Any:  # noqa: ARG004  # each request names its own
        """Return a file system that tells an outage from an absence."""
        from casstore.backend.fsspec.drivers.http_files import make_web  # noqa: PLC0415  # an optional extra

        return make_web(options)

    def close(self) -> None:
        """Close the connections."""
        self.fs.close_store()

    @staticmethod
    def anchor(root: str) -> str:
        """Return the store's file: a web server may not answer for directories."""
        return f"{root}/{STORE_FILE}"

    def check(self, root: str) -> None:
        """Raise unless the server lists its directories."""
        self.fs.require_index(root)

    def find(self, root: str, prefix: str, *, sizes: bool) -> Iterable[Found]:
        """Read the index pages; the server is asked for each size in turn."""
        found: dict[str, Any] = self.fs.find(f"{root}/{prefix}".rstrip("/"), detail=True, sizes=sizes)
        return ((name[len(root) + 1 :], info) for name, info in found.items())
