"""A server of `casstore serve` in a process of its own, as the benchmark of it and the tests of the Hub's clients use it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["ServerNotStarted", "casstore_server", "sent_bytes"]


class ServerNotStarted(Exception):
    """The server ended before it said where it listens."""


@contextmanager
def casstore_server(
    store: Path | str, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve a store on a free port until the block ends; yield the URL and the process. Raises ServerNotStarted."""
    command = [
        sys.executable,
        "-m",
        "casstore",
        "serve",
        "--port",
        "0",
        "--quiet",
        "--json",
        "--store",
        str(store),
    ]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            text = ""
            while not text.endswith("}\n"):
                line = process.stdout.readline() if process.stdout else ""
                if not line:
                    raise ServerNotStarted("casstore serve does not start: install casstore[serve].")
                text += line
            yield json.loads(text)["url"], process
        finally:
            process.terminate()


def sent_bytes(url: str) -> int:
    """Return how many bytes of files a server of casstore has sent."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    lines = [line for line in text.splitlines() if line.startswith('casstore_sent_bytes_total{kind="file"')]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))
