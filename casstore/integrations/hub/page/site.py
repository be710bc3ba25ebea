"""The pages: which there are, and what each shows. Everything is made in the server; templates escape every value."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse, Response

from casstore.errors import ConfigError, RefNotFound
from casstore.format import names
from casstore.integrations.hub.errors import HubError, nothing_here
from casstore.integrations.hub.page import compare_page, list_page, model_page, run_page
from casstore.integrations.hub.page.figures import FILTERS, url_path
from casstore.integrations.hub.page.measurements import Measurements
from casstore.integrations.hub.repositories import MODELS

if TYPE_CHECKING:
    from starlette.requests import Request

    from casstore.integrations.hub.context import ServerContext

__all__ = ["Site"]

_PACKAGE = "casstore.integrations.hub.page"
_STYLE = "/-/style.css"
_ASSETS = {_STYLE: "text/css; charset=utf-8", "/-/icon.svg": "image/svg+xml"}
_HEADERS = {
    # Nothing runs, nothing is loaded from elsewhere, and nobody shows the page inside another.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_ASSET_SECONDS = 86_400


class Site:
    """The pages on one store; for one event loop."""

    def __init__(self, context: ServerContext) -> None:
        self.context = context
        self.measurements = Measurements(context.store)
        folder = resources.files(_PACKAGE)
        self._assets = {path: folder.joinpath(path.rpartition("/")[2]).read_bytes() for path in _ASSETS}
        self._templates = Environment(
            loader=PackageLoader(_PACKAGE),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)
        # The address changes with the sheet, so that browsers may keep it.
        self._style_url = f"{_STYLE}?{hashlib.sha256(self._assets[_STYLE]).hexdigest()[:12]}"

    def close(self) -> None:
        """End the thread that measures."""
        self.measurements.close()

    async def answer(self, request: Request) -> Response:
        """Answer a request for a page. Raises HubError, and the store's errors."""
        path = request.scope["path"]
        if path in _ASSETS:
            headers = {**_HEADERS, "Cache-Control": f"public, max-age={_ASSET_SECONDS}"}
            return Response(self._assets[path], media_type=_ASSETS[path], headers=headers)
        if path == "/":
            return self._html("models.html", await list_page.models(self, request))
        if path == "/usage":
            return self._html("usage.html", await list_page.usage(self, request))
        if path == "/compare":
            template, values = await compare_page.compare(self, request)
            return self._html(template, values)
        name = path[1:]
        namespace = name.partition("/")[0]
        if namespace in names.NAMESPACES and namespace != name.strip("/"):
            return await self._ref(request, name)
        return await self._moved(name)

    def store_place(self, request: Request) -> str:
        """Return where the store is, for whoever can reach it: on this machine, or anywhere if it is no local one."""
        backend = self.context.store.backend
        client = request.client
        is_here = client is not None and client.host in ("127.0.0.1", "::1")
        return backend.url.removeprefix("file://") if backend.is_remote or is_here else ""

    async def _ref(self, request: Request, name: str) -> Response:
        try:
            names.check_name(name)
        except ConfigError:
            raise nothing_here(request.url.path) from None
        if name.startswith("runs/"):
            return self._html("run.html", await run_page.run(self, name))
        if name.startswith("evaluations/"):
            return self._html("evaluation.html", await run_page.evaluation(self, name))
        if "tensors" in request.query_params:
            return self._html("tensors.html", await model_page.tensors(self, request, name))
        return self._html("model.html", await model_page.model(self, request, name))

    async def _moved(self, name: str) -> Response:
        """Lead `/org/name`, the address of a model on the Hub, to its page here."""
        try:
            commit = await self.context.run(self.context.repositories.commit, name)
            self.context.repositories.check_public(commit.record)
        except (HubError, RefNotFound):
            raise nothing_here(f"/{name}") from None
        return RedirectResponse(f"/{url_path(MODELS + name)}", headers=_HEADERS)

    def error(self, error: HubError) -> Response:
        """Return an error as a page."""
        response = self._html("error.html", {"status": error.status, "message": str(error)})
        response.status_code = error.status
        response.headers.update(error.response().headers | dict(response.headers))
        return response

    def _html(self, template: str, values: dict[str, Any]) -> Response:
        html = self._templates.get_template(template).render(style_url=self._style_url, **values)
        return HTMLResponse(html, headers=_HEADERS)
