"""Corpora to measure with: made once, kept outside the repository, each with a manifest of sizes and hashes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_dir

from benchmarks.datasets import (
    checkpoints,
    corpus,
    family,
    ladder,
    lifecycle,
    merges,
    minilm,
    releases,
    synthetic,
    unseen,
)
from benchmarks.datasets.corpus import Corpus, CorpusError, CorpusFile, CorpusModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.datasets.corpus import Recipe

__all__ = ["CORPORA", "Corpus", "CorpusError", "CorpusFile", "CorpusModel", "default_cache", "load"]

CORPORA: dict[str, Callable[[str], Recipe]] = {
    "lifecycle": lifecycle.recipe,
    "releases": releases.recipe,
    "unseen": unseen.recipe,
    "minilm-variants": minilm.variants,
    "family": family.recipe,
    "ladder": ladder.recipe,
    "merges": merges.recipe,
    "checkpoints": checkpoints.full,
    "checkpoints-bf16": checkpoints.half,
    "synthetic": synthetic.transformer,
    "mid-insert": synthetic.mid_insert,
    "fused": synthetic.fused,
}
"""The recipe of every corpus, given what follows the colon in its name."""


def default_cache() -> Path:
    """Return where corpora are kept unless the user names another place."""
    return Path(user_cache_dir("casstore-benchmarks"))


def load(name: str, *, cache: Path) -> Corpus:
    """Return a corpus by name (`synthetic:MB` for synthetic ones), made on first use.

    Raises CorpusError if there is no such corpus, it cannot be made here, or the cached one is broken.
    """
    kind, _, parameter = name.partition(":")
    if kind not in CORPORA or (parameter and kind != "synthetic"):
        known = ", ".join("synthetic[:MB]" if known == "synthetic" else known for known in CORPORA)
        raise CorpusError(f"There is no corpus {name!r}; there are {known}.")
    return corpus.ready(name, CORPORA[kind](parameter), cache=cache)
