"""Deltas give back what went in; whatever else is handed over as one is refused, and takes neither time nor memory."""

from __future__ import annotations

import struct
import time
import tracemalloc

import numpy as np
import pytest
from fakes.implementations import COMPILED, agreed
from fakes.payloads import decode
from hypothesis import given
from hypothesis import strategies as st

from casstore.codecs import Encoding
from casstore.codecs.delta import (
    LITERALS,
    SAME,
    Delta,
    DeltaInput,
    Extent,
    Order,
    Piece,
    Residual,
    Rounding,
    Step,
    cast,
    combine,
    decode_deltas,
    encode_delta,
    encode_deltas,
    encoder,
    predicted,
    residual,
    same,
)
from casstore.codecs.delta.operations.floats import FORMATS
from casstore.codecs.delta.operations.operation import Source
from casstore.codecs.delta.payload import write_directory
from casstore.codecs.delta.predict import MAX_RESULTS
from casstore.codecs.delta.predicted import Task, add_each, subtract_each
from casstore.codecs.delta.residual import Outcome
from casstore.errors import FormatError, UnsupportedVersion

MIB = 1 << 20
RESIDUALS = [Residual(order, width) for order in Order for width in (1, 2, 4, 8)]


def data_of(seed, size):
    """Return bytes of which about half are the same for all seeds, so that there is something to predict."""
    common = np.random.default_rng(0).integers(0, 256, size)
    own = np.random.default_rng(seed).integers(0, 9, size)
    return np.where(own < 4, common, common + own).astype(np.uint8).tobytes()


@st.composite
def deltas(draw):
    """Return plain bytes, bases, pieces that predict some of it, and bytes that only those need."""
    bases = [
        data_of(at, size)
        for at, size in enumerate(draw(st.lists(st.integers(1, 300), min_size=1, max_size=3)))
    ]
    side = draw(st.binary(max_size=9))
    pieces = []
    at = 0
    for number in range(draw(st.integers(len(bases), 6))):
        form = draw(st.sampled_from(RESIDUALS))
        left = form.width * draw(st.integers(1, 40))
        extents = []
        while left:
            # Each base has to be used; the literals of the delta itself may be.
            source = number if number < len(bases) and not extents else draw(st.integers(0, len(bases)))
            size = len(side) if source == len(bases) else len(bases[source])
            if size == 0:
                continue
            start = draw(st.integers(0, size - 1))
            extents.append(
                Extent(LITERALS if source == len(bases) else source, start, min(start + left, size))
            )
            left -= extents[-1].end - start
        steps = tuple(Step(SAME, 1, (step,)) for step in range(draw(st.integers(1, 3))))
        begin = at + draw(st.integers(0, 30))
        at = begin + sum(extent.end - extent.begin for extent in extents)
        pieces.append(Piece(begin, at, (tuple(extents),), steps, form))
    return data_of(99, at + draw(st.integers(0, 20))), bases, pieces, side


@given(deltas())
def test_arbitrary_predictions_come_back(made):
    plain, bases, pieces, side = made
    payload = encode_delta(plain, bases, pieces, side=side)
    assert decode(Encoding.DELTA, payload, len(plain), bases) == plain
    assert encode_delta(plain, bases, pieces, side=side) == payload


@given(deltas(), st.booleans())
def test_deltas_are_proved_by_their_encoder(made, is_exact):
    plain, bases, pieces, side = made
    if is_exact:
        # What the predictions of a delta with literals of its own make depends on those; the others become exact.
        exact = bytearray(plain)
        for piece in pieces:
            (extents,) = piece.inputs
            if all(extent.base != LITERALS for extent in extents):
                exact[piece.begin : piece.end] = b"".join(
                    bases[base][begin:end] for base, begin, end in extents
                )
        plain = bytes(exact)
    (encoded,) = encode_deltas([DeltaInput(plain, bases, pieces, side)])
    assert decode(Encoding.DELTA, encoded.payload, len(plain), bases) == plain
    assert encoded.is_proved


def test_a_directory_of_other_pieces_or_other_literals_prove_nothing(monkeypatch):
    base = data_of(0, 4096)
    plain = base + b"what nothing predicts" * 9
    item = DeltaInput(plain, [base], [same(0, [Extent(0, 0, 4096)])])
    assert encode_deltas([item])[0].is_proved
    other = [same(0, [Extent(0, 8, 4096), Extent(0, 0, 8)])]
    monkeypatch.setattr(encoder, "write_directory", lambda _: write_directory(other))
    assert not encode_deltas([item])[0].is_proved
    monkeypatch.undo()
    stream = encoder._stream
    monkeypatch.setattr(encoder, "_stream", lambda number, data, hint: stream(number, data ^ number, hint))
    assert not encode_deltas([item])[0].is_proved


def test_wrong_residuals_prove_nothing(monkeypatch):
    base = data_of(0, 4096)
    item = DeltaInput(data_of(1, 4096), [base], [same(0, [Extent(0, 0, 4096)], Residual(Order.INTEGER, 1))])
    assert encode_deltas([item])[0].is_proved
    subtract, encode_each = encoder.subtract_each, encoder.encode_each

    def wrong(tasks, out):
        assert subtract(tasks, out) == [Outcome.RESTORED]
        return [Outcome.LOST]

    monkeypatch.setattr(encoder, "subtract_each", wrong)
    assert not encode_deltas([item])[0].is_proved
    monkeypatch.undo()

    def other(block, cuts, hints, *, out):
        np.frombuffer(block, np.uint8)[9] ^= 1
        encoded = list(encode_each(block, cuts, hints, out=out))
        np.frombuffer(block, np.uint8)[9] ^= 1
        return encoded

    monkeypatch.setattr(encoder, "encode_each", other)
    monkeypatch.setattr(encoder, "_TINY", 1 << 20)
    assert not encode_deltas([item])[0].is_proved


@given(st.lists(deltas(), min_size=1, max_size=5))
def test_many_deltas_decode_at_once_as_they_do_alone(many):
    payloads = [
        Delta(encode_delta(plain, bases, pieces, side=side), bases) for plain, bases, pieces, side in many
    ]
    out = bytearray(sum(len(plain) for plain, *_ in many))
    decode_deltas(payloads, [len(plain) for plain, *_ in many], out)
    assert bytes(out) == b"".join(plain for plain, *_ in many)


def test_streams_of_many_megabytes_decode_in_groups():
    chance = np.random.default_rng(4)
    base = chance.integers(0, 256, MIB, dtype=np.uint8).tobytes()
    plains = [chance.integers(0, 256, MIB, dtype=np.uint8).tobytes() for _ in range(5)]
    payloads = [
        Delta(encode_delta(plain, [base], [same(0, [Extent(0, 0, MIB // 2)], RESIDUALS[at])]), [base])
        for at, plain in enumerate(plains)
    ]
    out = bytearray(5 * MIB)
    decode_deltas(payloads, [MIB] * 5, out)
    assert bytes(out) == b"".join(plains)


@pytest.mark.parametrize("shift", range(8))
def test_predictions_are_written_at_any_address(shift):
    base = np.random.default_rng(shift).normal(size=300).astype("<f4")
    extents, halves = [Extent(0, 0, 1200)], [Extent(0, 600, 1200), Extent(0, 0, 600)]
    double = base + base
    plain = b"".join(
        [
            b"x" * shift,
            base.astype("<f2").tobytes(),
            double.tobytes(),
            base[150:].tobytes(),
            base[:150].tobytes(),
        ]
    )
    pieces = [
        cast(shift, extents, source="F32", target="F16"),
        combine(shift + 600, [extents, extents], weights=[1.0, 1.0]),
        same(shift + 1800, halves),
    ]
    assert all(piece.residual is None for piece in pieces)
    data = base.tobytes()
    payload = encode_delta(plain, [data], pieces)
    assert agreed(lambda: decode(Encoding.DELTA, payload, len(plain), [data])) == plain


# ---- residuals against the specification, number by number


def number_of(pattern, form):
    """Return k of format/README.md, in plain Python."""
    top = 1 << 8 * form.width - 1
    return pattern if form.order is Order.INTEGER or not pattern & top else pattern ^ (top - 1)


@pytest.mark.parametrize("form", RESIDUALS)
@given(seed=st.integers(0, 1000), count=st.integers(1, 100))
def test_residuals_are_those_of_the_specification(form, seed, count):
    bits = 8 * form.width
    chance = np.random.default_rng(seed)
    edges = [0, 1, 2, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits - 1) + 1, (1 << bits) - 1]
    pick = lambda: [  # noqa: E731  # twice the same
        edges[chance.integers(len(edges))]
        if chance.random() < 0.5
        else int.from_bytes(chance.bytes(form.width), "little")
        for _ in range(count)
    ]
    actual, predicted = pick(), pick()
    expected = []
    for one, other in zip(actual, predicted, strict=True):
        difference = (number_of(one, form) - number_of(other, form)) % (1 << bits)
        signed = difference - (1 << bits) if difference >> bits - 1 else difference
        expected.append(2 * signed if signed >= 0 else -2 * signed - 1)

    def as_bytes(values):
        # At any address: chunks begin anywhere in memory.
        shift = chance.integers(8)
        data = np.array(values, f"<u{form.width}").view(np.uint8)
        return np.concatenate([np.zeros(shift, np.uint8), data])[shift:]

    def subtracted():
        out = np.zeros(count * form.width + 1, np.uint8)[1:]
        task = Task(as_bytes(actual), Source([as_bytes(predicted)]), form)
        assert subtract_each([task], out) == [Outcome.RESTORED if any(expected) else Outcome.EXACT]
        return out

    def added():
        out = np.zeros(count * form.width + 1, np.uint8)[1:]
        add_each([Task(out, Source([as_bytes(predicted)]), form, as_bytes(expected))])
        return out

    assert np.frombuffer(agreed(subtracted), f"<u{form.width}").tolist() == expected
    assert np.frombuffer(agreed(added), f"<u{form.width}").tolist() == actual


def test_differences_that_do_not_restore_are_lost(monkeypatch):
    monkeypatch.setattr(residual, "add", lambda differences, predicted, form, out: out.fill(0))
    one, other = np.ones(8, np.uint8), np.arange(8, dtype=np.uint8)
    assert residual.subtract(one, other, RESIDUALS[0], np.empty(8, np.uint8)) is Outcome.LOST


CASTS = [None, ("F32", "BF16"), ("F16", "F32"), ("F32", "F8_E4M3"), ("F8_E5M2", "F32"), ("F64", "F32")]
"""Formats of what predictions are cast from and to."""


@st.composite
def tasks(draw):
    """Draw predictions in parts, from a few bytes to some tiles, and what they are for: exact, nearly so, or not."""
    chance = np.random.default_rng(draw(st.integers(0, 1000)))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        formats = draw(st.sampled_from(CASTS))
        form = draw(st.sampled_from(RESIDUALS))
        numbers = None
        unit, width = 1, 1
        if formats is not None:
            source, target = (FORMATS[name] for name in formats)
            rounding = draw(st.sampled_from(Rounding)) if source.width > target.width else 0
            numbers = (
                source.code,
                target.code,
                int(rounding),
                source.width > target.width and draw(st.booleans()),
            )
            unit, width = source.width, target.width
        # A whole number of elements of the residual, whatever the parts are.
        counts = [draw(st.sampled_from([0, 1, 3, 700, 5000])) for _ in range(draw(st.integers(1, 3)))]
        counts.append(-sum(counts) % 8 + 8)
        parts = [chance.integers(0, 256, count * unit + 1, dtype=np.uint8)[1:] for count in counts]
        source = Source(parts, numbers)
        own = np.zeros(sum(counts) * width + 1, np.uint8)[1:]
        add_each([Task(own, source, None)])
        for at in draw(st.lists(st.integers(0, len(own) - 1), max_size=2)):
            own[at] ^= 1
        made.append(Task(own, source, form))
    return made


@given(tasks())
def test_predictions_in_parts_are_compared_and_restored_as_one_by_one(made):
    def run():
        out = np.zeros(sum(len(task.own) for task in made), np.uint8)
        outcomes = subtract_each(made, out)
        back = [np.zeros(len(task.own) + 1, np.uint8)[1:] for task in made]
        again, at = [], 0
        for task, outcome, own in zip(made, outcomes, back, strict=True):
            end = at if outcome is Outcome.EXACT else at + len(own)
            again.append(Task(own, task.source, task.residual, out[at:end] if end > at else None))
            at = end
        add_each(again)
        return b"".join([bytes(outcomes), *(own.tobytes() for own in back), out[:at].tobytes()])

    expected, differences = [bytearray(), b""], bytearray()
    for task in made:
        predicted, out = np.empty_like(task.own), np.zeros(len(task.own), np.uint8)
        add_each([Task(predicted, task.source, None)])
        outcome = residual.subtract(task.own, predicted, task.residual, out)
        expected[0].append(outcome)
        expected[1] += task.own.tobytes()
        differences += b"" if outcome is Outcome.EXACT else out.tobytes()
    assert agreed(run) == bytes(expected[0]) + expected[1] + differences


def test_what_is_made_for_predictions_is_worked_on_in_groups(monkeypatch):
    monkeypatch.setattr(predicted, "_HELD", 100)
    out = np.zeros((5, 60), np.uint8)

    def made():
        for at in range(5):
            # Two of them are as much as may wait.
            assert out[: at // 2 * 2].all()
            yield Task(out[at], Source([np.full(60, at + 1, np.uint8)], made=60), None)

    add_each(made())
    assert out[:, 0].tolist() == out[:, -1].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.subtract_each(((bytes(8), (bytes(8),), None, 4, True, None),), bytearray(7)),
        lambda c: c.subtract_each(((bytes(8), (bytes(4), bytes(3)), None, 4, True, None),), bytearray(8)),
        lambda c: c.subtract_each(((bytes(6), (bytes(6),), None, 4, True, None),), bytearray(6)),
        lambda c: c.subtract_each(((bytes(8), (bytes(8),), None, 3, True, None),), bytearray(8)),
        lambda c: c.subtract_each(((bytes(4), (bytes(6),), None, 2, True, (2, 3, 0, False)),), bytearray(4)),
        lambda c: c.subtract_each(((bytes(4), (bytes(8),), None, 2, True, (2, 2, 0, False)),), bytearray(4)),
        lambda c: c.subtract_each(((bytes(4), (bytes(8),), None, 2, True, (2, 3, 9, False)),), bytearray(4)),
        lambda c: c.add_each(((bytearray(8), (bytes(8),), bytes(7), 1, True, None),)),
        lambda c: c.add_each(((bytearray(8), (bytes(9),), None, 1, True, None),)),
        lambda c: c.add_each(((bytearray(8), (), None, 1, True, None),)),
    ],
)
def test_compiled_predictions_refuse_what_does_not_fit(call):
    with pytest.raises(ValueError, match=r"fit|room"):
        call(COMPILED)


def test_neighbours_in_value_have_small_residuals():
    values = np.array([-1e-45, -0.0, 0.0, 1e-45, 1.0, 1.0000001], "<f4").view(np.uint8)
    out = np.empty(20, np.uint8)
    residual.subtract(values[4:], values[:-4], Residual(Order.FLOAT, 4), out)
    assert out.view("<u4")[[0, 1, 2, 4]].tolist() == [2, 2, 2, 2]


# ---- what is no delta


def good():
    plain, base = data_of(1, 400), data_of(2, 400)
    pieces = [
        same(10, [Extent(0, 10, 110)], Residual(Order.FLOAT, 4)),
        same(120, [Extent(0, 0, 60), Extent(1, 0, 60)], Residual(Order.INTEGER, 2)),
        Piece(
            300, 310, ((Extent(LITERALS, 3, 13),),), (Step(SAME, 1, (0,)), Step(SAME, 1, (1,))), RESIDUALS[0]
        ),
    ]
    bases = [base, data_of(3, 64)]
    return encode_delta(plain, bases, pieces), bases, plain


@given(st.data())
def test_damaged_deltas_raise_format_error_or_decode(data):
    payload, bases, _ = good()
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, data.draw(st.sampled_from([8, 56, 200, len(damaged)])) - 1))
        kind = data.draw(st.sampled_from(["set", "flip", "cut", "insert"]))
        if kind == "set":
            damaged[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif kind == "flip":
            damaged[at : at + 1] = bytes(
                byte ^ 1 << data.draw(st.integers(0, 7)) for byte in damaged[at : at + 1]
            )
        elif kind == "cut":
            del damaged[at : at + data.draw(st.integers(1, 9))]
        else:
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    length = data.draw(st.sampled_from([400, 400, 399, 401, 0, 1200]))
    try:
        assert len(decode(Encoding.DELTA, bytes(damaged), length, bases)) == length
    except FormatError:
        return


def test_a_flip_of_any_bit_is_refused_or_changes_what_the_hash_covers():
    """No payload has bits that mean nothing, except in zstd's own headers."""
    payload, bases, plain = good()
    silent = 0
    for at in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[at >> 3] ^= 1 << (at & 7)
        try:
            silent += decode(Encoding.DELTA, bytes(damaged), len(plain), bases) == plain
        except FormatError:
            continue
    assert silent <= 16


@given(st.binary(max_size=300), st.integers(0, 3000))
def test_arbitrary_bytes_raise_format_error_or_decode(payload, length):
    try:
        assert len(decode(Encoding.DELTA, payload, length, [bytes(100)])) == length
    except FormatError:
        return


def made(directory, *, pieces=1, streams=(), version=1, number=0, encoding=0, plain=None, reserved=0):
    """Build a payload by hand: a directory, and further streams as (number, bytes)."""
    bodies = [(number, encoding, len(directory) if plain is None else plain, directory)]
    bodies += [(at, 0, len(data), data) for at, data in streams]
    head = struct.pack("<BBHI", version, len(bodies), pieces, reserved)
    table = b"".join(struct.pack("<BBHII", at, how, 0, size, len(data)) for at, how, size, data in bodies)
    return head + table + b"".join(data for *_, data in bodies)


def piece(
    begin=0,
    end=4,
    *,
    order=0,
    width=0,
    extents=((0, 0, 4),),
    steps=((SAME, 1, (0,), b""),),
    inputs=None,
    spare=0,
):
    parts = [struct.pack("<IIBBBB", begin, end, order, width, 1 if inputs is None else inputs, len(steps))]
    parts.append(struct.pack("<H", len(extents)))
    parts += [struct.pack("<HHII", base, spare, start, stop) for base, start, stop in extents]
    for operation, version, operands, parameters in steps:
        parts.append(struct.pack("<HBBH", operation, version, len(operands), len(parameters)))
        parts.append(bytes(operands) + parameters)
    return b"".join(parts)


def test_what_is_built_by_hand_decodes():
    assert decode(Encoding.DELTA, made(piece()), 4, [b"good"]) == b"good"
    whole = made(piece(order=1, width=2), streams=[(3, b"\2\0\1\0")])
    assert decode(Encoding.DELTA, whole, 4, [b"\1\0\1\0"]) == b"\2\0\0\0"


HOSTILE = {
    "no bytes": b"",
    "half a header": made(piece())[:5],
    "half a table": made(piece())[:13],
    "half a directory": made(piece()[:-3]),
    "bytes after it": made(piece()) + b"x",
    "bytes after the directory": made(piece() + b"x"),
    "no pieces": made(b"x", pieces=0),
    "fewer pieces than it says": made(piece(), pieces=2),
    "more pieces than are allowed": made(piece(0, 1, extents=[(0, 0, 1)]) * 4097, pieces=4097),
    "no directory": made(piece(), number=1),
    "a directory of another size": made(piece(), plain=9),
    "a directory without end": made(piece(), encoding=1, plain=1 << 31),
    "streams out of order": made(piece(), streams=[(3, b"x"), (1, b"y")]),
    "a stream twice": made(piece(), streams=[(1, b"x"), (1, b"y")]),
    "an empty stream": made(piece(), streams=[(1, b"")]),
    "a residual that nobody asked for": made(piece(), streams=[(2, b"x")]),
    "no residual": made(piece(order=1, width=4)),
    "too short a residual": made(piece(order=1, width=2), streams=[(3, b"\0\0")]),
    "a width without an order": made(piece(width=4), streams=[(4, bytes(4))]),
    "an order without a width": made(piece(order=1)),
    "a width that is none": made(piece(order=1, width=3)),
    "half an element": made(piece(order=1, width=8), streams=[(5, bytes(4))]),
    "no literals": made(piece(0, 3, extents=[(0, 0, 3)])),
    "too few literals": made(piece(2, 3, extents=[(0, 0, 1)]), streams=[(1, b"xy")]),
    "a piece that ends before it begins": made(piece(4, 0)),
    "an empty piece": made(piece(2, 2)),
    "a piece beyond the end": made(piece(1, 5)),
    "pieces that overlap": made(
        piece(0, 3, extents=[(0, 0, 3)]) + piece(2, 4, extents=[(0, 0, 2)]), pieces=2
    ),
    "pieces out of order": made(
        piece(2, 4, extents=[(0, 0, 2)]) + piece(0, 2, extents=[(0, 0, 2)]), pieces=2
    ),
    "no input": made(piece(inputs=0)),
    "an input without extents": made(piece(extents=[])),
    "an empty extent": made(piece(extents=[(0, 0, 4), (0, 2, 2)])),
    "an extent that ends before it begins": made(piece(extents=[(0, 0, 8), (0, 4, 0)])),
    "an extent beyond its base": made(piece(extents=[(0, 1, 5)])),
    "an extent of a base that is not there": made(piece(extents=[(1, 0, 4)])),
    "an extent of literals that are not there": made(piece(extents=[(LITERALS, 0, 4)])),
    "a base that is not used": made(piece(extents=[(LITERALS, 0, 4)]), streams=[(1, b"abcd")]),
    "no steps": made(piece(steps=[])),
    "too many steps": made(piece(steps=[(SAME, 1, (0,), b"")] * 17)),
    "no operand": made(piece(steps=[(SAME, 1, (), b"")])),
    "two operands": made(piece(steps=[(SAME, 1, (0, 0), b"")])),
    "a value of the future": made(piece(steps=[(SAME, 1, (1,), b"")])),
    "parameters": made(piece(steps=[(SAME, 1, (0,), b"x")])),
    "another size than is needed": made(piece(extents=[(0, 0, 3)])),
}
NEWER = {
    "a version": made(piece(), version=2),
    "a header": made(piece(), reserved=1),
    "a stream": made(piece(), streams=[(6, b"x")]),
    "a stream's encoding": made(piece(), encoding=3),
    "an extent": made(piece(spare=1)),
    "an operation": made(piece(steps=[(99, 1, (0,), b"")])),
    "a version of an operation": made(piece(steps=[(SAME, 2, (0,), b"")])),
    "an order": made(piece(order=3, width=4), streams=[(4, bytes(4))]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_deltas_are_refused_before_anything_is_allocated(name):
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            decode(Encoding.DELTA, HOSTILE[name], 4, [b"good"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not isinstance(caught.value, UnsupportedVersion)
    assert peak < 6 * MIB


@pytest.mark.parametrize("name", NEWER)
def test_what_is_newer_asks_for_an_upgrade(name):
    with pytest.raises(UnsupportedVersion, match=r"[Uu]pgrade"):
        decode(Encoding.DELTA, NEWER[name], 4, [b"good"])


def test_inputs_and_results_without_end_are_refused_at_once():
    base = bytes(MIB)
    many = [(0, 0, MIB)] * 257
    bombs = [
        made(piece(0, 4, extents=many)),
        made(piece(0, 4, extents=many[:60], steps=[(SAME, 1, (0,), b"")] * 3)),
        made(piece(0, 4, extents=[(0, 0, 1)] * 65_535) + piece(4, 8, extents=[(0, 0, 1)] * 2), pieces=2),
    ]
    assert 60 * MIB < MAX_RESULTS < 180 * MIB
    for payload in bombs:
        started = time.perf_counter()
        tracemalloc.start()
        try:
            with pytest.raises(FormatError):
                decode(Encoding.DELTA, payload, 8, [base])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 40 * MIB
        assert time.perf_counter() - started < 10


@pytest.mark.parametrize("raw", [0, MIB + 1])
def test_a_delta_of_nothing_or_of_too_much_is_refused(raw):
    with pytest.raises(FormatError):
        decode(Encoding.DELTA, made(piece()), raw, [b"good"])


# ---- what a writer hands over


def test_a_prediction_that_is_not_exact_needs_a_residual():
    with pytest.raises(ValueError, match="not exact"):
        encode_delta(b"new", [b"old"], [same(0, [Extent(0, 0, 3)])])


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [same(1, [Extent(0, 0, 3)])],
        [same(0, [Extent(0, 0, 4)])],
        [same(0, [Extent(1, 0, 3)])],
        [same(0, [Extent(0, 0, 3)], Residual(Order.INTEGER, 2))],
        [same(1, [Extent(0, 1, 2)]), same(0, [Extent(0, 0, 1)])],
        [Piece(0, 3, ((Extent(0, 0, 3),),), ())],
        [Piece(0, 3, ((Extent(0, 0, 3),),), (Step(SAME, 1, (0,)),) * 17)],
        [Piece(0, 3, ((Extent(0, 0, 3),),), (Step(SAME, 1, (0,), bytes(70_000)),))],
        [Piece(0, 3, ((Extent(0, 0, 3),),), (Step(99, 1, (0,)),))],
    ],
)
def test_a_writer_is_refused_what_a_reader_would_be(pieces):
    with pytest.raises(FormatError):
        encode_delta(b"old", [b"old"], pieces)
