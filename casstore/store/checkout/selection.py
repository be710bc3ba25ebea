"""Which files of a model are wanted: patterns as huggingface_hub has them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from casstore.errors import PathNotFound
from casstore.format.manifest import Tree
from casstore.store.reading.model import some_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.format.layout import Layout
    from casstore.store.reading.model import Model

    Patterns = str | Sequence[str]


def select_files(
    model: Model, include: Patterns | None, exclude: Patterns | None
) -> tuple[Tree, tuple[Layout, ...]]:
    """Return the part of a model's tree that is wanted, with the layouts of its files.

    A file is wanted if one of `include`, by default all, matches its path and none of `exclude` does. Patterns are
    those of `fnmatch`: `*` matches `/` as well, and "logs/" means all below that folder. Raises PathNotFound if no
    file is left of a model that has some.
    """
    if include is None and exclude is None:
        return model.tree, model.layouts
    wanted = ["*"] if include is None else _patterns(include)
    unwanted = [] if exclude is None else _patterns(exclude)

    def is_wanted(path: str) -> bool:
        return _matches(path, wanted) and not _matches(path, unwanted)

    files = model.tree.files
    positions = [at for at, entry in enumerate(files) if is_wanted(entry.path)]
    if files and not positions:
        some = some_of([entry.path for entry in files])
        raise PathNotFound(f"No file of {model.ref} matches these patterns; it has {len(files)}: {some}.")
    tree = Tree(tuple(entry for entry in model.tree.entries if is_wanted(entry.path)))
    return tree, model.layouts_at(positions)


def _patterns(given: Patterns) -> list[str]:
    listed = [given] if isinstance(given, str) else given
    return [f"{pattern}*" if pattern.endswith("/") else pattern for pattern in listed]


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
