"""A server of `casstore serve` on loopback, in a thread of this process, and small models to serve."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import closing, contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from fakes.model_files import safetensors_bytes

from casstore.integrations.hub import server
from casstore.integrations.hub.app import HubApp
from casstore.integrations.hub.context import ServerContext
from casstore.integrations.hub.mirror.upstream import UpstreamHub

CARD = """---
license: apache-2.0
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [small, test]
---
# A small model
"""


def write_model(folder, seed=0, *, rows=700):
    """Write a model folder: one file that counts as large, and small ones, one of them in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(seed).standard_normal((rows, 512)).astype("<f4")
    bias = np.arange(512, dtype="<f2")
    (folder / "model.safetensors").write_bytes(safetensors_bytes({"weight": weights, "bias": bias}))
    (folder / "config.json").write_text(json.dumps({"model_type": "test", "seed": seed}))
    (folder / "README.md").write_text(CARD)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


@contextmanager
def hub_server(
    store,
    *,
    tokens=(),
    host="127.0.0.1",
    allowed=(),
    max_clients=server.MAX_CLIENTS,
    upstream=None,
    **options,
):
    """Serve an open store, as a mirror of the URL `upstream`; yields the app, whose `url` is where it listens."""
    context = ServerContext.of(store, **options)
    if upstream is not None:
        context.mirror_of(UpstreamHub(upstream))
    with (
        closing(server.bind(host, 0)) as listener,
        closing(HubApp(context, server.rules_for(host, allowed=allowed, tokens=tokens))) as app,
    ):
        app.url = server.address_url(listener)
        app.server = server.make_server(app, max_clients=max_clients)
        thread = threading.Thread(target=app.server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not app.server.started:
                time.sleep(0.005)
            yield app
        finally:
            app.server.should_exit = True
            thread.join()


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes


def raw(app, method, path, *, headers=None, body=None):
    """Send a request whose path nothing tidies up."""
    where = urlsplit(app.url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=20)
    with closing(connection):
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
