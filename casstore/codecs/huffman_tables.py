"""Huffman codes of bytes, and how a zstd frame describes them (RFC 8878, section 4.2): the twin of `native/huffman.c`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["MAX_DIRECT", "HuffmanTable", "make_table"]

MAX_DIRECT = 128
"""More weights than this must be compressed (4.2.1.1)."""

_MAX_BITS = 11
"""The longest code of a literal (4.2.1)."""

_STATES_LOG = 6
_STATES = 1 << _STATES_LOG
_WEIGHTS = _MAX_BITS + 2


class HuffmanTable(NamedTuple):
    """The code of each byte, its length, 0 for one that does not occur, and the description, None if there is none."""

    bits: NDArray[np.uint8]
    codes: NDArray[np.uint64]
    head: bytes | None


class _Bits:
    """Bits from the lowest of each byte on."""

    def __init__(self) -> None:
        self._value = 0
        self._count = 0

    def add(self, value: int, count: int) -> None:
        self._value |= value << self._count
        self._count += count

    def to_bytes(self) -> bytes:
        return self._value.to_bytes(-(-self._count // 8), "little")


def make_table(counts: NDArray[np.intp]) -> HuffmanTable:
    """Return the best code for bytes that occur so often, two of them or more."""
    bits = _lengths(counts)
    lengths = bits.tolist()
    longest = max(lengths)
    last = max(symbol for symbol, length in enumerate(lengths) if length)
    following, first = {}, 0
    for length in range(longest, 0, -1):
        following[length] = first
        first = (first + lengths.count(length)) >> 1
    codes = np.zeros(256, np.uint64)
    for symbol, length in enumerate(lengths):
        if length:
            codes[symbol] = following[length]
            following[length] += 1
    weights = [longest + 1 - length if length else 0 for length in lengths[:last]]
    return HuffmanTable(bits, codes, _describe(weights))


def _lengths(counts: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return the lengths of the shortest prefix code with at most _MAX_BITS bits (package-merge)."""
    symbols = np.flatnonzero(counts)
    symbols = symbols[np.argsort(counts[symbols], kind="stable")]
    leaves = counts[symbols]
    costs = leaves[:0]
    levels = []
    for _ in range(_MAX_BITS):
        packed = costs[: len(costs) // 2 * 2].reshape(-1, 2).sum(axis=1)
        # Of equal costs, the leaf comes first.
        own = np.arange(len(leaves)) + np.searchsorted(packed, leaves, "left")
        costs = np.empty(len(leaves) + len(packed), leaves.dtype)
        is_leaf = np.zeros(len(costs), bool)
        is_leaf[own] = True
        costs[is_leaf], costs[~is_leaf] = leaves, packed
        levels.append(is_leaf)
    bits = np.zeros(256, np.uint8)
    taken = 2 * len(leaves) - 2
    for is_leaf in reversed(levels):
        leaf_count = int(np.count_nonzero(is_leaf[:taken]))
        bits[symbols[:leaf_count]] += 1
        taken = 2 * (taken - leaf_count)
    return bits


def _describe(weights: Sequence[int]) -> bytes | None:
    """Return the table as a frame holds it: weights of all symbols but the last, which is implied."""
    number = len(weights)
    packed = _compress(weights)
    if 1 < len(packed) < 128 and (number > MAX_DIRECT or len(packed) < (number + 1) // 2):
        return bytes([len(packed)]) + packed
    if number > MAX_DIRECT:
        return None
    even = [*weights, 0]
    return bytes([127 + number]) + bytes(even[at] << 4 | even[at + 1] for at in range(0, number, 2))


def _compress(weights: Sequence[int]) -> bytes:
    """Return weights compressed by FSE (4.1), nothing if that is impossible."""
    number = len(weights)
    counts = [weights.count(weight) for weight in range(_WEIGHTS)]
    if number < 3 or number in counts:
        return b""
    shares = _shares(counts, number)
    symbols, position = [0] * _STATES, 0
    for weight, share in enumerate(shares):
        for _ in range(share):
            symbols[position] = weight
            position = (position + (_STATES >> 1) + (_STATES >> 3) + 3) & (_STATES - 1)
    made = [0] * _WEIGHTS
    sizes, bases = [0] * _STATES, [0] * _STATES
    first: dict[int, int] = {}
    state_for = [[0] * _STATES for _ in range(_WEIGHTS)]
    for at, weight in enumerate(symbols):
        number_of = shares[weight] + made[weight]
        made[weight] += 1
        first.setdefault(weight, at)
        length = 0
        while number_of << length < _STATES:
            length += 1
        sizes[at], bases[at] = length, (number_of << length) - _STATES
        state_for[weight][bases[at] : bases[at] + (1 << length)] = [at] * (1 << length)
    bits = _Bits()
    # Two states take turns.
    state = [0, 0]
    state[(number - 1) & 1] = first[weights[number - 1]]
    state[(number - 2) & 1] = first[weights[number - 2]]
    for k in range(number - 3, -1, -1):
        following = state[k & 1]
        at = state_for[weights[k]][following]
        bits.add(following - bases[at], sizes[at])
        state[k & 1] = at
    bits.add(state[1], _STATES_LOG)
    bits.add(state[0], _STATES_LOG)
    bits.add(1, 1)
    return _described(shares) + bits.to_bytes()


def _shares(counts: Sequence[int], total: int) -> list[int]:
    """Share the states out among weights by how often they occur, at least one each."""
    shares = [max(count * _STATES // total, 1) if count else 0 for count in counts]
    # Rounding leaves some, or takes some: never as many as the most frequent one has.
    shares[shares.index(max(shares))] += _STATES - sum(shares)
    return shares


def _described(shares: Sequence[int]) -> bytes:
    """Return how the states are shared out (4.1.1)."""
    bits = _Bits()
    bits.add(_STATES_LOG - 5, 4)
    left, weight = _STATES + 1, 0
    while left > 1:
        # The value is at most `left`; the smallest ones take a bit less than the others.
        value, size = shares[weight] + 1, left.bit_length()
        spare = (1 << size) - 1 - left
        if value < spare:
            bits.add(value, size - 1)
        else:
            bits.add(value if value < 1 << (size - 1) else value + spare, size)
        left -= shares[weight]
        weight += 1
        if shares[weight - 1]:
            continue
        more = 3
        while more == 3:
            # How many more weights have none, in twos of bits: 3 says that it goes on.
            more = 0
            while more < 3 and not shares[weight + more]:
                more += 1
            bits.add(more, 2)
            weight += more
    return bits.to_bytes()
