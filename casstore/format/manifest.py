"""The tree of a model, whose BLAKE3 is the model id, and the manifest that joins it to layouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.digest import DIGEST_SIZE, digest
from casstore.errors import ConfigError, FormatError
from casstore.format import canonical, fields
from casstore.format.paths import check_paths

if TYPE_CHECKING:
    from typing_extensions import Buffer

TREE_VERSION = 1
MODEL_VERSION = 1
EMPTY_FILE_ID = digest(b"")


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One file, or one empty directory: those have size 0 and no file id."""

    path: str
    size: int
    file_id: bytes | None

    @property
    def is_file(self) -> bool:
        """Whether this is a file, not an empty directory."""
        return self.file_id is not None


@dataclass(frozen=True, slots=True)
class Tree:
    """The entries of a model in the order of their paths' UTF-8 bytes."""

    entries: tuple[TreeEntry, ...]

    @property
    def files(self) -> tuple[TreeEntry, ...]:
        """The entries that are files."""
        return tuple(entry for entry in self.entries if entry.is_file)

    @property
    def empty(self) -> tuple[str, ...]:
        """The paths of the empty directories."""
        return tuple(entry.path for entry in self.entries if not entry.is_file)

    @property
    def size(self) -> int:
        """Plain bytes of all files."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """A tree's id (the model id) and one layout id for each file, in the tree's order.

    `executable` are the positions, among those files, of the executable ones, in ascending order. They are not
    part of the model id, since some file systems invent the bit.
    """

    model_id: bytes
    layouts: tuple[bytes, ...]
    executable: tuple[int, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def make_tree(entries: list[TreeEntry]) -> Tree:
    """Sort and check entries; raise ConfigError for paths that no tree may hold."""
    check_paths(entry.path for entry in entries)
    return Tree(tuple(sorted(entries, key=lambda entry: entry.path.encode())))


def encode_tree(tree: Tree) -> bytes:
    """Return the canonical bytes of a tree; their BLAKE3 is the model id."""
    rows = [[entry.path, entry.size, entry.file_id] for entry in tree.entries]
    return canonical.encode({"type": "tree", "version": TREE_VERSION, "entries": rows})


def decode_tree(data: Buffer) -> Tree:
    """Read a tree; raise FormatError unless a checkout of it is safe and its order is canonical."""
    value = fields.decode_map(data, kind="tree", version=TREE_VERSION)
    if value.keys() - {"type", "version", "requires", "entries"}:
        raise FormatError("A tree holds keys that do not belong to it.")
    entries = [_entry(item) for item in fields.field(value, "entries", list, kind="tree")]
    try:
        tree = make_tree(entries)
    except ConfigError as error:
        # Invariant 4: a tree from elsewhere is untrusted; an unsafe path counts as damage, not as a wrong argument.
        raise FormatError(f"A tree cannot be checked out: {error}") from error
    if tree.entries != tuple(entries):
        raise FormatError("The entries of a tree are not in order.")
    return tree


def encode_model(manifest: ModelManifest) -> bytes:
    """Return the canonical bytes of a model manifest; raise ConfigError if `decode_model` would refuse them."""
    data = canonical.encode(
        {
            **manifest.extra,
            "type": "model",
            "version": MODEL_VERSION,
            "tree": manifest.model_id,
            "layouts": b"".join(manifest.layouts),
            "executable": np.array(manifest.executable, "<u4").tobytes(),
        }
    )
    fields.check_readable(data, decode_model, kind="model")
    return data


def decode_model(data: Buffer) -> ModelManifest:
    """Read a model manifest; raise FormatError for anything else."""
    value = fields.decode_map(data, kind="model", version=MODEL_VERSION)
    model_id = fields.optional_id(value, "tree", kind="model")
    if model_id is None:
        raise FormatError("A model manifest does not name its tree.")
    layouts = fields.split_ids(fields.field(value, "layouts", bytes, kind="model"), kind="model")
    executable = _positions(fields.field(value, "executable", bytes, kind="model"), files=len(layouts))
    known = frozenset({"type", "version", "requires", "tree", "layouts", "executable"})
    return ModelManifest(model_id, tuple(layouts), executable, fields.unknown_keys(value, known))


def _positions(data: bytes, *, files: int) -> tuple[int, ...]:
    if len(data) % 4:
        raise FormatError(
            "The list of executable files in a model manifest does not have a whole number of entries."
        )
    positions = np.frombuffer(data, "<u4")
    if len(positions) and (int(positions[-1]) >= files or (positions[1:] <= positions[:-1]).any()):
        raise FormatError("The executable files in a model manifest are not in order, or do not exist.")
    return tuple(positions.tolist())


def _entry(item: Any) -> TreeEntry:
    match item:
        case [str(path), 0, None] if type(item[1]) is int:
            return TreeEntry(path, 0, None)
        case [str(path), int(size), bytes(file_id)] if (
            type(size) is int
            and 0 <= size < 1 << 63
            and len(file_id) == DIGEST_SIZE
            and (size == 0) == (file_id == EMPTY_FILE_ID)
        ):
            return TreeEntry(path, size, file_id)
    raise FormatError("A tree holds an invalid entry.")
