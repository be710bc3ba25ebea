"""The tree of a model, whose BLAKE3 is the model id, and the manifest that joins it to layouts."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casstore.digest import DIGEST_SIZE, digest
from casstore.errors import ConfigError, FormatError
from casstore.format import canonical, fields
from casstore.format.paths import check_paths

if TYPE_CHECKING:
    from typing_extensions import Buffer

TREE_VERSION = 1
MODEL_VERSION = 1
EMPTY_FILE_ID = digest(b"")


class Mode(enum.IntEnum):
    """What an entry of a tree is."""

    FILE = 0
    EXECUTABLE = 1
    EMPTY_DIRECTORY = 2


_MODES = frozenset(int(mode) for mode in Mode)


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One file, or one empty directory (`size` 0 and the id of no bytes)."""

    path: str
    mode: Mode
    size: int
    file_id: bytes


@dataclass(frozen=True, slots=True)
class Tree:
    """The entries of a model in the order of their paths' UTF-8 bytes."""

    entries: tuple[TreeEntry, ...]

    @property
    def files(self) -> tuple[TreeEntry, ...]:
        """The entries that are files."""
        return tuple(entry for entry in self.entries if entry.mode != Mode.EMPTY_DIRECTORY)

    @property
    def size(self) -> int:
        """Plain bytes of all files."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """A tree's id (the model id) and one layout id for each file, in the tree's order."""

    model_id: bytes
    layouts: tuple[bytes, ...]
    extra: dict[str, Any] = field(default_factory=dict)


def make_tree(entries: list[TreeEntry]) -> Tree:
    """Sort and check entries; raise ConfigError for paths that no tree may hold."""
    check_paths(entry.path for entry in entries)
    return Tree(tuple(sorted(entries, key=lambda entry: entry.path.encode())))


def encode_tree(tree: Tree) -> bytes:
    """Return the canonical bytes of a tree; their BLAKE3 is the model id."""
    rows = [[entry.path, int(entry.mode), entry.size, entry.file_id] for entry in tree.entries]
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
        # Invariant 4: a tree from elsewhere is untrusted; an unsafe path is damage, not a setting.
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
        }
    )
    fields.check_readable(data, decode_model, kind="model")
    return data


def decode_model(data: Buffer) -> ModelManifest:
    """Read a model manifest; raise FormatError if it is none."""
    value = fields.decode_map(data, kind="model", version=MODEL_VERSION)
    model_id = fields.optional_id(value, "tree", kind="model")
    if model_id is None:
        raise FormatError("A model manifest does not name its tree.")
    layouts = fields.split_ids(fields.field(value, "layouts", bytes, kind="model"), kind="model")
    known = frozenset({"type", "version", "requires", "tree", "layouts"})
    return ModelManifest(model_id, tuple(layouts), fields.unknown_keys(value, known))


def _entry(item: Any) -> TreeEntry:
    match item:
        case [str(path), int(mode), int(size), bytes(file_id)] if (
            type(mode) is int
            and type(size) is int
            and mode in _MODES
            and len(file_id) == DIGEST_SIZE
            and (size == 0) == (file_id == EMPTY_FILE_ID)
            and 0 <= size < (1 if mode == Mode.EMPTY_DIRECTORY else 1 << 63)
        ):
            return TreeEntry(path, Mode(mode), size, file_id)
    raise FormatError("A tree holds an entry that is not one.")
