"""Names are bytes that are UTF-8, whatever the locale of the process."""

import os
import shutil
import subprocess
import sys

import pytest

from casstore import Store

NAMES = ["modell-ä/gewicht-é.bin", "模型/模.txt", "plain.txt"]
NO_UTF8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CHILD = """
import os, sys
from casstore import Store
print(sys.getfilesystemencoding())
with Store("store") as store:
    folder = sys.argv[1]
    print(store.content_id(folder))
    print(store.add(folder).model_id)
    print(store.content_id({"x": folder}), store.content_id({"x": "unm\\xf6glich-\\u6a21"}))
    store.get(sys.argv[2], sys.argv[3])
"""

# One process for many commands, each of which gets its words as a process gets them, and ends as one does.
COMMANDS = """
import sys
from casstore.__main__ import main
given, output = sys.argv[1:], sys.stdout.buffer
while given:
    end = given.index(";")
    sys.argv, given = ["casstore", *given[:end], "--store", "s"], given[end + 1:]
    try:
        main()
    except SystemExit as ending:
        if ending.code:
            raise
    output.write(b"\\0")
    output.flush()
"""


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """Return environments by the encoding that Python takes for names in them."""
    found = {"ascii": {"LC_ALL": "C", **NO_UTF8}, "utf-8": {"LC_ALL": "C", "PYTHONUTF8": "1"}}
    # glibc ships only the sources of other locales, and not everywhere.
    if shutil.which("localedef"):
        folder = tmp_path_factory.mktemp("locales")
        made = folder / "en_US.ISO-8859-1"
        command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", made]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            found["iso8859-1"] = {"LC_ALL": made.name, "LOCPATH": str(folder), **NO_UTF8}
    return found


def run(program, *words, cwd, variables):
    """Run a program where names have an encoding; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTHON") or "CACHE" in k}
    child = subprocess.run(
        [sys.executable, "-c", program, *map(os.fsencode, words)],
        cwd=cwd,
        env={**environment, **variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr.decode(errors="replace")
    return child.stdout


def test_the_same_folder_is_the_same_model(tmp_path, locales):
    folder = tmp_path / "ordner-ü模"
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "unmöglich-模").write_bytes(b"written in a program")
    with Store(tmp_path / "store", create=True) as store:
        model_id = store.add(folder).model_id
        places = store.content_id({"x": str(folder)}), store.content_id({"x": str(tmp_path / "unmöglich-模")})
    for encoding, variables in locales.items():
        out = os.fsencode(tmp_path) + f"/{encoding}-模".encode()
        printed = run(CHILD, folder, model_id, out, cwd=tmp_path, variables=variables)
        found, *ids = printed.decode().split()
        assert found == encoding
        assert ids == [model_id, model_id, *places]
        written = sorted(
            os.path.relpath(os.path.join(parent, name), out)
            for parent, _, names in os.walk(out)
            for name in names
        )
        assert written == sorted(name.encode() for name in NAMES)


def test_commands_in_a_terminal_that_cannot_show_a_name(tmp_path, locales):
    (tmp_path / "ä").mkdir()
    (tmp_path / "ä" / "模").write_bytes(b"bytes")
    for encoding, variables in locales.items():
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        commands = (
            ["init"],
            ["add", "ä", "--ref", "models/é", "--metadata", "wörter=模", "--exclude", "*.模"],
            ["add", "ä", "--base", "models/é", "--ref", "models/é2"],
            ["show", "models/é"],
            ["get", "models/é", f"aus-模-{encoding}"],
            ["tag", "é", "é"],
            ["rm", "tags/é"],
            ["ls", "models/é2"],
            ["cat", "models/é", "模"],
        )
        words = [word for command in commands for word in (*command, ";")]
        *_, listed, printed, rest = run(COMMANDS, *words, cwd=tmp_path, variables=variables).split(b"\0")
        assert listed.startswith(b"models/")
        assert (printed, rest) == (b"bytes", b"")
        with Store(tmp_path / "s") as store:
            assert sorted(store.refs()) == ["models/é", "models/é2"]
            assert store.refs()["models/é"].metadata == {"wörter": "模"}
        assert os.listdir(os.fsencode(tmp_path) + f"/aus-模-{encoding}".encode()) == ["模".encode()]
