"""Byte regrouping in numpy: runs of adjacent byte columns taken out of elements, and put back.

The specification of the compiled kernels, and their replacement where there are none (see kernels.py).

An element is `stride` bytes; a run is the same `count` adjacent bytes of every element, kept next to each
other. Widths 2 and 4 go through integer shifts, which numpy vectorises; a strided byte copy moves one byte at
a time and is 2 to 3 times slower. Every numpy call releases the GIL and takes it back, and that is where threads
wait for one another; so calls are few: they shift and narrow, or widen and shift, at once. (Numpy multiplies 16-bit
words faster than it shifts them, and 32-bit ones slower.) All integers are little-endian on every host.

The sign transform (stride 2 or 4) moves the sign of a bfloat16 or float32 out of the exponent's byte: of the
top 16 bits `s eeeeeeee mmmmmmm`, the top byte becomes `eeeeeeee` and the one below `smmmmmmm`. The sign is
noise; inside the exponent's byte it costs a bit and pushes out the exponent's lowest one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    U8 = NDArray[np.uint8]
    Words = np.ndarray[Any, np.dtype[Any]]

__all__ = ["Columns", "PlacedRun", "equal", "merge_runs", "merges_to", "repeats", "scratch"]

_U16: np.dtype[Any] = np.dtype("<u2")
_WORD: dict[int, np.dtype[Any]] = {2: _U16, 4: np.dtype("<u4"), 8: np.dtype("<u8")}

_KEPT = 5 << 20
"""Scratch up to this many bytes, a little more than is encoded at once, stays with its thread."""


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.memory: dict[str, U8] = {}


_scratch = _Scratch()


def scratch(purpose: str, size: int) -> U8:
    """Return `size` bytes with unspecified content, the calling thread's until it asks for `purpose` again.

    Fresh memory for every chunk would cost as much in page faults as the work done in it.
    """
    if size > _KEPT:
        return np.empty(size, np.uint8)
    memory = _scratch.memory.get(purpose)
    if memory is None:
        memory = _scratch.memory[purpose] = np.empty(_KEPT, np.uint8)
    return memory[:size]


def _items(body: U8, stride: int, start: int, count: int) -> Words:
    """View the run inside `body` as one strided item per element, without a copy."""
    dtype = _WORD.get(count) or np.dtype((np.void, count))
    return np.ndarray((len(body) // stride,), dtype, body, start, (stride,))


class Columns:
    """The columns of `body`, a whole number of elements, which is only read.

    With `sign` the elements are sign-transformed first: `stride` is 2 or 4, and the two top columns are taken
    one by one. One at a time per thread: it works in the thread's scratch.
    """

    def __init__(self, body: U8, *, stride: int, sign: bool) -> None:
        # Numpy is half as fast on unaligned integers.
        aligned = stride not in {2, 4} or body.view(f"<u{stride}").flags.aligned
        self._body = body if aligned else body.copy()
        self._stride = stride
        self._sign = sign
        self._elements = len(body) // stride
        self._tops: Words | None = None

    def take(self, start: int, count: int, out: U8) -> None:
        """Write bytes [start, start+count) of each element to `out`, element after element.

        `out` is contiguous and as long as that takes.
        """
        if self._stride == 4 and start == 0 and count <= 2:
            words = self._body.view(_WORD[4])
            np.copyto(out.view(_U16) if count == 2 else out, words, casting="unsafe")
        elif count == 1 and self._stride == 2:
            self._take_byte(self._body.view(_U16), start, sign=self._sign, out=out)
        elif count == 1 and self._stride == 4 and start >= 2 and self._sign:
            self._take_byte(self._top_halves(), start - 2, sign=True, out=out)
        elif count == 1 and self._stride == 4:
            np.right_shift(self._body.view(_WORD[4]), 8 * start, out=out, casting="unsafe")
        elif count == 1:
            np.copyto(out, self._body.reshape(-1, self._stride)[:, start])
        else:
            _items(out, count, 0, count)[...] = _items(self._body, self._stride, start, count)

    def _top_halves(self) -> Words:
        """Return the upper 16 bits of the 32-bit elements, in scratch."""
        if self._tops is None:
            self._tops = scratch("tops", 2 * self._elements).view(_U16)
            np.right_shift(self._body.view(_WORD[4]), 16, out=self._tops, casting="unsafe")
        return self._tops

    def _take_byte(self, words: Words, index: int, *, sign: bool, out: U8) -> None:
        """Write byte `index` of each 16-bit word, or of the sign-transformed word."""
        if index == 1:
            np.right_shift(words, 7 if sign else 8, out=out, casting="unsafe")
        elif not sign:
            np.copyto(out, words, casting="unsafe")
        else:
            # Of s0000000 0mmmmmmm, one multiplication puts a copy of the low byte into the high one.
            spread = scratch("spread", 2 * self._elements).view(_U16)
            np.bitwise_and(words, 0x807F, out=spread)
            np.multiply(spread, 0x101, out=spread)
            np.right_shift(spread, 8, out=out, casting="unsafe")


class PlacedRun(NamedTuple):
    """One run's place in the element and its plain bytes; a constant run has one item for all elements."""

    start: int
    columns: int
    data: U8
    constant: bool


def merge_runs(runs: Sequence[PlacedRun], *, stride: int, sign: bool, out: U8) -> None:
    """Write the elements that `runs` were taken from to `out`: the inverse of `Columns.take` for all of them.

    The runs are in column order and cover the stride; `out` is a whole number of elements. With `sign`, the
    last two runs are single columns.
    """
    if stride in {2, 4} and len(runs) > 1 and all(run.columns in {1, 2} for run in runs):
        _merge_words(runs, width=stride, sign=sign, out=out)
        return
    for run in runs:
        if run.constant:
            out.reshape(-1, stride)[:, run.start : run.start + run.columns] = run.data
        elif run.columns == 1:
            out.reshape(-1, stride)[:, run.start] = run.data
        else:
            _items(out, stride, run.start, run.columns)[...] = _words(run)


def merges_to(runs: Sequence[PlacedRun], *, stride: int, sign: bool, expected: U8) -> bool:
    """Say whether `merge_runs` would write `expected`."""
    merged = scratch("merged", len(expected))
    merge_runs(runs, stride=stride, sign=sign, out=merged)
    return equal(memoryview(merged), memoryview(expected))


def _words(run: PlacedRun) -> Words:
    """Return the run's items, one per element; a constant run has a single one, for broadcasting."""
    return run.data if run.columns == 1 else _items(run.data, run.columns, 0, run.columns)


def _merge_words(runs: Sequence[PlacedRun], *, width: int, sign: bool, out: U8) -> None:
    """Merge 16-bit or 32-bit elements from the top run down, by shifts."""
    elements = _items(out, width, 0, width)
    rest = list(runs)
    top: Words
    if rest[-1].columns == rest[-2].columns == 1:
        upper, lower = rest.pop().data, rest.pop().data
        # Half as wide is twice as fast: the upper 16 bits of 32 come together in scratch.
        top = scratch("tops", 2 * len(elements)).view(_U16) if width == 4 else elements
        _merge_halves(upper, lower, sign=sign, out=top)
    else:
        top = _words(rest.pop())
    while rest:
        run = rest.pop()
        # The first of these widens: it reads the top and writes whole elements.
        np.left_shift(top, 8 * run.columns, out=elements, dtype=elements.dtype)
        np.bitwise_or(elements, _words(run), out=elements)
        top = elements


def _merge_halves(upper: U8, lower: U8, *, sign: bool, out: Words) -> None:
    """Merge the two top bytes of each element, sign-transformed or not, to 16 bits."""
    if not sign:
        np.multiply(upper, 1 << 8, out=out, dtype=_U16)
        np.bitwise_or(out, lower, out=out)
        return
    spread = scratch("spread", 2 * len(out)).view(_U16)
    # One multiplication puts a copy of smmmmmmm eight bits higher: the mask leaves the sign of the copy.
    np.multiply(lower, 0x101, out=spread, dtype=_U16)
    np.bitwise_and(spread, 0x807F, out=spread)
    np.multiply(upper, 1 << 7, out=out, dtype=_U16)
    np.bitwise_or(out, spread, out=out)


def equal(one: memoryview, other: memoryview) -> bool:
    """Say whether two buffers hold the same bytes."""
    words = len(one) & ~7
    return np.array_equal(
        np.frombuffer(one[:words], np.uint64), np.frombuffer(other[:words], np.uint64)
    ) and bytes(one[words:]) == bytes(other[words:])


def repeats(data: U8, period: int) -> bool:
    """Say whether the first `period` bytes, over and over, are all of `data`, which is a multiple of them."""
    return data[0] == data[-period] and bool((data.reshape(-1, period) == data[:period]).all())
