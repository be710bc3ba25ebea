"""Writes one file of a model, verified, to a place of any name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from casstore.errors import ConfigError
from casstore.format.manifest import Tree, TreeEntry
from casstore.format.paths import check_path
from casstore.store.checkout.checkout import Checkout

if TYPE_CHECKING:
    from fsspec import Callback

    from casstore.objects import ObjectStore
    from casstore.store.reading.model import Model


def write_file(
    model: Model,
    path: str,
    dest: str | os.PathLike[str],
    reader: ObjectStore,
    *,
    force: bool,
    callback: Callback | None,
) -> str:
    """Write the file at `path` of a model to `dest`, or into it if that is a folder or ends with "/"; return where it is.

    Folders above are made. Raises PathNotFound if the model has no such file, ConfigError for a file that is there
    already, unless `force` replaces it, and as Checkout does.
    """
    layout = model.layout(path)
    place = os.fspath(dest)
    if os.path.isdir(place) or place.endswith(os.sep):
        place = os.path.join(place, path.rpartition("/")[2])
    folder, name = os.path.split(os.path.abspath(place))
    check_path(name)
    if os.path.lexists(place) and not force:
        raise ConfigError(f"{place} is there already. Give another path, or replace it with `force=True`.")
    checkout = Checkout(folder, force=True, callback=callback)  # into a folder that may hold other files
    executable = frozenset([name] if path in model.executable else [])
    tree = Tree((TreeEntry(name, layout.size, layout.file_id),))
    checkout.run(tree, (layout,), reader, executable=executable)
    return place
