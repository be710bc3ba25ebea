"""One smoke run for all tests of what it measures.

Its hundred processes are forked from one that has everything imported; that the benchmarks start them anew is
tested with `stages`.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from functools import partialmethod

import pytest
from fakes.counts import SMOKE_REMOTES
from fakes.warm_processes import WarmProcesses
from servers.processes import Server

from benchmarks import datasets
from benchmarks.__main__ import main
from benchmarks.harness import Harness


@dataclass(frozen=True)
class Smoke:
    """A run of `python -m benchmarks run --smoke`: its folder, its result as JSON, and the report that it printed."""

    cache: object
    out: object
    result: dict
    printed: str
    left: list
    """Names of what lay in the folder of the run when all was measured."""

    def samples(self, scenario):
        """Return the only sample of each (scenario, case, subject, metric name): also those of its details."""
        found = {}
        for item in self.result["measurements"]:
            if item["scenario"].startswith(scenario):
                (value,) = item["samples"]
                found[item["scenario"], item["case"], item["subject"], item["metric"]["name"]] = value
        return found


@pytest.fixture(scope="session")
def benchmark_cache(tmp_path_factory, byte_code):
    """A folder for corpora and stores, in which the processes that are measured find what Python compiled."""
    folder = tmp_path_factory.mktemp("benchmarks")
    byte_code.mkdir(parents=True, exist_ok=True)
    (folder / "byte-code").symlink_to(byte_code)
    return folder


def call_warm(harness, warm, machine, variables, function, **arguments):
    return warm.call(harness, machine, variables, function, **arguments)


@pytest.fixture(scope="session")
def smoke(benchmark_cache):
    out, printed, left = benchmark_cache / "result.json", io.StringIO(), []
    close = Harness.close

    def look_and_close(self):
        left.extend(sorted(path.name for path in self.work.iterdir()))
        close(self)

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.closing(WarmProcesses(Server)) as warm,
    ):
        patch.setattr(Harness, "close", look_and_close)
        patch.setattr(Harness, "fresh_on", partialmethod(call_warm, warm))
        where = ["--remotes", SMOKE_REMOTES, "--cache", str(benchmark_cache), "--out", str(out)]
        assert main(["run", "--smoke", *where]) == 0
    return Smoke(benchmark_cache, out, json.loads(out.read_text()), printed.getvalue(), left)


@pytest.fixture(scope="session")
def corpus(benchmark_cache):
    return datasets.load("synthetic:4", cache=benchmark_cache)
