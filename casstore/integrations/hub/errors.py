"""What a client is told when it cannot have what it asks for, in the headers that huggingface_hub reads.

huggingface_hub raises its own classes by `X-Error-Code`; an answer without it is reported as a problem of the connection.
Source: `hf_raise_for_status` in huggingface_hub/utils/_http.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from casstore.errors import BackendError, CasstoreError, IntegrityError

if TYPE_CHECKING:
    from starlette.responses import Response

RETRY_AFTER = 5
"""Seconds after which a client should ask again while the storage is away."""

_LONGEST = 500


class HubError(Exception):
    """An answer other than what was asked for: a status, a code that clients know, and a sentence for people."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}

    def response(self) -> Response:
        """Return it as JSON, with the headers that clients read."""
        message = _header_text(str(self))
        headers = {**self.headers, "X-Error-Message": message}
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": str(self)}, status_code=self.status, headers=headers)


def repo_not_found(repo: str) -> HubError:
    """There is no such model, or what is asked for is no model."""
    return HubError(404, f"There is no model {repo!r} in this store.", code="RepoNotFound")


def revision_not_found(repo: str, revision: str, why: str = "") -> HubError:
    """The model has no such tag or commit; `why` is a sentence, if more is known."""
    message = f"{repo} has no revision {revision!r}." + (f" {why}" if why else "")
    return HubError(404, message, code="RevisionNotFound")


def entry_not_found(repo: str, path: str, commit: str) -> HubError:
    """The commit has no such file; clients remember that for the commit in the header."""
    return HubError(
        404, f"{repo} has no file {path!r}.", code="EntryNotFound", headers={"X-Repo-Commit": commit}
    )


def nothing_here(path: str) -> HubError:
    """Nothing is served at this path."""
    return HubError(404, f"This server has nothing at {path}: it serves models, read-only.")


def read_only() -> HubError:
    """A request that would change something."""
    return HubError(403, "This server is read-only: add models with `casstore add` or `casstore push`.")


def bad_request(message: str) -> HubError:
    """A request that makes no sense, or asks for something that this server cannot do."""
    return HubError(400, message, code="BadRequest")


def as_hub_error(error: CasstoreError) -> HubError:
    """Say to a client what a store's error means: an outage is worth trying again, damage is not."""
    if isinstance(error, BackendError):
        # Invariant 8: an outage is never taken for an absence.
        return HubError(
            503,
            "The storage of this store does not answer at the moment. Try again later.",
            headers={"Retry-After": str(RETRY_AFTER)},
        )
    if isinstance(error, IntegrityError):
        return HubError(
            500,
            "Something of this model is damaged or missing in the store. Whoever keeps it can run `casstore check`.",
        )
    return HubError(500, str(error))


def _header_text(message: str) -> str:
    line = " ".join(message.split())[:_LONGEST]
    return line.encode("ascii", "backslashreplace").decode("ascii")
