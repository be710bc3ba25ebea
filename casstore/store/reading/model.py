"""A model as the store keeps it. Its tree is read at once, layouts only on request, since a model may have many files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casstore.errors import FormatError, PathNotFound
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.store.times import utc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from casstore.backend.base import Backend
    from casstore.format.layout import Layout
    from casstore.format.manifest import Tree, TreeEntry
    from casstore.format.record import Record
    from casstore.objects import ObjectStore

_READ_ALONG = 256
"""Number of layouts that are read along with the tree to save a round trip."""

_READ_AT_ONCE = 1024


class ModelLayouts:
    """How each file of one model is cut, read from its store as needed. Safe in threads."""

    def __init__(
        self, files: tuple[TreeEntry, ...], ids: tuple[bytes, ...], objects: ObjectStore, name: str
    ) -> None:
        self._files = files
        self._ids = ids
        self._objects = objects
        self._name = name
        self._positions: dict[str, int] | None = None
        self._plain: dict[int, bytes] = {}
        self._known: dict[int, Layout] = {}

    def hold(self, plain: Sequence[bytes]) -> None:
        """Take the bytes of every layout, if they were read along with something else."""
        self._plain = dict(enumerate(plain))

    def of(self, path: str) -> Layout | None:
        """Return the layout of one file, None if there is no such file."""
        if self._positions is None:
            self._positions = {entry.path: at for at, entry in enumerate(self._files)}
        at = self._positions.get(path)
        return self.at([at])[0] if at is not None else None

    def at(self, positions: Sequence[int]) -> tuple[Layout, ...]:
        """Return the layouts of the files at some positions of the tree's."""
        missing = [at for at in positions if at not in self._known]
        for begin in range(0, len(missing), _READ_AT_ONCE):
            self._read(missing[begin : begin + _READ_AT_ONCE])
        return tuple(self._known[at] for at in positions)

    def _read(self, wanted: list[int]) -> None:
        held = {at: self._plain.pop(at, None) for at in wanted if at not in self._known}
        unread = [at for at, plain in held.items() if plain is None]
        found = self._objects.read_many([self._ids[at] for at in unread]) if unread else []
        for at, plain in (held | dict(zip(unread, found, strict=True))).items():
            layout = layout_format.decode(plain or b"")
            if (layout.file_id, layout.size) != (self._files[at].file_id, self._files[at].size):
                raise _unfit(self._name)
            self._known[at] = layout


def some_of(names: Sequence[str]) -> str:
    """Return the first few of these names, for an error message."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


class Recorded:
    """What the record says by which a model was found; `record` is it."""

    __slots__ = ()
    record: Record

    @property
    def ref(self) -> str:
        """The ref by which the model was found."""
        return self.record.name

    @property
    def base(self) -> str | None:
        """The id of the model that it was made from, None if nobody said so."""
        return self.record.base.hex() if self.record.base is not None else None

    @property
    def time(self) -> datetime:
        """When the ref got this value, by the clock of the machine that wrote it."""
        return utc(self.record.time)

    @property
    def metadata(self) -> dict[str, Any]:
        """What was said about it when it was added."""
        return self.record.metadata


@dataclass(frozen=True, slots=True)
class Model(Recorded):
    """A model as the store keeps it: its tree, and how each of `tree.files` is cut, in the same order.

    `ref` names it, `base` is the id of the model that it was made from. `executable` are the paths of the files that
    a checkout makes executable.
    Layouts that were not asked for before are read from the store, which must still be open, and may then raise
    MissingObject or another IntegrityError.
    """

    model_id: str
    tree: Tree = field(repr=False)
    layout_ids: tuple[bytes, ...] = field(repr=False)
    executable: frozenset[str] = field(repr=False)
    record: Record = field(repr=False)
    _layouts: ModelLayouts = field(repr=False, compare=False)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts of `tree.files`."""
        return self._layouts.at(range(len(self.layout_ids)))

    def layouts_at(self, positions: Sequence[int]) -> tuple[Layout, ...]:
        """Return the layouts of some of `tree.files`, by their positions."""
        return self._layouts.at(positions)

    def layout(self, path: str) -> Layout:
        """Return the layout of one file; raise PathNotFound if there is no such file."""
        layout = self._layouts.of(path)
        if layout is None:
            paths = [entry.path for entry in self.tree.files]
            raise PathNotFound(
                f"{self.record.name} has no file {path!r}; it has {len(paths)}: {some_of(paths)}."
            )
        return layout


def read_model(record: Record, manifest_id: bytes, *, objects: ObjectStore, backend: Backend) -> Model:
    """Read the model that `record` names; raises an IntegrityError for one that is damaged or incomplete."""
    manifest = manifest_format.decode_model(objects.read(manifest_id))
    along = manifest.layouts if backend.is_remote and len(manifest.layouts) <= _READ_ALONG else ()
    tree_data, *plain = objects.read_many([manifest.model_id, *along])
    tree = manifest_format.decode_tree(tree_data)
    files = tree.files
    if manifest.model_id != record.target or len(files) != len(manifest.layouts):
        raise _unfit(record.name)
    layouts = ModelLayouts(files, manifest.layouts, objects, record.name)
    if along:
        layouts.hold(plain)
    executable = frozenset(files[at].path for at in manifest.executable)
    return Model(manifest.model_id.hex(), tree, manifest.layouts, executable, record, layouts)


def _unfit(name: str) -> FormatError:
    return FormatError(f"The manifest of {name} does not fit its tree: add the model again.")
