"""The design page, its picture, the import contract and the folders of the package say the same."""

from __future__ import annotations

import html
import itertools
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "casstore"
PAGE = (PACKAGE / "README.md").read_text(encoding="utf-8")
DOT = (PACKAGE / "architecture.dot").read_text(encoding="utf-8")

NO_LAYER = {"__init__", "__main__", "__pycache__", "_kernels", "_version"}
"""What stands outside the layers: the doors of the package, and files that import nothing of it."""

CITED = re.compile(r"\b[Ii]nvariants?\s+(\d+(?:(?:,|,? and|-)\s*\d+)*)")
SECTION = re.compile(r"§\s?(\d+)(?!\.?\d)")


def layers() -> list[set[str]]:
    """Return the layers of the import contract, the highest first."""
    # tomllib came with Python 3.11, and this list needs no parser.
    block = re.search(
        r"^layers = \[\n(.*?)^\]",
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    assert block
    return [set(line.split(" | ")) for line in re.findall(r'"([^"]+)"', block[1])]


def modules() -> set[str]:
    """Return the names of the folders and modules of casstore/."""
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    return (found | {path.stem for path in PACKAGE.glob("*.py")}) - NO_LAYER


def edges(source: str = DOT) -> list[tuple[str, str]]:
    """Return the arrows of a picture's source."""
    chains = [chain.split(" -> ") for chain in re.findall(r"\w+(?: -> \w+)+", source)]
    return [pair for chain in chains for pair in itertools.pairwise(chain)]


def invariants() -> dict[int, str]:
    """Return the invariants of the page by number."""
    text = section(7)
    return {int(number): line for number, line in re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE)}


def section(number: int) -> str:
    found = re.search(rf"^## {number}\. [^\n]*\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"casstore/README.md has no section {number}."
    return found[1]


@cache
def citing_files() -> list[tuple[str, str]]:
    """Return the files that may cite the page, with comments that span lines joined into one."""
    found = []
    for folder in ("casstore", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".c", ".md", ".dot"}:
                text = re.sub(r"\n\s*(?:#|//|\*)?\s*", " ", path.read_text(encoding="utf-8"))
                found.append((str(path.relative_to(ROOT)), text))
    return found


def test_the_contract_names_every_module() -> None:
    assert set().union(*layers()) == modules()


def test_the_picture_has_a_box_for_every_layer() -> None:
    boxes = re.findall(r"^\s*(\w+)\s+\[label=", DOT, re.MULTILINE)
    assert len(boxes) == len(set(boxes))
    assert set(boxes) == set().union(*layers())


@pytest.mark.parametrize("name", ["architecture", "overview"])
def test_pictures_are_drawn_from_their_source(name: str) -> None:
    """`dot` names each box and each arrow in a title, and writes the words of the labels."""
    source = (PACKAGE / f"{name}.dot").read_text(encoding="utf-8")
    drawn = (PACKAGE / f"{name}.svg").read_text(encoding="utf-8")
    boxes = re.findall(r"^\s*(\w+)\s+\[label=", source, re.MULTILINE)
    hidden = set(re.findall(r"(\w+) -> (\w+) \[style=invis\]", source))
    titles = [html.unescape(title) for title in re.findall(r"<title>(.*?)</title>", drawn)]
    shown = [f"{a}->{b}" for a, b in edges(source) if (a, b) not in hidden]
    assert sorted(titles) == sorted([name if name == "overview" else "casstore", *boxes, *shown])
    labels = re.findall(r'<b>(.*?)</b>|<font point-size="10">(.*?)</font>|label="(.*?)"', source)
    texts = [html.unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", drawn)]
    assert sorted("".join(words) for words in labels) == sorted(texts)


def test_arrows_point_down() -> None:
    depth = {name: at for at, names in enumerate(layers()) for name in names}
    assert [(a, b) for a, b in edges() if depth[a] >= depth[b]] == []


def test_the_table_lists_the_layers_in_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section(2), re.MULTILINE)
    depth = {name: at for at, names in enumerate(layers()) for name in names}
    assert set(rows) == depth.keys()
    shown = [depth[row] for row in rows if row not in {"digest", "errors", "_build"}]
    assert shown == sorted(shown)


def test_invariants_are_numbered_without_gaps() -> None:
    assert list(invariants()) == list(range(1, len(invariants()) + 1))


def test_everything_that_is_cited_exists() -> None:
    sections = {int(number) for number in re.findall(r"^## (\d+)\. ", PAGE, re.MULTILINE)}
    for pattern, known in ((CITED, set(invariants())), (SECTION, sections)):
        cited = [
            (path, int(number))
            for path, text in citing_files()
            for found in pattern.findall(re.sub(r"RFC \d+ §[\d.]+", "", text))
            for number in re.findall(r"\d+", found)
        ]
        assert len(cited) > 20
        assert [(path, number) for path, number in cited if number not in known] == []
