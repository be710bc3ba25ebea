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
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
        out = os.fsencode(tmp_path) + f"/{encoding}-模".encode()
        child = subprocess.run(
            [sys.executable, "-c", CHILD, os.fsencode(folder), model_id, out],
            cwd=tmp_path,
            env={**environment, **variables, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=False,
        )
        assert child.returncode == 0, child.stderr.decode(errors="replace")
        found, *ids = child.stdout.decode().split()
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
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}

        def run(*words, environment=environment, variables=variables):
            child = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "casstore",
                    *[os.fsencode(word) for word in words],
                    "--store",
                    "s",
                ],
                cwd=tmp_path,
                env={**environment, **variables, "PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                check=False,
            )
            assert child.returncode == 0, child.stderr.decode(errors="replace")
            return child.stdout

        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        run("init")
        run("add", "ä", "--ref", "models/é", "--metadata", "wörter=模", "--exclude", "*.模")
        run("add", "ä", "--base", "models/é", "--ref", "models/é2")
        run("show", "models/é")
        run("get", "models/é", f"aus-模-{encoding}")
        run("tag", "é", "é")
        run("rm", "tags/é")
        assert run("ls", "models/é2").startswith(b"models/")
        assert run("cat", "models/é", "模") == b"bytes"
        with Store(tmp_path / "s") as store:
            assert sorted(store.refs()) == ["models/é", "models/é2"]
            assert store.refs()["models/é"].metadata == {"wörter": "模"}
        assert os.listdir(os.fsencode(tmp_path) + f"/aus-模-{encoding}".encode()) == ["模".encode()]
