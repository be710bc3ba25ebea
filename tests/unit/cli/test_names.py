"""Names that are ordinary on the machine that made them: kept, printed safely, and refused only where they cannot be."""

from __future__ import annotations

import json

import pytest
from fakes.command_line import run

FILES = {
    "2024-05-05T12:00:00.json": b"{}",
    "README.md": b"upper",
    "readme.md": b"lower",
    "aux.py": b"import os",
    "new\nline\x1b[2J": b"x",
}


@pytest.fixture
def place(tmp_path):
    run("init", "--store", tmp_path / "store")
    (tmp_path / "m").mkdir()
    for name, data in FILES.items():
        (tmp_path / "m" / name).write_bytes(data)
    return tmp_path / "store"


def test_a_model_and_a_ref_with_such_names(place, tmp_path):
    ref = "models/run 2024-05-05T12:00:00"
    added = json.loads(run("add", tmp_path / "m", "--ref", ref, "--store", place, "--json")[0])
    assert added["files"] == len(FILES)
    assert run("ls", "--quiet", "--store", place)[0].split("\n")[0] == ref
    run("tag", "v1:stable", ref, "--store", place)
    run("get", "v1:stable", tmp_path / "out", "--store", place)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == FILES
    shown = run("show", ref, "--store", place)[0]
    assert "\x1b" not in shown
    assert "new\\nline\\x1b[2J" in shown
    run("check", "--store", place)
    run("rm", ref, "--store", place)
    assert run("ls", "--quiet", "--store", place)[0].split() == ["tags/v1:stable"]


def test_get_and_init_inside_a_store_are_one_line(place, tmp_path):
    run("add", tmp_path / "m", "--ref", "models/m", "--store", place)
    for arguments in (("get", "models/m", place / "out"), ("get", "--force", "models/m", place)):
        out, told = run(*arguments, "--store", place, code=1)
        assert out == ""
        assert told.count("\n") == 1
        assert f"lies in the store {place}" in told
    told = run("init", "--store", place / "inner", code=1)[1]
    assert told.count("\n") == 1
    assert f"lies in the store {place}" in told
    assert not (place / "inner").exists()
    run("check", "--store", place)
