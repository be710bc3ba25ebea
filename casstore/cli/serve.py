"""`casstore serve`: the store's models behind the Hub's read API."""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from casstore.cli.support.command import Command
from casstore.cli.support.text import printable
from casstore.errors import ConfigError

if TYPE_CHECKING:
    from casstore.cli.support.session import Session

_NEEDS = "casstore serve needs packages of its own: install casstore[serve]."


@click.command(cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Ask for one of the tokens in this file, one on each line.",
)
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help="Another name that this server goes by (repeatable)."
)
@click.option(
    "--max-clients",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Connections at a time.",
)
@click.option(
    "--upstream",
    metavar="URL",
    help="Be a mirror of this hub: fetch from it what the store lacks, and add that to the store.",
)
def run(
    out: Session,
    *,
    host: str,
    port: int,
    token_file: str | None,
    allow_host: tuple[str, ...],
    max_clients: int,
    upstream: str | None,
) -> None:
    """Serve the models to huggingface_hub, over HTTP.

    transformers and all that is built on huggingface_hub find them with HF_ENDPOINT=http://127.0.0.1:8000; `org/name` is the ref
    models/org/name. Ctrl-C ends it.
    """
    try:
        from casstore.integrations.hub import access, server  # noqa: PLC0415
        from casstore.integrations.hub.app import HubApp  # noqa: PLC0415
        from casstore.integrations.hub.context import ServerContext  # noqa: PLC0415
        from casstore.integrations.hub.mirror.upstream import UpstreamHub  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "casstore":
            raise
        raise ConfigError(_NEEDS) from error
    tokens = access.read_tokens(token_file) if token_file else ()
    hub = UpstreamHub(upstream) if upstream else None
    with (
        out.open(read_only=True) if hub is None else out.open_to_fill() as store,
        closing(server.bind(host, port)) as listener,
    ):
        rules = server.rules_for(host, allowed=allow_host, tokens=tokens)
        context = ServerContext.of(store)
        if hub is not None:
            context.mirror_of(hub)
        with closing(HubApp(context, rules)) as app:
            url = server.address_url(listener)
            of = f", a mirror of {hub.url}," if hub else ""
            out.report(
                {"url": url, "store": store.backend.url, "upstream": hub.url if hub else None},
                f"Serving {store.backend.url}{of} at {url}. Ctrl-C ends it.",
            )
            sys.stdout.flush()  # Whoever reads a pipe wants the address now.
            _log_requests(out)
            server.run(app, listener, max_clients=max_clients)


class _Requests(logging.Formatter):
    """Formats the access log so that a path cannot steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _log_requests(out: Session) -> None:
    """Print a line on stderr for each request, unless nobody wants to hear it."""
    log = logging.getLogger("casstore.serve")
    log.propagate = False
    log.setLevel(logging.INFO)
    if not out.quiet and not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Requests("%(asctime)s %(message)s"))
        log.addHandler(handler)
