"""Where mixed runs have their store: a new one of each kind, with a server where it needs one."""

from __future__ import annotations

import importlib
import json
from contextlib import ExitStack, contextmanager
from functools import partial

from fakes import syncer  # noqa: F401  # registers dirfs://, a folder that is reached like a remote
from mixed.children import PATIENCE, alone

from casstore import Store

KINDS = ("local", "fsspec", "s3", "azure", "sftp")
DRIVERS = {"s3": "s3fs", "azure": "adlfs", "sftp": "sshfs"}


@contextmanager
def new_store(kind, folder, *, url=None, options="{}"):
    """Make a store; yield its URLs, all of which name it, and the storage's options.

    `fsspec` and `sftp` are folders, which some processes use as a path and some without the publishers' lock.
    """
    if kind in DRIVERS:
        importlib.import_module(DRIVERS[kind])  # once, not in each child
    with ExitStack() as stack:
        if url is not None:
            urls, opened = url.split(","), json.loads(options)
        else:
            urls, opened = _place(kind, folder, stack)
        alone(partial(_make, urls[0], options_at(urls[0], opened)), folder / "make.err")
        yield urls, opened


def options_at(url, options):
    """Return the options for one of the URLs: a path takes none."""
    return {} if url.startswith("/") else options


def _make(url, options):
    Store(url, create=True, **options).close()


def _place(kind, folder, stack):
    place = str(folder / "store")
    if kind == "local":
        return [place], {}
    if kind == "fsspec":
        return [f"dirfs://{place}", place], {}
    (folder / "server").mkdir()
    server = stack.enter_context(_server(kind)(folder / "server"))
    if kind == "s3":
        # s3fs waits seconds for an answer, and a server may get no processor for so long on a busy machine.
        patience = {"read_timeout": PATIENCE, "connect_timeout": PATIENCE}
        options = {**server.options, "config_kwargs": patience}
        return [f"s3://{server.make_bucket()}/store"], options
    if kind == "azure":
        return [f"az://{server.make_container()}/store"], server.options
    return [server.url(place), place], server.options


def _server(kind):
    module = importlib.import_module(f"servers.{kind}")
    return getattr(module, f"{kind}_server")
