"""Reading parts of a model without a checkout: a seekable file, one tensor as an array."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.errors import ConfigError
from casstore.store.buffers import BLOCK, new_buffer
from casstore.store.workers import TaskGroup
from casstore.tensors.dtypes import as_array

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from casstore.format.layout import Layout, Span
    from casstore.store.objects import ObjectReader

_READ_AHEAD = 4 << 20
_KEPT_CHUNKS = 16
_ALIGNMENT = 16


class StoredFile(io.RawIOBase):
    """A file of a model, decoded chunk by chunk as it is read; every byte verified (invariant 4).

    Reads ahead while it is read in order, and keeps a few chunks. For one thread at a time.
    """

    def __init__(self, layout: Layout, reader: ObjectReader, *, name: str) -> None:
        super().__init__()
        self.name = name
        self._layout = layout
        self._reader = reader
        self._edges = layout.offsets()
        self._position = 0
        self._next_chunk = 0
        self._kept: OrderedDict[int, memoryview] = OrderedDict()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset` from the start, the position or the end; return the new position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._layout.size}
        if whence not in start:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        position = start[whence] + offset
        if position < 0:
            raise ValueError(f"cannot seek to {position}, before the start of {self.name}")
        self._position = position
        return position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Fill the caller's buffer from the position on; return the bytes read, 0 at the end."""
        out = memoryview(buffer).cast("B")
        done = 0
        while done < len(out) and self._position < self._layout.size:
            number = int(np.searchsorted(self._edges, self._position, side="right")) - 1
            chunk = self._chunk(number)
            start = self._position - int(self._edges[number])
            count = min(len(out) - done, len(chunk) - start)
            out[done : done + count] = chunk[start : start + count]
            done += count
            self._position += count
        return done

    def _chunk(self, number: int) -> memoryview:
        if number not in self._kept:
            stop = number + 1
            if number == self._next_chunk:
                limit = int(self._edges[number]) + _READ_AHEAD
                stop = max(stop, int(np.searchsorted(self._edges, limit, side="right")) - 1)
            data = read_chunks(self._layout, self._reader, number, stop)
            begin = int(self._edges[number])
            for at in range(number, stop):
                self._kept[at] = data[int(self._edges[at]) - begin : int(self._edges[at + 1]) - begin]
            while len(self._kept) > max(_KEPT_CHUNKS, stop - number):
                self._kept.popitem(last=False)
            self._next_chunk = stop
        self._kept.move_to_end(number)
        return self._kept[number]


def read_chunks(layout: Layout, reader: ObjectReader, start: int, stop: int) -> memoryview:
    """Return the verified plain bytes of chunks [`start`, `stop`) in one fresh buffer."""
    edges = layout.offsets()[start : stop + 1]
    marks = (edges - edges[0]).tolist()
    buffer = new_buffer(marks[-1])
    located = reader.locate(layout.ids[start * DIGEST_SIZE : stop * DIGEST_SIZE])
    batches = _batches(marks)
    if len(batches) == 1:
        reader.fill(located, range(len(marks) - 1), buffer, marks)
        return buffer
    with TaskGroup() as tasks:
        filled = [
            tasks.submit(reader.fill, located, range(begin, end), buffer, marks[begin : end + 1])
            for begin, end in batches
        ]
        for task in filled:
            task.result()
    return buffer


def read_tensor(layout: Layout, reader: ObjectReader, *, tensor: str, path: str) -> NDArray[Any]:
    """Return one tensor of a file as an array of its shape, which the caller owns.

    bf16 and fp8 come as unsigned integers of their width, block-quantised types as raw bytes. Raises
    ConfigError if the file has no such tensor.
    """
    span = _find_span(layout, tensor, path)
    if span.end == span.begin:
        return as_array(bytearray(), span.dtype, span.shape)
    edges = layout.offsets()
    start = int(np.searchsorted(edges, span.begin, side="right")) - 1
    stop = int(np.searchsorted(edges, span.end, side="left"))
    begin = span.begin - int(edges[start])
    data = read_chunks(layout, reader, start, stop)[begin : begin + span.end - span.begin]
    if begin % _ALIGNMENT:
        data = memoryview(bytearray(data))  # an array that is not aligned to its elements is slow everywhere
    return as_array(data, span.dtype, span.shape)


def _find_span(layout: Layout, tensor: str, path: str) -> Span:
    for span in layout.spans:
        if span.name == tensor:
            return span
    if not layout.spans:
        raise ConfigError(f"{path} has no tensors that casstore knows. Read it with open_file.")
    some = ", ".join(span.name for span in layout.spans[:5])
    raise ConfigError(f"{path} has no tensor {tensor!r}; it has {len(layout.spans)}: {some}, …")


def _batches(marks: list[int]) -> list[tuple[int, int]]:
    """Split chunks that end at `marks` into runs of about BLOCK bytes."""
    batches = []
    begin = 0
    for at in range(1, len(marks)):
        if marks[at] - marks[begin] >= BLOCK or at == len(marks) - 1:
            batches.append((begin, at))
            begin = at
    return batches
