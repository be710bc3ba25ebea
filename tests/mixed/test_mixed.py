"""Writers, collectors and readers on one store for a few seconds; paused.py runs them for as long as you like."""

from __future__ import annotations

import logging

import pytest
from fakes.counts import MIXED_SECONDS
from mixed import paused
from mixed.command import run_script
from mixed.history import Act, History, Log, read_log

_log = logging.getLogger(__name__)


@pytest.mark.parametrize("kind", ["local", "fsspec", "s3"])
def test_everybody_at_once(kind, request, tmp_path):
    options = ["--seconds", MIXED_SECONDS, "--grace", "0.3"]
    if kind == "s3":
        options += ["--writers", 3, "--readers", 1]  # the server is one process for all of them
    _log.info("%s", run_script(paused, kind, request, tmp_path, *options))


INF = float("inf")
WRITTEN = [
    Act("add", "models/a", 1, 10, 20),
    Act("add", "models/a", 2, 30, 40),
    Act("delete", "models/a", None, 50, 60),
    Act("add", "models/b", 5, 10, 20),
    Act("add", "models/b", 6, 70, INF),
]


@pytest.mark.parametrize(
    ("ref", "begin", "end", "allowed"),
    [
        ("models/a", 0, 5, {None}),
        ("models/a", 5, 15, {None, 1}),
        ("models/a", 21, 29, {1}),
        ("models/a", 25, 35, {1, 2}),
        ("models/a", 15, 55, {None, 1, 2}),
        ("models/a", 61, 70, {None}),
        ("models/b", 80, 90, {5, 6}),
        ("models/b", None, None, {5, 6}),
        ("models/a", None, None, {None}),
        ("models/c", 0, 9, {None}),
    ],
)
def test_what_a_reader_may_see(ref, begin, end, allowed):
    assert History(WRITTEN).possible(ref, begin, end) == allowed


@pytest.mark.parametrize(
    ("seen", "fine"),
    [
        (Act("read", "models/a", 1, 21, 29), True),
        (Act("read", "models/a", 2, 21, 29), False),
        (Act("read", "models/a", None, 21, 29), False),
        (Act("read", "models/a", None, 21, 29, "MissingObject: gone"), False),
        (Act("read", "models/a", None, 21, 35, "MissingObject: gone"), True),
        (Act("read", "models/a", None, 61, INF), True),
    ],
)
def test_what_is_complained_about(seen, fine):
    assert (History(WRITTEN).complaints([seen]) == []) is fine


def test_a_log_that_a_kill_ended_is_read(tmp_path):
    log = Log(tmp_path / "log")
    log.begin("add", "models/a", 1)
    log.end("add", "models/a", 1)
    log.begin("read", "models/a")
    log.end("read", "models/a", 1, "a story\nof two lines")
    log.begin("delete", "models/a")
    acts = read_log(tmp_path / "log")
    assert [(act.what, act.value, act.end < INF) for act in acts] == [
        ("add", 1, True), ("read", 1, True), ("delete", None, False),
    ]  # fmt: skip
    assert acts[1].error == "a story of two lines"
