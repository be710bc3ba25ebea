"""Reading parts of a model without a checkout: a seekable file, one tensor as an array."""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from casstore.concurrency.buffers import BLOCK, new_buffer
from casstore.concurrency.workers import TaskGroup
from casstore.digest import DIGEST_SIZE
from casstore.errors import CasstoreError, ConfigError, FormatError, TensorNotFound
from casstore.format.spans import pack_spans
from casstore.objects import BaseCache, batches
from casstore.store.reading.model import some_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from casstore.format.layout import Layout, Span
    from casstore.objects import ChunkCache, ObjectStore, Piece
    from casstore.store.reading.model import Model

_READ_AHEAD = 4 << 20
_KEPT_CHUNKS = 16
_ALIGNMENT = 16

_SHORT = 64 << 10
"""Bytes of the buffer of an open file. A read of this size may come from the buffer rather than from its reader."""

_IN_ORDER = 4
"""Adjoining reads after which a reader counts as reading in order: fetching a tensor through a buffer takes up to three."""


class Chunks(Protocol):
    """The bytes of one file, wherever they come from. For one thread at a time."""

    def read_into(self, out: memoryview, begin: int) -> int:
        """Fill `out` from byte `begin` of the file on, or a part of it; return the bytes read.

        All of `out` lies in the file, and is not empty. Every byte is verified (invariant 4).
        """

    def close(self) -> None:
        """Drop what is kept."""


class StoredFile(io.RawIOBase):
    """A file of a model, decoded chunk by chunk as it is read. For one thread at a time."""

    def __init__(self, layout: Layout, chunks: Chunks, *, name: str) -> None:
        super().__init__()
        self.name = name
        self.size = layout.size
        self._chunks = chunks
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset` from the start, the position or the end; return the new position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
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
        """Fill the caller's buffer from the position on, or a part of it; return the bytes read, 0 at the end."""
        out = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        if not out:
            return 0
        count = self._chunks.read_into(out, self._position)
        self._position += count
        return count

    def readall(self) -> bytes:
        """Return all bytes from the position on."""
        data = new_buffer(max(0, self.size - self._position))
        view = data
        while view:
            view = view[self.readinto(view) :]
        return bytes(data)

    def close(self) -> None:
        """Drop what is kept; nothing can be read afterwards."""
        if not self.closed:
            self._chunks.close()
        super().close()


class ModelFile(io.BufferedReader):
    """A file of a model, buffered. For one thread at a time."""

    raw: StoredFile

    def __init__(self, file: StoredFile) -> None:
        super().__init__(file, buffer_size=_SHORT)

    @property
    def size(self) -> int:
        """The file's length in bytes."""
        return self.raw.size


class NearChunks:
    """The chunks of a file in a store on this machine: reads ahead while it is read in order, keeps a few."""

    def __init__(self, layout: Layout, objects: ObjectStore) -> None:
        self._layout = layout
        self._objects = objects
        self._edges = layout.offsets()
        self._next_chunk = 0
        self._kept: OrderedDict[int, memoryview] = OrderedDict()
        self._bases = BaseCache()

    def read_into(self, out: memoryview, begin: int) -> int:
        """Copy chunk after chunk."""
        done = 0
        while done < len(out):
            number = int(np.searchsorted(self._edges, begin + done, side="right")) - 1
            chunk = self._chunk(number)
            start = begin + done - int(self._edges[number])
            count = min(len(out) - done, len(chunk) - start)
            out[done : done + count] = chunk[start : start + count]
            done += count
        return done

    def close(self) -> None:
        """Drop the chunks."""
        self._kept.clear()

    def _chunk(self, number: int) -> memoryview:
        if number not in self._kept:
            stop = number + 1
            if number == self._next_chunk:
                limit = int(self._edges[number]) + _READ_AHEAD
                stop = max(stop, int(np.searchsorted(self._edges, limit, side="right")) - 1)
            data = read_chunks(self._layout, self._objects, number, stop, bases=self._bases)
            begin = int(self._edges[number])
            for at in range(number, stop):
                self._kept[at] = data[int(self._edges[at]) - begin : int(self._edges[at + 1]) - begin]
            while len(self._kept) > max(_KEPT_CHUNKS, stop - number):
                self._kept.popitem(last=False)
            self._next_chunk = stop
        self._kept.move_to_end(number)
        return self._kept[number]


class ToldChunks:
    """The chunks of a file, and a function that adds to errors what the reader should know."""

    def __init__(self, chunks: Chunks, tell: Callable[[CasstoreError], None]) -> None:
        self._chunks = chunks
        self._tell = tell

    def read_into(self, out: memoryview, begin: int) -> int:
        """Read as the chunks do."""
        try:
            return self._chunks.read_into(out, begin)
        except CasstoreError as error:
            self._tell(error)
            raise

    def close(self) -> None:
        """Drop what is kept."""
        self._chunks.close()


class FarChunks:
    """The chunks of a file in a store that is a network away.

    Only chunks that are read are fetched, those of one read all at once. Once a file has been read in order for
    a while, what follows is fetched before it is asked for, as much as was read so far and at most its share of
    the cache. So the line is never idle, and a reader that stops has fetched at most twice what it read.
    """

    def __init__(self, layout: Layout, cache: ChunkCache) -> None:
        self._layout = layout
        self._cache = cache
        self._edges = layout.offsets()
        self._next = -1
        self._reads = 0
        self._run = 0
        self._ahead = 0

    def read_into(self, out: memoryview, begin: int) -> int:
        """Fetch what is not in the cache, and copy. A short read ends with the chunk that it begins in."""
        first = int(np.searchsorted(self._edges, begin, side="right")) - 1
        if len(out) <= _SHORT:
            # A buffer is filled for a few bytes of it: those of the next chunk may never be asked for.
            out = out[: int(self._edges[first + 1]) - begin]
        end = begin + len(out)
        stop = int(np.searchsorted(self._edges, end, side="left"))
        windows = self._windows(first, stop)
        pieces = self._request(*windows[0])
        self._look_ahead(begin, end)
        for at, window in enumerate(windows):
            following = self._request(*windows[at + 1]) if at + 1 < len(windows) else []
            for number, piece in zip(range(*window), pieces, strict=True):
                chunk = self._cache.wait(self._id(number), piece)
                origin = int(self._edges[number])
                if origin + len(chunk) != int(self._edges[number + 1]):
                    raise FormatError(
                        f"A layout gives another length to the chunk {self._id(number).hex()} than it has: "
                        "add the model again."
                    )
                low, high = max(begin, origin), min(end, origin + len(chunk))
                out[low - begin : high - begin] = chunk[low - origin : high - origin]
            pieces = following
        return len(out)

    def close(self) -> None:
        """Give this reader's share of the cache to the others."""
        self._cache.leave(self)

    def _id(self, number: int) -> bytes:
        return self._layout.ids[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]

    def _request(self, start: int, stop: int, *, ahead: bool = False) -> list[Piece]:
        return self._cache.request([self._id(number) for number in range(start, stop)], ahead=ahead)

    def _windows(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Divide chunks into runs of as many bytes as are asked for at once."""
        windows = []
        while first < stop:
            limit = int(self._edges[first]) + self._cache.window
            end = min(stop, max(first + 1, int(np.searchsorted(self._edges, limit, side="right")) - 1))
            windows.append((first, end))
            first = end
        return windows

    def _look_ahead(self, begin: int, end: int) -> None:
        if begin != self._next:
            self._cache.leave(self)
            self._reads = self._run = self._ahead = 0
        self._next = end
        self._reads += 1
        self._run += end - begin
        if self._reads < _IN_ORDER:
            return
        window = min(self._run, self._cache.share_of(self))
        self._ahead = max(self._ahead, end)
        limit = min(end + window, self._layout.size)
        # Half a share at a time: reading chunk by chunk would cost a request for each.
        if self._ahead < end + window // 2 and self._ahead < limit:
            start = int(np.searchsorted(self._edges, self._ahead, side="left"))
            stop = int(np.searchsorted(self._edges, limit, side="left"))
            if start < stop:
                # Invariant 11: a chunk that cannot be found is an error when it is read.
                with contextlib.suppress(CasstoreError):
                    self._request(start, stop, ahead=True)
                self._ahead = int(self._edges[stop])


def open_chunks(layout: Layout, objects: ObjectStore) -> Chunks:
    """Return the chunks of a file, wherever its store is."""
    return NearChunks(layout, objects) if objects.chunks is None else FarChunks(layout, objects.chunks)


def read_chunks(
    layout: Layout,
    objects: ObjectStore,
    start: int,
    stop: int,
    *,
    bases: BaseCache | None = None,
    alone: bool = False,
) -> memoryview:
    """Return the verified plain bytes of chunks [`start`, `stop`) in one fresh buffer; `bases` are of earlier calls.

    With `alone`, this thread does all of it, as a worker must: it may not wait for others.
    """
    edges = layout.offsets()[start : stop + 1]
    marks = (edges - edges[0]).tolist()
    buffer = new_buffer(marks[-1])
    located = objects.locate(layout.ids[start * DIGEST_SIZE : stop * DIGEST_SIZE])
    runs = list(batches(np.diff(marks).tolist(), BLOCK))
    if alone or len(runs) == 1:
        objects.fill(located, range(stop - start), buffer, marks, cache=bases)
        return buffer
    with TaskGroup() as tasks:
        kept = BaseCache() if bases is None else bases
        filled = [
            tasks.submit(objects.fill, located, run, buffer, marks[run.start : run.stop + 1], cache=kept)
            for run in runs
        ]
        for task in filled:
            task.result()
    return buffer


def read_range(chunks: Chunks, begin: int, end: int) -> memoryview:
    """Return bytes [`begin`, `end`) of a file, all of which lie in it, in fresh memory."""
    out = new_buffer(end - begin)
    done = 0
    while done < len(out):
        done += chunks.read_into(out[done:], begin + done)
    return out


def read_tensor(layout: Layout, objects: ObjectStore, *, tensor: str, path: str) -> NDArray[Any]:
    """Return one tensor of a file as an array of its shape, which the caller owns.

    bf16 and fp8 come as the types of ml_dtypes if that is installed, else as unsigned integers of their width;
    block-quantised types as raw bytes. Raises TensorNotFound if the file has no such tensor.
    """
    # With it come the parsers of all formats, which every command would load at its start.
    from casstore.tensors.dtypes import as_array, labelled  # noqa: PLC0415

    span = _find_span(layout, tensor, path)
    return labelled(as_array(_read_span(layout, objects, span), span.dtype, span.shape), span.dtype)


def find_tensor(model: Model, tensor: str) -> str:
    """Return the path of the file that holds a tensor.

    Raises TensorNotFound if none does, ConfigError if several do.
    """
    holders = [
        entry.path
        for entry, layout in zip(model.tree.files, model.layouts, strict=True)
        if (spans := pack_spans(layout.spans)) and spans.find(tensor) is not None
    ]
    if len(holders) > 1:
        raise ConfigError(
            f"{len(holders)} files of {model.ref} have a tensor {tensor!r}: {some_of(holders)}. Say which one with `file=`."
        )
    if not holders:
        raise TensorNotFound(
            f"{model.ref} has no tensor {tensor!r}. `Store.tensors` lists those that it has."
        )
    return holders[0]


def read_part(
    layout: Layout,
    objects: ObjectStore,
    begin: int,
    end: int,
    *,
    bases: BaseCache | None = None,
    alone: bool = False,
) -> memoryview:
    """Return bytes [`begin`, `end`) of a file, all of which lie in it; the chunks that they lie in are read at once.

    The memory may hold what surrounds them as well, up to the ends of those chunks. The options are those of `read_chunks`.
    """
    if objects.chunks is not None:
        return read_range(FarChunks(layout, objects.chunks), begin, end)
    edges = layout.offsets()
    start = int(np.searchsorted(edges, begin, side="right")) - 1
    stop = int(np.searchsorted(edges, end, side="left"))
    skipped = begin - int(edges[start])
    part = read_chunks(layout, objects, start, stop, bases=bases, alone=alone)
    return part[skipped : skipped + end - begin]


def _read_span(layout: Layout, objects: ObjectStore, span: Span) -> Buffer:
    if span.end == span.begin:
        return bytearray()
    data = read_part(layout, objects, span.begin, span.end)
    if np.frombuffer(data, np.uint8).ctypes.data % _ALIGNMENT:
        data = memoryview(bytearray(data))  # an array that is not aligned to its elements is slow everywhere
    return data


def _find_span(layout: Layout, tensor: str, path: str) -> Span:
    spans = pack_spans(layout.spans)
    found = spans.find(tensor) if spans else None
    if found is not None:
        return found
    if not spans:
        raise TensorNotFound(f"{path} has no tensors that casstore recognises. Read it with open_file.")
    some = some_of([span.name for span in spans])
    raise TensorNotFound(f"{path} has no tensor {tensor!r}; it has {len(spans)}: {some}.")
