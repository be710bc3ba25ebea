"""What a request to `casstore serve` means: ranges as Python slices, and any bytes as a path."""

from __future__ import annotations

import contextlib
from urllib.parse import quote

import hypothesis.strategies as st
from hypothesis import given

from casstore.integrations.hub.endpoint.ranges import UnsatisfiableRange, parse_range
from casstore.integrations.hub.targets import ApiTarget, FileTarget, is_reachable, parse_target

DATA = bytes(range(100))
NAMES = st.text(st.sampled_from("abcXYZ019-_."), min_size=1, max_size=12)
PATHS = st.lists(st.text(min_size=1, max_size=8).filter(lambda part: "/" not in part), min_size=1, max_size=3)


@given(st.integers(0, 130), st.integers(0, 130), st.integers(0, 100))
def test_ranges_are_slices(first, last, size):
    data = DATA[:size]
    for header, expected in (
        (f"bytes={first}-{last}", data[first : last + 1]),
        (f"bytes={first}-", data[first:]),
        (f"bytes=-{last}", data[-last:] if last else b""),
    ):
        try:
            begin, end = parse_range(header, size)
        except UnsatisfiableRange:
            assert expected == b""
        else:
            assert data[begin:end] == expected != b""


@given(st.text(max_size=30), st.integers(0, 2**63))
def test_any_range_is_inside_the_file_or_none(header, size):
    with contextlib.suppress(UnsatisfiableRange):
        begin, end = parse_range(header, size)
        assert 0 <= begin < end <= size


@given(st.binary(max_size=60))
def test_any_path_means_something_or_nothing(path):
    with contextlib.suppress(UnicodeDecodeError):
        parse_target(b"/" + path)


@given(NAMES, NAMES, st.text(min_size=1, max_size=12), PATHS)
def test_names_that_clients_can_ask_for_arrive(org, name, revision, path):
    def ask(text):
        return parse_target(text.encode("ascii"))

    try:
        "/".join([revision, *path]).encode()
    except UnicodeEncodeError:
        return  # No such text can be sent.
    file = "/".join(path)
    encoded, tail = quote(revision, safe=""), "/".join(quote(part, safe="") for part in path)
    for repo in (name, f"{org}/{name}"):
        if is_reachable(repo):
            assert ask(f"/{repo}/resolve/{encoded}/{tail}") == FileTarget("models", repo, revision, file)
            for action in ("tree", "revision", "paths-info", "commits"):
                assert ask(f"/api/models/{repo}/{action}/{encoded}") == ApiTarget(
                    "models", repo, action, revision
                )
            assert ask(f"/api/models/{repo}") == ApiTarget("models", repo)
