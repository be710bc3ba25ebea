"""Text to fine-tune on that every machine has: what the functions and classes of Python's standard library say.

Each name is paired with its docstring, as models that search code are trained; and BERT's tokenizer for both.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Pair = tuple[str, str]
_OTHERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"})
_FEWEST_WORDS = 8
_WORD_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LONGEST_WORD = 100


def pairs(folder: Path | None = None) -> list[Pair]:
    """Return ("source from cache", docstring) for every named thing below `folder`, by default the standard library.

    In a fixed order, without repeated docstrings.
    """
    top = folder or Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for path in sorted(top.rglob("*.py")):
        if _OTHERS.isdisjoint(path.relative_to(top).parts):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    text = ast.get_docstring(node) or ""
                    if len(text.split()) >= _FEWEST_WORDS and _WORD_PART.search(node.name):
                        found.setdefault(text, " ".join(_WORD_PART.findall(node.name)).lower())
    return [(name, text) for text, name in found.items()]


def words(text: str) -> list[str]:
    """Split text as BERT's uncased tokenizers do before they look at their vocabulary."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    plain = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
    return re.findall(r"\w+|[^\w\s]", plain.replace("_", " _ "))


def word_pieces(word: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Return the longest known pieces of a word from left to right, or the unknown token."""
    ids: list[int] = []
    start = 0
    while start < len(word) <= _LONGEST_WORD:
        prefix = "##" if start else ""
        for end in range(len(word), start, -1):
            token = vocabulary.get(prefix + word[start:end])
            if token is not None:
                ids.append(token)
                start = end
                break
        else:
            return [vocabulary["[UNK]"]]
    return ids or [vocabulary["[UNK]"]]


def encode(text: str, vocabulary: Mapping[str, int], *, longest: int) -> list[int]:
    """Return at most `longest` token ids, with the marks that BERT puts around a text."""
    ids = [token for word in words(text) for token in word_pieces(word, vocabulary)]
    return [vocabulary["[CLS]"], *ids[: longest - 2], vocabulary["[SEP]"]]


def read_vocabulary(path: Path) -> dict[str, int]:
    """Return token to id of a `vocab.txt`."""
    return {token: number for number, token in enumerate(path.read_text("utf-8").splitlines())}
