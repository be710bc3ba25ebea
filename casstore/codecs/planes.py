"""The payload of the `planes` encoding: element bytes regrouped into runs of columns, each stored on its own.

The byte-exact specification is in format/README.md. In short: a header of 8 bytes (version, flags, stride,
phase, number of runs), 8 bytes per run (columns, mode, stored length), the bytes before the first and after
the last whole element, then the runs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.encoding import MAX_STRIDE
from casstore.codecs.regroup import Columns, RunData, merge_runs, scratch
from casstore.codecs.zstd import Method, compress, decompress
from casstore.errors import FormatError, UnsupportedVersion

if TYPE_CHECKING:
    from numpy.typing import NDArray

    U8 = NDArray[np.uint8]

__all__ = ["Plan", "RunPlan", "decode_planes", "encode_planes", "header_size"]

_VERSION = 1
_FLAG_SIGN = 1
_HEADER = struct.Struct("<BBHHBB")
_RUN = struct.Struct("<HBBI")
_MAX_RUNS = 255


# Plain integers: the reader meets them for each run of each chunk, with the GIL held.
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


def encode_planes(chunk: U8, phase: int, plan: Plan, out: U8) -> int | None:
    """Write the payload for `chunk`, whose elements start at `phase`, to the start of `out`; return its length.

    Returns None, with `out` in any state, when the payload would not be smaller than the chunk: then the
    chunk is stored raw. `out` is at least as long as `chunk` and does not overlap it.
    """
    elements = (len(chunk) - phase) // plan.stride
    body = chunk[phase : phase + elements * plan.stride]
    tail = chunk[phase + len(body) :]
    limit = len(chunk)
    position = header_size(len(plan.runs))
    if elements == 0 or position + phase + len(tail) >= limit:
        return None
    table = bytearray(_HEADER.pack(_VERSION, _FLAG_SIGN * plan.sign, plan.stride, phase, len(plan.runs), 0))
    for edge in (chunk[:phase], tail):
        out[position : position + len(edge)] = edge
        position += len(edge)
    columns = Columns(_aligned(body, plan.stride), stride=plan.stride, sign=plan.sign)
    start = 0
    for run in plan.runs:
        stored = elements * run.columns
        mode = _RAW
        if run.method is not None:
            plain = scratch("run", stored)
            columns.take(start, run.columns, plain)
            mode, data = _pack_run(plain, run)
            stored = len(data)
        if position + stored >= limit:
            return None
        target = out[position : position + stored]
        if run.method is not None:
            target[:] = np.frombuffer(data, np.uint8)
        else:
            columns.take(start, run.columns, target)
        table += _RUN.pack(run.columns, mode, 0, stored)
        position += stored
        start += run.columns
    out[: len(table)] = np.frombuffer(table, np.uint8)
    return position


def _aligned(body: U8, stride: int) -> U8:
    """Return `body` at an address that integers of the stride may have: numpy is half as fast elsewhere."""
    if stride in {2, 4} and not body.view(f"<u{stride}").flags.aligned:
        return body.copy()
    return body


def _pack_run(plain: U8, run: RunPlan) -> tuple[int, bytes | U8]:
    """Return how the run is stored, by what its bytes turn out to be."""
    assert run.method is not None
    item = plain[: run.columns]
    if plain[0] == plain[-run.columns] and bool((plain.reshape(-1, run.columns) == item).all()):
        return _CONSTANT, item
    frame = compress(plain, run.method)
    return (_ZSTD, frame) if len(frame) < len(plain) else (_RAW, plain)


def _read_table(
    payload: memoryview, raw_length: int
) -> tuple[int, int, bool, list[tuple[int, int, int, int]]]:
    """Return stride, phase, sign and (columns, mode, 0, stored) of each run, checked against both lengths."""
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
    runs = list(_RUN.iter_unpack(payload[_HEADER.size : table_end]))
    all_columns = 0
    all_stored = table_end + raw_length - elements * stride
    for columns, mode, spare, stored in runs:
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
        all_columns += columns
        all_stored += stored
    if all_columns != stride:
        raise FormatError(f"The runs of a planes payload do not make up its stride of {stride}.")
    sign = bool(flags)
    if sign and (stride not in {2, 4} or [run[0] for run in runs[-2:]] != [1, 1]):
        raise FormatError(
            "A planes payload moves the sign of elements that have no two top columns of their own."
        )
    if all_stored != len(payload):
        raise FormatError("The lengths in a planes payload do not add up to its size.")
    return stride, phase, sign, runs


def decode_planes(payload: memoryview, out: U8) -> None:
    """Write the plain bytes of a planes payload over the whole of `out`.

    Raises FormatError for a payload that does not describe exactly len(out) bytes, before it allocates;
    UnsupportedVersion for versions, flags and modes it does not know. `out` is in any state after an error.
    """
    stride, phase, sign, runs = _read_table(payload, len(out))
    elements = (len(out) - phase) // stride
    position = header_size(len(runs))
    data: U8 = np.frombuffer(payload, np.uint8)
    body_end = phase + elements * stride
    for begin, end in ((0, phase), (body_end, len(out))):
        if begin < end:
            out[begin:end] = data[position : position + end - begin]
            position += end - begin
    plain = []
    start = 0
    for columns, mode, _, stored in runs:
        body = data[position : position + stored]
        if mode == _ZSTD:
            frame = payload[position : position + stored]
            body = np.frombuffer(decompress(frame, elements * columns), np.uint8)
        plain.append(RunData(start, columns, body, mode == _CONSTANT))
        position += stored
        start += columns
    merge_runs(plain, stride=stride, sign=sign, out=out[phase:body_end])
