"""Describes what a model consists of and what storing it costs. Reads no chunk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from casstore.ops.delta_bases import DeltaShare, describe_deltas
from casstore.ops.encoding_names import encoding_name
from casstore.store.reading.model import Recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.format.layout import Layout, Span
    from casstore.format.manifest import TreeEntry
    from casstore.format.record import Record
    from casstore.objects import Located
    from casstore.store.model_store import ModelStore

__all__ = ["EncodingShare", "FileDescription", "ModelDescription", "describe"]


@dataclass(frozen=True, slots=True)
class EncodingShare:
    """Distinct chunks that are stored in one encoding: their number, plain bytes, and stored bytes."""

    encoding: str
    chunks: int
    bytes_plain: int
    bytes_stored: int


@dataclass(frozen=True, slots=True)
class FileDescription:
    """One file: `chunks` counts those that recur each time, `encodings` and `bytes_stored` each chunk once."""

    path: str
    executable: bool
    file_id: str
    size: int
    chunks: int
    encodings: tuple[EncodingShare, ...]
    tensors: Sequence[Span]

    @property
    def bytes_stored(self) -> int:
        """Bytes that this file's chunks take, whoever else uses them."""
        return sum(share.bytes_stored for share in self.encodings)


@dataclass(frozen=True, slots=True)
class ModelDescription(Recorded):
    """A model: `ref` names it since `time`; `encodings` counts each chunk of the whole model once.

    `deltas` says what its deltas rest on, None if it has none.
    """

    model_id: str
    record: Record = field(repr=False)
    files: tuple[FileDescription, ...]
    empty_directories: tuple[str, ...]
    encodings: tuple[EncodingShare, ...]
    deltas: DeltaShare | None = None

    @property
    def size(self) -> int:
        """Plain bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def bytes_stored(self) -> int:
        """Bytes that the model's chunks take, whichever models share them."""
        return sum(share.bytes_stored for share in self.encodings)

    @property
    def chunks(self) -> int:
        """Number of chunks of all files; repeated ones are counted each time."""
        return sum(file.chunks for file in self.files)

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors there are of each element type, the most frequent first."""
        return dict(Counter(span.dtype for file in self.files for span in file.tensors).most_common())


def describe(store: ModelStore, ref_or_id: str) -> ModelDescription:
    """Describe a model. Raises RefNotFound, or MissingObject if a chunk of it is gone."""
    model = store.model(ref_or_id)
    located = store.objects.locate(b"".join(layout.ids for layout in model.layouts))
    files: list[FileDescription] = []
    in_model: dict[bytes, int] = {}
    start = 0
    for entry, layout in zip(model.tree.files, model.layouts, strict=True):
        in_file = {chunk_id: start + at for at, chunk_id in enumerate(layout.chunk_ids())}
        executable = entry.path in model.executable
        files.append(_file(entry, layout, _shares(located, in_file), executable=executable))
        in_model.update(in_file)
        start += layout.chunks
    return ModelDescription(
        model_id=model.model_id,
        record=model.record,
        files=tuple(files),
        empty_directories=model.tree.empty,
        encodings=_shares(located, in_model),
        deltas=describe_deltas(store, model.record, located),
    )


def _file(
    entry: TreeEntry, layout: Layout, encodings: tuple[EncodingShare, ...], *, executable: bool
) -> FileDescription:
    return FileDescription(
        path=entry.path,
        executable=executable,
        file_id=layout.file_id.hex(),
        size=entry.size,
        chunks=layout.chunks,
        encodings=encodings,
        tensors=layout.spans,
    )


def _shares(located: Located, positions: dict[bytes, int]) -> tuple[EncodingShare, ...]:
    """Sum up by encoding the rows at one position of each chunk."""
    rows = located.rows[list(positions.values())]
    shares = []
    for code in np.flatnonzero(np.bincount(rows["encoding"])).tolist():
        chosen = rows[rows["encoding"] == code]
        plain, stored = int(chosen["raw"].sum(dtype=np.int64)), int(chosen["stored"].sum(dtype=np.int64))
        shares.append(EncodingShare(encoding_name(code), len(chosen), plain, stored))
    return tuple(shares)
