"""Several processes that push overlapping models to one store at the same time: every ref ends up whole."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
from fakes import pusher
from fakes.counts import PUSHERS
from fakes.stores import assert_clean, model_of, noise, read_model, write_model

from casstore.api.store import Store
from casstore.ops.sync import execute, plan_sync

_log = logging.getLogger(__name__)

COMMON = noise(1, 600_000)
"""What all models have; each has something of its own as well."""


@pytest.fixture(params=["s3", "folder"])
def place(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "shared"), {}
    server = request.getfixturevalue("s3_server")
    return f"s3://{server.make_bucket()}/shared", server.options


def content(number):
    return model_of(common=COMMON, own=noise(10 + number, 200_000))


def push_together(folders, url, options):
    """Push every store at the same moment, each from a process of its own; return what they report."""
    with ExitStack() as stack:
        processes = []
        for at, folder in enumerate(folders):
            command = [sys.executable, "-W", "error", pusher.__file__, str(folder), url, json.dumps(options)]
            environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}-cache-{at}"}
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return [json.loads(process.communicate(timeout=250)[0]) for process in processes]


def test_every_ref_ends_up_whole(place, tmp_path):
    url, options = place
    Store(url, create=True, **options).close()
    folders = []
    for number in range(PUSHERS):
        folders.append(tmp_path / f"machine-{number}")
        with Store(folders[-1], create=True, durability="none") as store:
            store.add(write_model(content(number), tmp_path / f"m{number}"), ref=f"models/{number}")
            store.add(write_model(content(0), tmp_path / f"s{number}"), ref="models/same")
            store.tag("best", f"models/{number}")
    reports = push_together(folders, url, options)
    with Store(url, **options) as shared:
        assert_clean(shared)
        for number in range(PUSHERS):
            assert read_model(shared, f"models/{number}") == content(number)
        assert read_model(shared, "models/same") == content(0)
        # One of them set the tag; the others were told, or it was theirs already.
        best = read_model(shared, "best")
        winners = [number for number in range(PUSHERS) if content(number) == best]
        assert len(winners) == 1
        for number, report in enumerate(reports):
            assert {f"models/{number}", "models/same"} <= {*report["refs"]}
            assert ("tags/best" in report["refs"]) == (number in winners)
            assert ("tags/best" in report["conflicts"]) == (number not in winners)
        # Nobody has to push again, and who did would send nothing.
        for folder in folders:
            with Store(folder) as store:
                assert plan_sync(store, shared).objects == 0
        sent = sum(report["missing"] for report in reports)
        with Store(tmp_path / "one-copy", create=True, durability="none") as alone:
            needed = execute(plan_sync(shared, alone)).bytes_missing
    wasted = sent / needed - 1
    _log.info("%s: %d pushers, %d bytes needed, %.2f of them wasted", url, PUSHERS, needed, wasted)
    assert 0 <= wasted <= PUSHERS - 1
