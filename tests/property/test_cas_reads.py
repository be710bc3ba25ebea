"""Whatever is read through cas:// in whatever order is what the plain file gives."""

from __future__ import annotations

import io

import fsspec
import numpy as np
import pytest
from fakes import syncer  # noqa: F401  # registers dirfs://, a directory that casstore takes for a remote
from fakes.stores import noise
from hypothesis import given
from hypothesis import strategies as st

from casstore.api.store import Store

SIZE = 4_500_000
REPEATED = noise(1, 700_000)
PLAIN = (
    REPEATED + bytes(900_000) + noise(2, 700_001) + REPEATED + np.arange(100_000, dtype=np.int64).tobytes()
)
PLAIN += noise(3, SIZE - len(PLAIN))
PATH = "models/m/plain"

offsets = st.one_of(st.integers(0, SIZE + 100), st.integers(0, 9).map(lambda at: at * (512 << 10)))
sizes = st.one_of(st.integers(0, 300), st.integers(0, 1 << 17), st.integers(0, 3_000_000))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), offsets),
        st.tuples(st.just("skip"), st.integers(-100_000, 1_000_000)),
        st.tuples(st.just("from the end"), st.integers(0, SIZE)),
        st.tuples(st.just("read"), sizes),
        st.tuples(st.just("readinto"), sizes),
        st.tuples(st.just("read1"), sizes),
        st.tuples(st.just("in order"), st.integers(1, 60)),
        st.tuples(st.just("to the end"), st.just(0)),
    ),
    max_size=25,
)
bounds = st.one_of(st.none(), st.integers(-SIZE - 10, SIZE + 10))


@pytest.fixture(scope="module", params=["near", "far", "small cache"])
def fs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cas-reads")
    (folder / "plain").write_bytes(PLAIN)
    with Store(folder / "store", create=True, durability="none") as store:
        store.add(folder / "plain", ref="models/m")
    url = str(folder / "store") if request.param == "near" else f"dirfs://{folder / 'store'}"
    options = {"chunk_cache": 8 << 20} if request.param == "small cache" else {}
    opened = fsspec.filesystem("cas", store=url, **options)
    yield opened
    opened.close()


@given(steps)
def test_reads_and_seeks_are_those_of_the_plain_file(fs, steps):
    with fs.open(PATH) as file, io.BytesIO(PLAIN) as plain:
        for what, number in steps:
            if what == "seek":
                assert file.seek(number) == plain.seek(number)
            elif what == "skip":
                step = max(number, -plain.tell())
                assert file.seek(step, io.SEEK_CUR) == plain.seek(step, io.SEEK_CUR)
            elif what == "from the end":
                assert file.seek(-number, io.SEEK_END) == plain.seek(-number, io.SEEK_END)
            elif what == "read":
                assert file.read(number) == plain.read(number)
            elif what == "readinto":
                got, expected = bytearray(number), bytearray(number)
                assert file.readinto(got) == plain.readinto(expected)
                assert got == expected
            elif what == "read1":
                got = file.read1(number)
                assert got == plain.read(len(got))
                assert got or number == 0 or plain.read(1) == b""
                plain.seek(file.tell())
            elif what == "in order":
                for _ in range(number):
                    assert file.read(1 << 16) == plain.read(1 << 16)
            else:
                assert file.read() == plain.read()
            assert file.tell() == plain.tell()


@given(st.lists(st.tuples(bounds, bounds), max_size=6), st.one_of(st.none(), st.integers(0, 1 << 20)))
def test_ranges_are_those_of_the_plain_file(fs, ranges, gap):
    expected = [PLAIN[begin:end] for begin, end in ranges]
    got = fs.cat_ranges(
        [PATH] * len(ranges), [begin for begin, _ in ranges], [end for _, end in ranges], max_gap=gap
    )
    assert got == expected
    assert [fs.cat_file(PATH, begin, end) for begin, end in ranges[:2]] == expected[:2]
