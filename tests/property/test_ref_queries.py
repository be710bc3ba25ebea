"""A query gives the rows that plain Python would choose, from a catalogue or without, whatever records and conditions are."""

from __future__ import annotations

import itertools
import math
import os
import tempfile

from hypothesis import example, given
from hypothesis import strategies as st

from casstore.backend import MemoryBackend
from casstore.format import record as record_format
from casstore.format.record import Record
from casstore.machine.state import MachineState
from casstore.refs.refs import Refs
from casstore.refs.rows import RefQuery, row_of

_numbers = itertools.count()

IDS = [bytes([number]) * 32 for number in (0, 1, 255)]
FIELDS = ["status", "a", "a.b", "a.b.c", "", ".", "b", 'q"', "\\", "ü", "0", "$", "a[0]", "#", "*", "x y"]
NUMBERS = [0, 1, -1, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 10**18]
FLOATS = [0.0, -0.0, 1.0, 0.1, 0.1 + 0.2, 1 - 2**-53, 1e18, 1e22, 5e-324, math.inf, math.nan, float(2**53)]
TEXTS = [
    "",
    "done",
    "1",
    "1.0",
    "null",
    "true",
    "[1]",
    '{"b":1}',
    "a\0b",
    "\0",
    "ü",
    "\U0001d518",
    "\n\t\"'\\",
    "9" * 20,
]

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS + FLOATS + TEXTS),
    st.sampled_from([b"", b"bytes"]),
    st.floats(),
    st.integers(-(2**63), 2**64 - 1),
    st.text(st.characters(codec="utf-8"), max_size=6),
)
names_of_fields = st.sampled_from([part for field in FIELDS for part in (field, *field.split("."))])
values = st.recursive(
    plain,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(names_of_fields, inner, max_size=3)),
    max_leaves=6,
)
metadata = st.dictionaries(names_of_fields, values, max_size=4)
times = st.one_of(
    st.integers(0, 3),
    st.sampled_from([-(2**63), 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
ref_names = st.sampled_from(
    [
        f"{space}/{rest}"
        for space in ("runs", "models", "tags")
        for rest in ("a", "b", "a/b", "A", "ü", "%_", "a%b")
    ]
)
records = st.builds(
    lambda name, **rest: Record(name=name, seq=1, write_id=os.urandom(16), writer="w", **rest),
    ref_names,
    time=times,
    target=st.sampled_from([None, *IDS]),
    base=st.sampled_from([None, *IDS]),
    metadata=metadata,
)
queries = st.builds(
    RefQuery,
    prefix=st.sampled_from(
        ["", "r", "runs/", "runs/a", "runs/%", "models/", "tags/ü", "x", "\0", "runs/\ud800", "runs/a\0"]
    ),
    where=st.lists(
        st.tuples(st.sampled_from([*FIELDS, "\ud800", "a\0"]), st.one_of(values, st.just("\ud800"))),
        max_size=2,
    ).map(tuple),
    target=st.sampled_from([None, None, *IDS]),
    base=st.sampled_from([None, None, *IDS]),
    since=st.one_of(st.none(), times, st.just(2**70)),
    until=st.one_of(st.none(), times, st.just(-(2**70))),
)


def matches(query, row):
    """Say whether a query wants a row."""

    def value_at(field):
        value = row.metadata
        for part in field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    return (
        row.name.startswith(query.prefix)
        and query.target in (None, row.target)
        and query.base in (None, row.base)
        and (query.since is None or row.time >= query.since)
        and (query.until is None or row.time < query.until)
        and all(value_at(field) == value for field, value in query.where)
    )


@given(
    held=st.lists(records, max_size=12, unique_by=lambda record: record.name),
    asked=st.lists(queries, min_size=1, max_size=4),
    limit=st.sampled_from([None, 0, 1, 2, 5, 2**70]),
    newest_first=st.booleans(),
)
@example(
    held=[Record("runs/a", 1, bytes(16), 1, "w", IDS[0], metadata={"x": [1]})],
    asked=[RefQuery(where=(("x", "[1]"),)), RefQuery(where=(("x", [1]),))],
    limit=None,
    newest_first=True,
)
def test_catalogue_and_python_agree(held, asked, limit, newest_first):
    backend = MemoryBackend(f"test_ref_queries/{next(_numbers)}")
    for record in held:
        backend.put(record.key, [record_format.encode(record)])
    held = [record_format.decode(backend.read(record.key), key=record.key) for record in held]
    with tempfile.TemporaryDirectory() as folder:
        machine = MachineState(os.path.join(folder, "state.sqlite"))
        with_catalogue, without = Refs(backend, machine), Refs(backend, MachineState(None))
        for query in asked:
            found = with_catalogue.find(query, limit=limit, newest_first=newest_first)
            assert repr(found) == repr(without.find(query, limit=limit, newest_first=newest_first))
            wanted = [row for record in held if record.target and matches(query, row := row_of(record))]
            wanted.sort(key=lambda row: row.order, reverse=newest_first)
            assert repr(found) == repr(wanted[:limit])
            assert with_catalogue.values(query.prefix).keys() == without.values(query.prefix).keys()
        assert machine.keeps, "SQLite was asked something that it refuses"
        machine.close()


@given(held=st.lists(records, max_size=12, unique_by=lambda record: record.name), digits=st.integers(1, 64))
def test_ids_are_found_alike(held, digits):
    backend = MemoryBackend(f"test_ref_queries/{next(_numbers)}")
    for record in held:
        backend.put(record.key, [record_format.encode(record)])
    held = [record_format.decode(backend.read(record.key), key=record.key) for record in held]
    with tempfile.TemporaryDirectory() as folder:
        machine = MachineState(os.path.join(folder, "state.sqlite"))
        with_catalogue, without = Refs(backend, machine), Refs(backend, MachineState(None))
        for wanted in IDS:
            prefix = wanted.hex()[:digits]
            targets, record = with_catalogue.naming(prefix)
            assert repr((targets, record)) == repr(without.naming(prefix))
            naming = [
                item
                for item in held
                if item.name.startswith(("models/", "tags/"))
                and item.target is not None
                and item.target.hex().startswith(prefix)
            ]
            assert targets == sorted({item.target for item in naming})
            assert (record is not None) == (len(targets) == 1)
            assert record is None or record.name == max((item.time, item.name) for item in naming)[1]
        assert machine.keeps
        machine.close()
