"""Commands and examples on the pages run as written, and links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fakes.model_files import safetensors_bytes
from fakes.olive_cache import OliveCache, onnx_file

from casstore.cli import app

ROOT = Path(__file__).parents[2]
TOPS = ("casstore", "tests", "benchmarks")
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "casstore").rglob("README.md")),
    ROOT / "benchmarks" / "README.md",
]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def commands():
    """Yield the casstore commands of README.md, but for the demo and the server, which have tests of their own."""
    for block in blocks("README.md", "console"):
        for line in block.splitlines():
            if line.startswith("$ casstore ") and not line.startswith("$ casstore serve"):
                yield shlex.split(line.removeprefix("$ casstore "), comments=True)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The model folders and the Olive cache that README.md names, below the current directory."""
    monkeypatch.chdir(tmp_path)
    for name, dtype in (("minilm", "<f4"), ("minilm-fp16", "<f2")):
        folder = tmp_path / name
        folder.mkdir()
        weights = np.random.default_rng(7).standard_normal((64, 128)).astype(dtype)
        (folder / "model.safetensors").write_bytes(
            safetensors_bytes({"embeddings.word_embeddings.weight": weights})
        )
        (folder / "config.json").write_text("{}")
    cache = OliveCache(tmp_path / ".olive-cache")
    graph = cache.write("0_OnnxConversion-a", "models/model.onnx", onnx_file(1))
    cache.model("0_OnnxConversion-a", {"type": "ONNXModel", "config": {"model_path": graph}})
    cache.run("0_OnnxConversion-a", "ffff0000")


@pytest.mark.usefixtures("models")
def test_the_commands_of_the_readme():
    runner = CliRunner()
    assert runner.invoke(app, ["init"]).exit_code == 0
    assert runner.invoke(app, ["adopt", ".olive-cache"]).exit_code == 0
    ran = 0
    for arguments in commands():
        arguments = ["0_OnnxConversion-a" if item == "RUN" else item for item in arguments]  # noqa: PLW2901
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, (arguments, result.stdout, result.stderr)
        ran += 1
    assert ran > 15


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("page", ["README.md", "casstore/cache/README.md"])
def test_the_python_of_a_page(page):
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), {"__name__": "example"})  # what the page tells people to run


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "tests" / "README.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_modules_that_a_page_names_exist(page):
    """By the end of their path, as tables name the modules of a folder."""
    known = {f"/{path.relative_to(ROOT)}" for top in TOPS for path in (ROOT / top).rglob("*.*")}
    known |= {f"/{path.name}" for path in ROOT.glob("*.*")}
    named = set(re.findall(r"`((?:\.\./)*[\w./]+\.(?:py|c|dot))`", page.read_text(encoding="utf-8"))) - {
        "NAME.py"
    }
    ends = {name: f"/{name.replace('../', '')}" for name in named}
    assert [name for name, end in ends.items() if not any(path.endswith(end) for path in known)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [item for item in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in item]
    missing = [item for item in targets if not os.path.exists(page.parent / item.partition("#")[0])]
    assert missing == []
