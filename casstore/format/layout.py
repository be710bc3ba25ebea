"""A layout: how one file is cut into chunks, and which tensors lie where in it. Not identity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.errors import ConfigError, FormatError
from casstore.format import canonical, fields
from casstore.format.rows import MAX_CHUNK, MAX_OBJECT
from casstore.format.spans import Span, pack_spans, unpack_spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

__all__ = ["VERSION", "Layout", "Span", "decode", "encode"]

VERSION = 1
_KIND = "layout"
_KNOWN = frozenset({"type", "version", "requires", "cut", "file", "size", "ids", "lengths", "spans"})


@dataclass(frozen=True, slots=True)
class Layout:
    """How one file is cut.

    `cut` is the version of the chunking rule, `file_id` the BLAKE3 of the whole file, `size` its bytes;
    `ids` joins the chunk ids, `lengths` their bytes in the same order. `spans` are the tensors.
    """

    file_id: bytes
    size: int
    ids: bytes
    lengths: NDArray[np.uint32]
    spans: Sequence[Span] = ()
    cut: int = 1
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self.lengths)

    def chunk_ids(self) -> list[bytes]:
        """Return the chunk ids in file order."""
        return fields.split_ids(self.ids, kind=_KIND)

    def offsets(self) -> NDArray[np.int64]:
        """Return where each chunk starts in the file, and the file's size as the last element."""
        edges = np.zeros(len(self.lengths) + 1, np.int64)
        np.cumsum(self.lengths, out=edges[1:])
        return edges


def encode(layout: Layout) -> bytes:
    """Return the canonical bytes of a layout; its BLAKE3 is the layout id.

    Raises ConfigError for a layout that `decode` would refuse, or that is too large for an object.
    """
    packed = pack_spans(layout.spans)
    try:
        _check(layout)
        if packed:
            packed.check(layout.size)
    except FormatError as error:
        # Invariant 14: what a reader refuses is never written.
        raise ConfigError(f"This layout cannot be stored: {error}") from error
    data = canonical.encode(
        {
            **layout.extra,
            "type": _KIND,
            "version": VERSION,
            "cut": layout.cut,
            "file": layout.file_id,
            "size": layout.size,
            "ids": layout.ids,
            "lengths": layout.lengths.astype("<u4").tobytes(),
            "spans": packed.fields() if packed else None,
        }
    )
    if len(data) > MAX_OBJECT:
        raise ConfigError(
            f"The layout of a file of {layout.size} bytes takes {len(data)}: {MAX_OBJECT >> 20} MiB is the limit."
        )
    return data


def decode(data: Buffer) -> Layout:
    """Read a layout; raise FormatError unless its chunks make up exactly its size."""
    value = fields.decode_map(data, kind=_KIND, version=VERSION)
    file_id = fields.optional_id(value, "file", kind=_KIND)
    size = fields.field(value, "size", int, kind=_KIND)
    ids = fields.field(value, "ids", bytes, kind=_KIND)
    packed = fields.field(value, "lengths", bytes, kind=_KIND)
    if file_id is None:
        raise FormatError("A layout does not name its file.")
    if "spans" not in value:
        raise FormatError("A layout does not say which tensors its file has.")
    if len(ids) % DIGEST_SIZE or len(packed) * (DIGEST_SIZE // 4) != len(ids):
        raise FormatError("A layout must have as many lengths as ids.")
    layout = Layout(
        file_id=file_id,
        size=size,
        ids=ids,
        lengths=np.frombuffer(packed, "<u4"),
        spans=unpack_spans(value["spans"], size),
        cut=fields.field(value, "cut", int, kind=_KIND),
        extra=fields.unknown_keys(value, _KNOWN),
    )
    _check(layout)
    return layout


def _check(layout: Layout) -> None:
    """Raise FormatError unless the chunks make up the file; for writers and readers."""
    lengths, size = layout.lengths, layout.size
    if len(layout.file_id) != DIGEST_SIZE or len(layout.ids) != DIGEST_SIZE * len(lengths):
        raise FormatError("A layout must have as many lengths as ids, and name its file.")
    if (lengths == 0).any() or (lengths > MAX_CHUNK).any() or int(lengths.sum(dtype=np.int64)) != size:
        raise FormatError("The chunks of a layout do not make up its file.")
