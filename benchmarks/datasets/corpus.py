"""What a corpus is, and how it is built once, written down in a manifest and checked before every use.

A corpus is a directory: `models/NAME/…` and `manifest.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Lineage = dict[str, tuple[str, ...]]
"""Every model of a corpus in the order in which a pipeline makes them, with at most two models it was made from."""


class CorpusError(ValueError):
    """A corpus that does not exist, cannot be made here, or is not what its manifest says."""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of a model: path inside the model, bytes, BLAKE3 in hex."""

    path: str
    size: int
    blake3: str


@dataclass(frozen=True, slots=True)
class CorpusModel:
    """One model: its files, and the models that it was made from, if any."""

    name: str
    base: str | None
    files: tuple[CorpusFile, ...]
    second_parent: str | None = None
    """What `base` was combined with, as in an average of two models."""

    @property
    def size(self) -> int:
        """The model's plain bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Models below `root`/models, in the order in which a pipeline makes them."""

    name: str
    recipe: str
    root: Path
    models: tuple[CorpusModel, ...]
    made_with: dict[str, str] = field(default_factory=dict)
    """Packages that made the files, with the version of each: another version may make others."""

    @property
    def size(self) -> int:
        """The plain bytes of all models."""
        return sum(model.size for model in self.models)

    def path(self, model: CorpusModel) -> Path:
        """Return the folder of a model."""
        return self.root / "models" / model.name

    def paths(self) -> Iterator[Path]:
        """Return every file of every model."""
        for model in self.models:
            for file in model.files:
                yield self.path(model) / file.path

    def summary(self) -> dict[str, object]:
        """Return what a result says about the corpus: sizes and hashes."""
        models = [asdict(model) for model in self.models]
        return {
            "name": self.name,
            "recipe": self.recipe,
            "bytes": self.size,
            "made_with": self.made_with,
            "models": models,
        }


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a corpus: `build(folder, cache)` writes models; `version` changes whenever they would differ."""

    version: str
    build: Callable[[Path, Path], Lineage]
    tools: tuple[str, ...] = ()
    """Packages whose version the manifest records."""


def ready(name: str, recipe: Recipe, *, cache: Path) -> Corpus:
    """Return the corpus of a recipe, built if the cache has none of that version; raise CorpusError if it is broken."""
    root = cache / "corpora" / name.replace(":", "-")
    corpus = _read(name, root)
    if corpus is None or corpus.recipe != recipe.version:
        _build(name, recipe, root, cache)
        corpus = _read(name, root)
        assert corpus is not None
    _check(corpus)
    return corpus


def hash_file(path: Path) -> str:
    """Return the BLAKE3 of a file in hex."""
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def _read(name: str, root: Path) -> Corpus | None:
    """Return the corpus as its manifest describes it, or None if there is no manifest."""
    path = root / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        return Corpus(
            name,
            manifest["recipe"],
            root,
            tuple(_model(item) for item in manifest["models"]),
            manifest.get("made_with", {}),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{path} is not a manifest ({error!r}): delete {root}, and the corpus is built again."
        ) from error


def _model(item: Mapping[str, Any]) -> CorpusModel:
    files = tuple(CorpusFile(**file) for file in item["files"])
    return CorpusModel(item["name"], item["base"], files, item.get("second_parent"))


def _check(corpus: Corpus) -> None:
    """Raise CorpusError unless the files are exactly those of the manifest."""
    for model in corpus.models:
        top = corpus.path(model)
        found = {path for path in top.rglob("*") if path.is_file()}
        expected = {top / file.path: file for file in model.files}
        for path in sorted(found ^ expected.keys()):
            problem = "is missing" if path in expected else "is not in the manifest"
            raise CorpusError(_broken(path, problem, corpus))
        for path, file in expected.items():
            if path.stat().st_size != file.size or hash_file(path) != file.blake3:
                raise CorpusError(_broken(path, "is not what the manifest says", corpus))


def _broken(path: Path, problem: str, corpus: Corpus) -> str:
    return f"{path} {problem}: delete {corpus.root}, and the corpus is built again."


def _build(name: str, recipe: Recipe, root: Path, cache: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".building-") as scratch:
        folder = Path(scratch) / "corpus"
        (folder / "models").mkdir(parents=True)
        lineage = recipe.build(folder / "models", cache)
        models = tuple(_described(folder / "models" / model, parents) for model, parents in lineage.items())
        made_with = {tool: metadata.version(tool) for tool in recipe.tools}
        summary = Corpus(name, recipe.version, root, models, made_with).summary()
        (folder / "manifest.json").write_text(json.dumps(summary, indent=1) + "\n")
        shutil.rmtree(root, ignore_errors=True)
        os.replace(folder, root)


def _described(top: Path, parents: tuple[str, ...]) -> CorpusModel:
    """Return a model that was just written, with sizes and hashes."""
    paths = sorted(path for path in top.rglob("*") if path.is_file())
    files = tuple(
        CorpusFile(str(path.relative_to(top)), path.stat().st_size, hash_file(path)) for path in paths
    )
    base, second = (*parents, None, None)[:2]
    return CorpusModel(top.name, base, files, second)
