"""Another hub, of which this server is a mirror: asks it as clients do. Blocks; for threads.

A caller's token goes to that hub alone: httpx drops it when an answer leads elsewhere, as the Hub's do for large files.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpx2

from casstore._version import __version__
from casstore.errors import BackendUnavailable, ConfigError
from casstore.integrations.hub.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LAYOUT_TYPE", "UpstreamHub"]

LAYOUT_TYPE = "application/vnd.casstore.layout"
"""Asked for by one casstore, and answered by another: how a file is cut, so that only chunks that are missing are fetched."""

_SECONDS = 30.0
_CODES = frozenset({400, 401, 403, 404, 410, 416})
_LONGEST_JSON = 256 << 20
_SAFE_CODE = re.compile(r"[A-Za-z]{1,40}")


class UpstreamHub:
    """The hub at a URL; safe in threads. Raises BackendUnavailable where it does not answer, HubError for what it refuses."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError for what is no URL of a hub, or holds a user's name or password."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"{url!r} is not the address of a hub: give one as https://huggingface.co.")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                "The address of a hub must not hold a user's name or password: callers send their own tokens."
            )
        self.url = url.rstrip("/")
        self._client = httpx2.Client(
            follow_redirects=True,
            timeout=_SECONDS,
            headers={"User-Agent": f"casstore/{__version__}", "Accept-Encoding": "identity"},
        )

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def info(self, repo: str, revision: str, token: str | None) -> dict[str, Any]:
        """Return what the hub says of a revision."""
        found = self._json(f"/api/models/{repo}/revision/{quote(revision, safe='')}", token)
        if not isinstance(found, dict) or not isinstance(found.get("sha"), str):
            raise self._strange(repo)
        return found

    def tree(self, repo: str, sha: str, token: str | None) -> list[dict[str, Any]]:
        """Return the files and folders of a commit, at any depth."""
        url: str | None = f"/api/models/{repo}/tree/{sha}?recursive=true"
        found: list[dict[str, Any]] = []
        while url is not None:
            with self._asked(url, token) as answer:
                page = self._read(answer)
                link = answer.links.get("next", {}).get("url")
            if not isinstance(page, list) or not all(isinstance(item, dict) for item in page):
                raise self._strange(repo)
            found += page
            # A next page is asked for where this one was, whatever name of itself the hub puts into the link.
            parts = urlsplit(link) if link and page else None
            url = f"{parts.path}?{parts.query}" if parts else None
        return found

    def check(self, repo: str, token: str | None) -> None:
        """Raise HubError unless whoever has this token may read the files of a model."""
        self._json(f"/api/models/{repo}/auth-check", token)

    def get(self, path: str, token: str | None) -> Any:
        """Return the JSON at a path of the API."""
        return self._json(path, token)

    @contextmanager
    def file(
        self, repo: str, sha: str, path: str, token: str | None, *, headers: dict[str, str] | None = None
    ) -> Iterator[httpx2.Response]:
        """Give the answer to a GET of a file, whose body is not read yet."""
        url = f"/{repo}/resolve/{sha}/{quote(path, safe='/')}"
        with self._asked(url, token, headers=headers) as answer:
            yield answer

    def _json(self, path: str, token: str | None) -> Any:
        with self._asked(path, token) as answer:
            return self._read(answer)

    def _read(self, answer: httpx2.Response) -> Any:
        data = bytearray()
        for part in answer.iter_bytes():
            data += part
            if len(data) > _LONGEST_JSON:
                raise self._strange(str(answer.url.path))
        try:
            return httpx2.Response(200, content=bytes(data)).json() if data.strip() else {}
        except ValueError:
            raise self._strange(str(answer.url.path)) from None

    @contextmanager
    def _asked(
        self, path: str, token: str | None, *, headers: dict[str, str] | None = None
    ) -> Iterator[httpx2.Response]:
        own = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with self._client.stream(
                "GET", f"{self.url}{path}", headers={**(headers or {}), **own}
            ) as answer:
                if answer.status_code in _CODES:
                    raise self._refusal(answer)
                if not answer.is_success:
                    raise BackendUnavailable(f"{self.url} answered {answer.status_code}.")
                yield answer
        except httpx2.HTTPError as error:
            # Invariant 8: an outage is never taken for an absence.
            raise BackendUnavailable(f"{self.url} does not answer: {type(error).__name__}.") from error

    def _refusal(self, answer: httpx2.Response) -> HubError:
        code = answer.headers.get("x-error-code", "")
        message = answer.headers.get("x-error-message") or f"{self.url} answered {answer.status_code}."
        return HubError(answer.status_code, message, code=code if _SAFE_CODE.fullmatch(code) else None)

    def _strange(self, what: str) -> BackendUnavailable:
        return BackendUnavailable(f"{self.url} gave an answer about {what} that is none of a hub.")
