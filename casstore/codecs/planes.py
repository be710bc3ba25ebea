"""The payload of the `planes` encoding: element bytes regrouped into runs of columns, each stored on its own.

The byte-exact specification is in format/README.md. In short: a header of 8 bytes (version, flags, stride,
phase, number of runs), 8 bytes per run (columns, mode, stored length), the bytes before the first and after
the last whole element, then the runs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.encoding import MAX_STRIDE
from casstore.codecs.kernels import RunData, merge_runs, merges_to, repeats, split_runs, write_planes
from casstore.codecs.regroup import scratch
from casstore.codecs.zstd import Method, compress_all
from casstore.errors import FormatError, UnsupportedVersion

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    U8 = NDArray[np.uint8]

__all__ = [
    "Plan",
    "RunPlan",
    "Table",
    "compressed_runs",
    "decode_planes",
    "encode_planes",
    "header_size",
    "planes_decode_to",
    "read_table",
]

_VERSION = 1
_FLAG_SIGN = 1
_HEADER = struct.Struct("<BBHHBB")
_RUN = struct.Struct("<HBBI")
_MAX_RUNS = 255
# How compiled kernels can store runs: raw, or as frames of literals.
_COMPILED = (None, Method.LITERALS)


# Plain integers, not an enumeration: the reader compares them for each run of each chunk, with the GIL held.
_RAW = 0
_ZSTD = 1
_CONSTANT = 2


class RunPlan(NamedTuple):
    """The writer's choice for `columns` adjacent columns: a zstd method, or None to store them raw."""

    columns: int
    method: Method | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The writer's choice for the elements of a chunk; the runs are in column order and cover the stride."""

    stride: int
    sign: bool
    runs: tuple[RunPlan, ...]


def header_size(runs: int) -> int:
    """Return the bytes that header and table take for this many runs."""
    return _HEADER.size + _RUN.size * runs


def encode_planes(
    stretch: U8, edges: Sequence[int], phase: int, plan: Plan, out: U8, *, lead: int
) -> list[tuple[bool, int]]:
    """Write the payload of each chunk between two `edges` of `stretch`, which they cover; return how long they are.

    Payloads follow one another in `out`, `lead` bytes left alone before each. Elements start at `phase` of the first chunk, and
    no element crosses an inner edge. Each size comes with whether it is that of planes: what they would not make smaller is
    stored as it is.
    """
    elements = (len(stretch) - phase) // plan.stride
    if elements > 0 and all(run.method in _COMPILED for run in plan.runs):
        runs = [(run.columns, run.method is not None) for run in plan.runs]
        sizes = write_planes(
            stretch, edges, out, stride=plan.stride, phase=phase, sign=plan.sign, runs=runs, lead=lead
        )
        if sizes is not None:
            return [(size > 0, abs(size)) for size in sizes]
    written = []
    position = 0
    room = out.data
    payloads = compose(stretch, edges, phase, plan) if elements > 0 else [None] * (len(edges) - 1)
    for payload, (begin, end) in zip(payloads, pairwise(edges), strict=True):
        start = position = position + lead
        for part in payload or [stretch[begin:end]]:
            # Not by numpy, which would give the interpreter's lock away for each part, and wait for it.
            room[position : position + len(part)] = part.data
            position += len(part)
        written.append((payload is not None, position - start))
    return written


def compose(stretch: U8, edges: Sequence[int], phase: int, plan: Plan) -> list[list[U8] | None]:
    """Return the payload of each chunk in parts, or None if it would not be smaller; there is a whole element at least.

    The parts borrow `stretch` and memory of this thread that its next call writes over.
    """
    stride = plan.stride
    elements = (len(stretch) - phase) // stride
    # Of a chunk, the bytes before its first and after its last whole element are kept as they are.
    firsts = [0, *((edge - phase) // stride for edge in edges[1:-1]), elements]
    body = stretch[phase : phase + elements * stride]
    memory = scratch("runs", len(body))
    split_runs(body, stride=stride, sign=plan.sign, columns=[run.columns for run in plan.runs], out=memory)
    runs: list[list[tuple[int, U8]]] = []
    start = 0
    for run in plan.runs:
        plain = memory[elements * start : elements * (start + run.columns)]
        pieces = [plain[begin * run.columns : end * run.columns] for begin, end in pairwise(firsts)]
        runs.append(_pack_run(pieces, run))
        start += run.columns
    payloads: list[list[U8] | None] = []
    for k, (begin, end) in enumerate(pairwise(edges)):
        before = phase if k == 0 else 0
        after = end - begin - before - (firsts[k + 1] - firsts[k]) * stride
        table = _HEADER.pack(_VERSION, _FLAG_SIGN * plan.sign, stride, before, len(plan.runs), 0)
        parts = [stretch[begin : begin + before], stretch[end - after : end]]
        for run, packed in zip(plan.runs, runs, strict=True):
            mode, data = packed[k]
            table += _RUN.pack(run.columns, mode, 0, len(data))
            parts.append(data)
        parts.insert(0, np.frombuffer(table, np.uint8))
        payloads.append(parts if sum(map(len, parts)) < end - begin else None)
    return payloads


def _pack_run(pieces: list[U8], run: RunPlan) -> list[tuple[int, U8]]:
    """Return how each chunk's piece of the run is stored, depending on its bytes."""
    if run.method is None:
        return [(_RAW, piece) for piece in pieces]
    packed = []
    frames = compress_all(pieces, run.method)
    for piece, frame in zip(pieces, frames, strict=True):
        if repeats(piece, run.columns):
            packed.append((_CONSTANT, piece[: run.columns]))
        else:
            packed.append((_ZSTD, frame) if len(frame) < len(piece) else (_RAW, piece))
    return packed


class Table(NamedTuple):
    """The head of a payload, checked against the lengths of the payload and of the chunk."""

    stride: int
    phase: int
    sign: bool
    elements: int
    runs: list[tuple[int, int, int, int]]
    """Columns, mode, and where in the payload the run begins and ends."""


def read_table(payload: memoryview, raw_length: int) -> Table:
    """Read the head of a planes payload for a chunk of `raw_length` bytes.

    Raises FormatError for a payload that does not describe exactly that many bytes; UnsupportedVersion for
    versions, flags and modes it does not know.
    """
    if len(payload) < _HEADER.size:
        raise FormatError(f"A planes payload of {len(payload)} bytes is shorter than its header.")
    version, flags, stride, phase, count, reserved = _HEADER.unpack_from(payload)
    if version != _VERSION or flags & ~_FLAG_SIGN or reserved:
        raise UnsupportedVersion(
            f"A planes payload has version {version} and flags {flags:#x}: a newer casstore wrote it. Upgrade to read it."
        )
    if not 2 <= stride <= MAX_STRIDE or phase >= stride or phase + stride > raw_length:
        raise FormatError(
            f"A planes payload has stride {stride} and phase {phase} for {raw_length} plain bytes."
        )
    table_end = header_size(count)
    if len(payload) < table_end:
        raise FormatError(f"A planes payload ends inside its table of {count} runs.")
    elements = (raw_length - phase) // stride
    runs = []
    all_columns = 0
    position = table_end + raw_length - elements * stride
    for columns, mode, spare, stored in _RUN.iter_unpack(payload[_HEADER.size : table_end]):
        if mode > _CONSTANT or spare:
            raise UnsupportedVersion(
                f"A planes run has mode {mode}: a newer casstore wrote it. Upgrade to read it."
            )
        if (
            columns == 0
            or (mode == _RAW and stored != elements * columns)
            or (mode == _CONSTANT and stored != columns)
        ):
            raise FormatError(f"A planes run of {columns} columns has {stored} bytes in mode {mode}.")
        runs.append((columns, mode, position, position + stored))
        all_columns += columns
        position += stored
    if all_columns != stride:
        raise FormatError(f"The runs of a planes payload do not make up its stride of {stride}.")
    sign = bool(flags)
    if sign and (stride not in {2, 4} or [run[0] for run in runs[-2:]] != [1, 1]):
        raise FormatError(
            "A planes payload moves the sign of elements whose two top columns are not runs of their own."
        )
    if position != len(payload):
        raise FormatError("The lengths in a planes payload do not add up to its size.")
    return Table(stride, phase, sign, elements, runs)


def compressed_runs(payload: memoryview, table: Table) -> list[tuple[memoryview, int]]:
    """Return the zstd frames of a payload, and the plain bytes that each must hold."""
    return [
        (payload[begin:end], table.elements * columns)
        for columns, mode, begin, end in table.runs
        if mode == _ZSTD
    ]


def decode_planes(payload: memoryview, table: Table, plains: Iterator[U8], out: U8) -> None:
    """Write the plain bytes of a payload over `out`; `plains` gives those of its compressed runs, in order."""
    runs, head, tail = _open_payload(payload, table, plains, len(out))
    out[: len(head)] = head
    out[len(out) - len(tail) :] = tail
    elements = out[len(head) : len(out) - len(tail)]
    merge_runs(runs, stride=table.stride, sign=table.sign, out=elements)


def planes_decode_to(payload: memoryview, table: Table, plains: Iterator[U8], expected: U8) -> bool:
    """Say whether `decode_planes` would write `expected`, which is only read."""
    runs, head, tail = _open_payload(payload, table, plains, len(expected))
    elements = expected[len(head) : len(expected) - len(tail)]
    return (
        head.tobytes() == expected[: len(head)].tobytes()
        and tail.tobytes() == expected[len(expected) - len(tail) :].tobytes()
        and merges_to(runs, stride=table.stride, sign=table.sign, expected=elements)
    )


def _open_payload(
    payload: memoryview, table: Table, plains: Iterator[U8], length: int
) -> tuple[list[RunData], U8, U8]:
    """Return the plain runs of a payload, and the bytes before the first and after the last whole element."""
    data: U8 = np.frombuffer(payload, np.uint8)
    runs = [
        RunData(columns, next(plains) if mode == _ZSTD else data[begin:end], mode == _CONSTANT)
        for columns, mode, begin, end in table.runs
    ]
    begin = header_size(len(runs))
    middle = begin + table.phase
    return runs, data[begin:middle], data[middle : begin + length - table.elements * table.stride]
