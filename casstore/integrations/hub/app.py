"""The server as an ASGI application: checks who asks, finds what is asked for, and turns errors into answers."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from casstore.errors import CasstoreError, RefNotFound
from casstore.integrations.hub.endpoint import api
from casstore.integrations.hub.endpoint.content import serve_file
from casstore.integrations.hub.errors import (
    HubError,
    as_hub_error,
    bad_request,
    nothing_here,
    read_only,
    repo_not_found,
)
from casstore.integrations.hub.metrics import ServerMetrics
from casstore.integrations.hub.page.site import Site
from casstore.integrations.hub.targets import ApiTarget, FileTarget, parse_target

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from casstore.integrations.hub.access import AccessRules
    from casstore.integrations.hub.context import ServerContext
    from casstore.integrations.hub.targets import Target

__all__ = ["HubApp"]

_log = logging.getLogger("casstore")


class HubApp:
    """One store, served. For one event loop; `close` ends its threads, the store stays open."""

    def __init__(self, context: ServerContext, rules: AccessRules) -> None:
        self.context = context
        self.metrics = ServerMetrics()
        self._rules = rules
        self._site = Site(context)
        if context.mirror is not None:
            context.mirror.told = lambda result: self.metrics.mirrored.labels(result).inc()

    def close(self) -> None:
        """End the threads."""
        self._site.close()
        self.context.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return  # Web sockets, which uvicorn then refuses.
        begun = time.perf_counter()
        kind, status, sent = "other", 500, 0

        async def counted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            elif scope["method"] != "HEAD":
                sent += len(message.get("body", b""))
            await send(message)

        request = Request(scope, receive)
        self.metrics.active.inc()
        try:
            kind, response = await self._answer(request)
            await response(scope, receive, counted)
        except CasstoreError as error:
            # Invariant 4: what cannot be verified is not sent; the body ends early, which clients notice.
            _log.error("%s was not sent to its end: %s", scope["path"], error)
        finally:
            self.metrics.active.dec()
            self.metrics.count(
                scope, kind=kind, status=status, sent=sent, seconds=time.perf_counter() - begun
            )

    async def _answer(self, request: Request) -> tuple[str, Response]:
        """Return what kind of request it is, and the response."""
        kind = "other"
        try:
            self._rules.check_host(request.headers)
            request.scope["casstore_token"] = self._rules.check_token(request.headers)
            request.scope["casstore_caller"] = self._rules.caller(request.headers)
            target = _target(request)
            kind = {FileTarget: "file", ApiTarget: "api", type(None): "page"}[type(target)]
            return kind, await self._respond(request, target)
        except HubError as error:
            found = error
        except RefNotFound as error:
            found = HubError(404, str(error), code="RepoNotFound")
        except CasstoreError as error:
            _log.warning("%s: %s", request.url.path, error)
            found = as_hub_error(error)
        except Exception:  # noqa: BLE001 - whatever it is, the other requests go on
            # Invariant 11: the client gets an error, and whoever runs the server the reason.
            _log.exception("%s could not be answered", request.url.path)
            found = HubError(500, "Something went wrong in this server: its log says what.")
        is_page = kind == "page" and not request.url.path.startswith("/api/")
        return kind, self._site.error(found) if is_page else found.response()

    async def _respond(self, request: Request, target: Target | None) -> Response:
        if isinstance(target, FileTarget):
            if request.method not in ("GET", "HEAD"):
                raise read_only()
            if target.kind != "models":
                raise repo_not_found(target.repo)
            return await serve_file(self.context, request, target)
        if isinstance(target, ApiTarget):
            return await api.answer(self.context, request, target)
        if request.method not in ("GET", "HEAD"):
            raise read_only()
        if request.url.path == "/metrics":
            text = await self.metrics.text(self.context)
            return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
        if request.url.path.startswith("/api/"):
            raise nothing_here(request.url.path)
        return await self._site.answer(request)


def _target(request: Request) -> Target | None:
    try:
        return parse_target(request.scope["raw_path"])
    except UnicodeDecodeError:
        raise bad_request("The path is not UTF-8.") from None
