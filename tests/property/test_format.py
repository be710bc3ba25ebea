"""Every decoder of casstore.format: what was encoded comes back, and hostile bytes raise FormatError."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.digest import digest
from casstore.errors import CasstoreError, ConfigError, FormatError
from casstore.format import (
    canonical,
    envelope,
    frame,
    index,
    layout,
    manifest,
    marks,
    names,
    pack,
    paths,
    record,
    rows,
    run,
)
from casstore.format.frame import FrameHeader
from casstore.format.manifest import EMPTY_FILE_ID, ModelManifest, TreeEntry
from casstore.format.rows import Kind
from casstore.format.spans import pack_spans, unpack_spans

ids = st.binary(min_size=32, max_size=32)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=40)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
plain_names = st.text("abcXYZ-_.09é", min_size=1, max_size=12).filter(
    lambda n: n[-1] != "." and n not in (".", "..")
)


@st.composite
def headers(draw):
    bases = tuple(draw(st.lists(ids, max_size=3)))
    return FrameHeader(
        object_id=draw(ids),
        kind=draw(st.sampled_from(list(Kind))),
        encoding=draw(st.integers(0, 255)),
        raw=draw(st.integers(0, 1 << 20)),
        stored=draw(st.integers(0, 300)),
        rank=draw(st.integers(1, 32)) if bases else 0,
        bases=bases,
    )


def pack_of(frame_headers):
    body = pack.encode_header(b"n" * 16)
    offsets = []
    for header in frame_headers:
        offsets.append(len(body))
        body += frame.encode_header(header) + bytes(header.stored)
    footer = pack.footer_rows(frame_headers, offsets)
    whole = body + pack.encode_footer(footer, begin=len(body))
    assert (footer.begin, footer.pack_size) == (len(body), len(whole))
    return whole, footer


def read_pack_footer(data):
    trailer = pack.decode_trailer(data[-pack.TRAILER_SIZE :], pack_size=len(data), key="p")
    return pack.decode_footer(data[trailer.begin : trailer.begin + trailer.size], trailer, key="p")


@given(values)
def test_canonical_round_trip_and_one_form(value):
    data = canonical.encode(value)
    assert canonical.decode(data, what="it") == value
    assert canonical.encode(canonical.decode(data, what="it")) == data


@given(st.binary(max_size=200))
def test_canonical_refuses_or_decodes_to_the_same_bytes(data):
    try:
        value = canonical.decode(data, what="it")
    except FormatError:
        return
    assert canonical.encode(value) == data


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x82\xa1b\x01\xa1a\x02",  # keys out of order
        b"\x01\x01",  # trailing bytes
        b"\xcd\x00\x01",  # an integer that is not in its shortest form
        b"\xd4\x05\x00",  # ext type
        b"\x81\x01\x01",  # a key that is no string
        b"\xa2\xff\xff",  # not UTF-8
        b"\x91" * 33 + b"\x01",  # too deep
        b"\x91" * 100_000,  # absurdly deep
        b"\xca\x00\x00\x00\x00",  # a 32-bit float
    ],
)
def test_canonical_refuses(data):
    with pytest.raises(FormatError):
        canonical.decode(data, what="it")


@pytest.mark.parametrize("value", [{1: 2}, object(), [set()], 2**64, "\ud800", {"a": np.int64(1)}])
def test_canonical_cannot_encode(value):
    with pytest.raises(ConfigError):
        canonical.encode(value)


@given(st.binary(max_size=300))
def test_envelope_round_trip(body):
    assert envelope.unseal(b"01234567", envelope.seal(b"01234567", body), key="k") == body


@given(headers(), st.data())
def test_frame_header_round_trip_and_any_flip_is_seen(header, data):
    encoded = frame.encode_header(header)
    assert len(encoded) == header.size
    assert frame.decode_header(encoded + b"payload", key="p") == header
    at = data.draw(st.integers(0, len(encoded) - 1))
    flipped = bytearray(encoded)
    flipped[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FormatError):
        frame.decode_header(bytes(flipped), key="p")


@given(st.lists(headers(), max_size=8))
def test_pack_footer_round_trip(frame_headers):
    data, footer = pack_of(frame_headers)
    found = read_pack_footer(data)
    assert found.rows.tobytes() == footer.rows.tobytes()
    assert [found.bases.get(int(n)) for n in found.rows["bases"]] == [h.bases for h in frame_headers]
    assert [h for _, h in pack.scan_frames(data, key="p")] == frame_headers


@given(st.lists(headers(), max_size=5), st.data())
def test_any_flip_in_footer_or_trailer_is_seen(frame_headers, data):
    whole, _ = pack_of(frame_headers)
    begin = pack.decode_trailer(whole[-64:], pack_size=len(whole), key="p").begin
    at = data.draw(st.integers(begin, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FormatError):
        read_pack_footer(bytes(flipped))


@given(st.lists(headers(), min_size=1, max_size=5), st.data())
def test_a_torn_pack_scans_up_to_the_tear(frame_headers, data):
    whole, footer = pack_of(frame_headers)
    cut = data.draw(st.integers(pack.HEADER_SIZE, len(whole)))
    found = list(pack.scan_frames(whole[:cut], key="p"))
    ends = [int(o) + h.size + h.stored for o, h in zip(footer.rows["offset"], frame_headers, strict=True)]
    assert [h for _, h in found] == frame_headers[: sum(end <= cut for end in ends)]


@given(st.binary(max_size=400))
def test_pack_decoders_take_any_bytes(data):
    for attempt in (
        lambda: pack.check_header(data, key="p"),
        lambda: frame.decode_header(data, key="p"),
        lambda: read_pack_footer(data),
        lambda: list(pack.scan_frames(data, key="p")),
        lambda: rows.BaseLists.decode(data, key="p"),
    ):
        try:
            attempt()
        except FormatError:
            pass


def segment_of(count, seed, packs=3):
    rng = np.random.default_rng(seed)
    table = np.zeros(count, rows.ROW)
    table["id"] = np.frombuffer(rng.bytes(32 * count), ">u8").reshape(-1, 4)
    table["kind"] = Kind.CHUNK
    table["offset"] = rng.integers(32, 1 << 40, count)
    table["pack"] = rng.integers(0, packs, count)
    return table, index.encode(table, rows.BaseLists.empty(), {bytes([n]) * 32: n for n in range(packs)})


@given(st.integers(0, 2000), st.integers(0, 9))
def test_index_round_trip(count, seed):
    table, data = segment_of(count, seed)
    shape = index.decode_shape(data, key="i")
    assert shape.size == len(data)
    head = index.decode_head(data, shape, key="i")
    found = np.frombuffer(data[shape.rows_begin : shape.bases_begin], rows.ROW)
    assert sorted(rows.row_ids(table)) == rows.row_ids(found)
    for bucket in range(shape.buckets):
        part = found[head.fanout[bucket] : head.fanout[bucket + 1]]
        head.check_buckets(np.array([bucket]), [part.tobytes()], key="i")
        assert (head.bucket_of(part["id"].astype(np.uint64)) == bucket).all()


@given(st.integers(1, 4000), st.integers(0, 9), st.integers(0, 3))
def test_a_segment_in_batches_is_the_same_segment(count, seed, bits):
    table, data = segment_of(count, seed)
    ordered = table[rows.sort_order(table)]
    bits = min(bits, index.bucket_bits(count))
    leads = ordered["id"][:, 0].astype(np.uint64) >> np.uint64(64 - bits) if bits else np.zeros(count)
    batches = [ordered[leads == lead] for lead in range(1 << bits)]
    packs = {bytes([n]) * 32: n for n in range(3)}
    parts = index.encode_parts(lambda: iter(batches), count, rows.BaseLists.empty(), packs)
    assert b"".join(parts) == data


@given(st.data())
def test_any_flip_in_an_index_is_seen(data):
    _, encoded = segment_of(200, 1)
    at = data.draw(st.integers(0, len(encoded) - 1))
    flipped = bytearray(encoded)
    flipped[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FormatError):
        whole_index(bytes(flipped))


@given(st.binary(max_size=400))
def test_index_decoders_take_any_bytes(data):
    try:
        whole_index(data)
    except FormatError:
        pass


def whole_index(data):
    shape = index.decode_shape(data, key="i")
    if shape.size != len(data):
        raise FormatError("length")
    head = index.decode_head(data, shape, key="i")
    index.decode_bases(data[shape.bases_begin :], head, key="i")
    table = np.frombuffer(data[shape.rows_begin : shape.bases_begin], rows.ROW)
    for bucket in range(shape.buckets):
        part = table[head.fanout[bucket] : head.fanout[bucket + 1]]
        head.check_buckets(np.array([bucket]), [part.tobytes()], key="i")
    keys = np.frombuffer(data[shape.head_size : shape.rows_begin], "<u4")
    head.check_keys(table, keys, key="i")


@given(st.lists(st.tuples(ids, st.integers(1, 1 << 20)), max_size=10), ids)
def test_layout_round_trip(chunks, file_id):
    size = sum(length for _, length in chunks)
    value = layout.Layout(
        file_id=file_id,
        size=size,
        ids=b"".join(chunk for chunk, _ in chunks),
        lengths=np.array([length for _, length in chunks], "<u4"),
        spans=(layout.Span("w", "F32", (2, 3), 0, size),),
        extra={"later": [1, {"a": b""}]},
    )
    found = layout.decode(layout.encode(value))
    assert layout.encode(found) == layout.encode(value)
    assert found.chunk_ids() == [chunk for chunk, _ in chunks]
    assert found.spans == value.spans
    assert found.extra == value.extra


SPANS = st.lists(
    st.builds(
        lambda name, dtype, shape, ends: layout.Span(name, dtype, tuple(shape), min(ends), max(ends)),
        st.text(max_size=4),
        st.sampled_from(["F32", "BF16", "ü", ""]),
        st.lists(st.integers(0, (1 << 64) - 1), max_size=3),
        st.tuples(st.integers(0, 99), st.integers(0, 99)),
    ),
    max_size=8,
)


@given(SPANS, st.slices(9))
def test_spans_in_columns_are_what_went_in(items, part):
    packed = pack_spans(items)
    value = layout.Layout(bytes(32), 99, b"i" * 32, np.array([99], "<u4"), spans=items)
    found = layout.decode(layout.encode(value)).spans
    assert found == packed == tuple(items)
    assert list(found) == items
    assert found[part] == tuple(items)[part]
    assert [found[at] for at in range(-len(items), len(items))] == items + items
    assert layout.encode(replace(value, spans=found)) == layout.encode(value)
    for name in ("", "a", "ab", *(item.name for item in items)):
        first = next((item for item in items if item.name == name), None)
        assert (found.find(name) if found else None) == first


def test_names_that_are_text_only_together_are_refused():
    packed = pack_spans([layout.Span("é", "F32", (), 0, 0), layout.Span("", "F32", (), 0, 0)])
    torn = {**packed.fields(), "name_lengths": np.array([1, 1], "<u4").tobytes()}
    assert unpack_spans(packed.fields(), 0) == packed
    with pytest.raises(FormatError):
        unpack_spans(torn, 0)


TWO_SPANS = [layout.Span("a", "F32", (1,), 0, 4), layout.Span("b", "I8", (2, 1), 4, 6)]


@pytest.mark.parametrize(
    "change",
    [
        {"begins": np.array([5, 4], "<u8")},
        {"ends": np.array([4, 7], "<u8")},
        {"name_lengths": np.array([1, 2], "<u4")},
        {"name_lengths": np.array([1], "<u4")},
        {"ranks": np.array([1, 1], "u1")},
        {"dtype": np.array([1, 0], "<u4")},
        {"dtype": np.array([0, 0], "<u4")},
        {"dtype": np.array([0, 2], "<u4")},
        {"dtypes": ["F32", "F32"]},
        {"dtypes": ["F32"]},
        {"dtypes": ["F32", 7]},
        {"dtypes": ["F32", []]},
        {"names": b"a\xff"},
    ],
)
def test_columns_that_break_a_rule_are_refused(change):
    sound = pack_spans(TWO_SPANS).fields()
    assert unpack_spans(sound, 6) == pack_spans(TWO_SPANS)
    broken = {name: item.tobytes() if isinstance(item, np.ndarray) else item for name, item in change.items()}
    with pytest.raises(FormatError):
        unpack_spans({**sound, **broken}, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        layout.Span("c", "F32", (), 8, 12),
        layout.Span("c", "F32", (), 4, 3),
        layout.Span("c", None, (), 0, 0),
        layout.Span("\ud800", "F32", (), 0, 0),
    ],
)
def test_spans_that_a_reader_refuses_are_not_written(wrong):
    value = layout.Layout(bytes(32), 9, b"i" * 32, np.array([9], "<u4"), spans=(*TWO_SPANS, wrong))
    with pytest.raises(ConfigError):
        layout.encode(value)


posix_names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1).filter(
    lambda name: name not in (".", "..")
)


@given(
    st.dictionaries(
        posix_names, st.just((0, None)) | st.just((0, EMPTY_FILE_ID)) | st.tuples(st.integers(1, 9), ids)
    )
)
def test_tree_round_trip(contents):
    """Whatever names a folder can hold: no two that differ in their bytes ever clash."""
    tree = manifest.make_tree([TreeEntry(f"d/{name}", *rest) for name, rest in contents.items()])
    assert manifest.decode_tree(manifest.encode_tree(tree)) == tree
    assert len(tree.files) + len(tree.empty) == len(contents)


@given(st.data(), st.lists(ids, max_size=5), ids)
def test_model_round_trip(data, layouts, model_id):
    executable = data.draw(st.sets(st.sampled_from(range(len(layouts))))) if layouts else ()
    value = ModelManifest(model_id, tuple(layouts), tuple(sorted(executable)), {"note": "kept"})
    assert manifest.decode_model(manifest.encode_model(value)) == value


@given(st.lists(st.integers(0, 6) | st.integers(0, 2**32 - 1), max_size=5), st.integers(0, 5))
def test_executable_files_are_in_order_and_in_the_model(positions, files):
    value = ModelManifest(b"t" * 32, (b"l" * 32,) * files, tuple(positions))
    if positions == sorted(set(positions)) and all(at < files for at in positions):
        assert manifest.decode_model(manifest.encode_model(value)) == value
    else:
        with pytest.raises(ConfigError, match="executable"):
            manifest.encode_model(value)
        whole = canonical.decode(manifest.encode_model(replace(value, executable=())), what="it")
        data = canonical.encode({**whole, "executable": np.array(positions, "<u4").tobytes()})
        with pytest.raises(FormatError, match="executable"):
            manifest.decode_model(data)


@pytest.mark.parametrize("executable", [None, [0], "0", b"\0\0\0", b"\0\0\0\0\0"])
def test_executable_files_that_are_no_list_of_positions(executable):
    value = {"type": "model", "version": 1, "tree": b"t" * 32, "layouts": b"l" * 32, "executable": executable}
    if executable is None:
        del value["executable"]
    with pytest.raises(FormatError, match="executable"):
        manifest.decode_model(canonical.encode(value))


@given(values)
def test_decoders_of_maps_take_any_value(value):
    for kind, decoder in {
        "layout": layout.decode,
        "tree": manifest.decode_tree,
        "model": manifest.decode_model,
    }.items():
        data = canonical.encode(
            {"type": kind, "version": 1, "a": value, "entries": value, "ids": value, "layouts": value}
        )
        with pytest.raises(FormatError):
            decoder(data)


@given(plain_names, st.integers(1, 2**60), st.binary(min_size=16, max_size=16), st.booleans())
def test_record_round_trip(name, seq, write_id, exclusive):
    value = record.Record(
        name=f"tags/{name}",
        seq=seq,
        write_id=write_id,
        time=1,
        writer="w",
        target=None,
        metadata={"a": [1.5, None]},
        packs=(b"p" * 32,),
        exclusive=exclusive,
        extra={"new": 1},
    )
    record.check_writable(value)
    assert record.decode(record.encode(value), key=value.key) == value
    assert names.parse_key(value.key).name == value.name
    assert value.key == value.key.lower()


@given(st.data())
def test_any_flip_in_a_record_is_seen(data):
    value = record.Record("models/m", 1, b"w" * 16, 1, "w", b"t" * 32)
    encoded = bytearray(record.encode(value))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FormatError):
        record.decode(bytes(encoded), key=value.key)


@given(st.text(max_size=30))
def test_names_and_paths_take_any_text(text):
    for check in (names.check_name, paths.check_path):
        try:
            check(text)
        except ConfigError:
            pass
    try:
        names.parse_key(text)
    except FormatError:
        pass


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "../a",
        "a/..",
        ".",
        "a/./b",
        "a\0",
        "a/" * 32768 + "b",
        "\ud800",
    ],
)
def test_unsafe_paths_are_refused(path):
    with pytest.raises(ConfigError):
        paths.check_path(path)


@pytest.mark.parametrize(
    "path", ["C:a", "a\\b", "a\n", "con", "a/NUL.txt", "a.", "a ", "x" * 256, "COM1.bin", "a/" * 32767 + "b"]
)
def test_whatever_a_posix_machine_can_hold_is_a_path(path):
    paths.check_path(path)


@pytest.mark.parametrize("clash", [["a", "a"], ["a", "a/b"], ["a/b", "a!", "a", "c"], ["a", "a.b", "a/b/c"]])
def test_clashing_paths_are_refused(clash):
    with pytest.raises(ConfigError):
        paths.check_paths(clash)


@pytest.mark.parametrize("pair", [["a", "A"], ["é", "e\u0301"], ["d/x", "D/y"], ["ß", "ss"], ["a", "A/b"]])
def test_paths_that_some_file_system_takes_for_one_are_two(pair):
    paths.check_paths(pair)


def test_many_paths_are_checked_in_no_time():
    """By the neighbours of each: 100,000 files, and folders as deep as a path allows."""
    paths.check_paths(
        [f"folder {at % 100}/{at}" for at in range(100_000)] + ["a/" * 32767 + str(n) for n in range(9)]
    )


@given(posix_names)
def test_keys_of_any_name_are_safe_everywhere(name):
    """What may be a ref name has a key of few characters, that no system takes for a device, and back again."""
    try:
        names.check_name(f"models/{name}")
    except ConfigError:
        return
    key = names.record_key(f"models/{name}", seq=1, write_id=b"w" * 16)
    assert names.parse_key(key).name == f"models/{name}"
    file_name = key.rpartition("/")[2]
    assert set(file_name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._+-=@")
    assert not file_name.startswith(".")
    assert file_name.split(".")[0] not in {"con", "prn", "aux", "nul", "com1", "lpt9"}


@pytest.mark.parametrize("name", ["con.v1", "aux.x", "lpt9.", "con", "console.x", "con\u00b9.x"])
def test_keys_of_names_that_windows_would_take_for_devices(name):
    key = names.record_key(f"models/{name}", seq=1, write_id=b"w" * 16)
    assert key.rpartition("/")[2].split(".")[0] not in {"con", "aux", "lpt9"}
    assert names.parse_key(key).name == f"models/{name}"


@given(ids, st.lists(ids, max_size=4))
def test_marks_round_trip(one, packs):
    value = marks.StoreFormat(one[:16])
    assert marks.decode_format(marks.encode_format(value)) == value
    private = marks.Private(one[16:], 7)
    assert marks.decode_private(marks.encode_private(private)) == private
    for damaged in (b"", marks.encode_private(private)[:-1], marks.encode_format(value)):
        with pytest.raises(FormatError):
            marks.decode_private(damaged)
    tomb = marks.Tombstone(tuple(packs), 7)
    assert marks.decode_tombstone(marks.encode_tombstone(tomb), key="t") == tomb


def test_newer_versions_are_unsupported_not_corrupt():
    for value in (
        {"type": "tree", "version": 2, "entries": []},
        {"type": "tree", "version": 1, "requires": ["x"], "entries": []},
    ):
        with pytest.raises(CasstoreError, match="upgrade"):
            manifest.decode_tree(canonical.encode(value))


def test_digest_is_b3sum():
    assert digest(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


# ---- what an encoder accepts, a decoder accepts, up to the limits (invariant 14)


def encoded(encode, decode, value):
    """Return whether `encode` takes the value; if so, `decode` does, too."""
    try:
        data = encode(value)
    except (ConfigError, FormatError):
        return False
    decode(data)
    return True


edges = st.sampled_from([0, 1, 8, 9, 255, 256, 1 << 20, (1 << 20) + 1, 1 << 28, (1 << 28) + 1])


@given(
    st.sampled_from([0, 1, 2, 3, 4, 5]),
    edges,
    edges,
    st.sampled_from([0, 1, 32, 33]),
    st.sampled_from([0, 1, 4096, 4097]),
)
def test_frames_at_the_limits(kind, raw, stored, rank, count):
    header = FrameHeader(b"i" * 32, kind, 1, raw, stored, rank, (b"b" * 32,) * count)
    fits = (
        kind in list(Kind)
        and max(raw, stored) <= (1 << 20 if kind == Kind.CHUNK else 1 << 28)
        and rank <= 32
        and count <= 4096
        and (rank == 0) == (count == 0)
    )
    assert encoded(frame.encode_header, lambda data: frame.decode_header(data, key="p"), header) == fits
    footer = lambda: pack.footer_rows([header], [pack.HEADER_SIZE])  # noqa: E731  # what is refused is the call
    assert (
        encoded(lambda _: footer().bases.encode(), lambda data: rows.BaseLists.decode(data, key="p"), 0)
        == fits
    )


@given(
    st.lists(st.tuples(st.integers(0, 2), edges), max_size=4),
    st.integers(-1, 2),
    st.lists(st.tuples(edges, edges, st.sampled_from([(), (1,), (-1,), (True,)])), max_size=3),
    st.sampled_from([b"f" * 32, b"", b"f" * 31]),
)
def test_layouts_at_the_limits(chunks, off, spans, file_id):
    lengths = [length for _, length in chunks]
    value = layout.Layout(
        file_id=file_id,
        size=sum(lengths) + off,
        ids=b"i" * 32 * len(lengths),
        lengths=np.array(lengths, "<u4"),
        spans=tuple(layout.Span("t", "F32", shape, begin, end) for begin, end, shape in spans),
    )
    fits = (
        off == 0
        and len(file_id) == 32
        and all(0 < length <= 1 << 20 for length in lengths)
        and all(begin <= end <= value.size and shape in ((), (1,)) for begin, end, shape in spans)
        and not any(shape == (True,) and type(shape[0]) is bool for _, _, shape in spans)
    )
    assert encoded(layout.encode, layout.decode, value) == fits


@pytest.mark.parametrize(("depth", "fits"), [(31, True), (32, False)])
def test_nesting_at_the_limit(depth, fits):
    value = []
    for _ in range(depth):
        value = [value]
    assert encoded(canonical.encode, lambda data: canonical.decode(data, what="it"), value) == fits


@pytest.mark.parametrize(("spare", "fits"), [(1, True), (0, False)])
def test_items_at_the_limit(monkeypatch, spare, fits):
    monkeypatch.setattr(canonical, "MAX_ITEMS", 1000)
    value = [0] * (1000 - spare)
    assert encoded(canonical.encode, lambda data: canonical.decode(data, what="it"), value) == fits


def test_a_layout_of_too_many_bytes_is_refused(monkeypatch):
    spans = tuple(layout.Span(f"t{number}", "F32", (1,), 0, 1) for number in range(200))
    value = layout.Layout(b"f" * 32, 1, b"i" * 32, np.array([1], "<u4"), spans)
    size = len(layout.encode(value))
    monkeypatch.setattr(layout, "MAX_OBJECT", size)
    assert encoded(layout.encode, layout.decode, value)
    monkeypatch.setattr(layout, "MAX_OBJECT", size - 1)
    with pytest.raises(ConfigError, match="limit"):
        layout.encode(value)


@given(
    st.sampled_from(
        [
            "models/m",
            "tags/t",
            "models/" + "x" * 200,
            "models/" + "x" * 201,
            "models/\ud800",
            "x/y",
            "models/é",
        ]
    ),
    st.sampled_from([0, 1, names.MAX_SEQ, names.MAX_SEQ + 1, -1]),
    st.sampled_from([(b"w" * 16, None), (b"w" * 16, b"t" * 32), (b"w" * 15, None), (b"w" * 16, b"t")]),
    st.sampled_from([{}, {"a": 1.5}, {"a": object()}, {1: 2}, {"a": float("nan")}]),
    st.booleans(),
)
def test_records_at_the_limits(name, seq, ids, metadata, exclusive):
    write_id, target = ids
    value = record.Record(name, seq, write_id, 1, "w", target, metadata=metadata, exclusive=exclusive)
    fits = (
        name in ("models/m", "tags/t", "models/" + "x" * 200, "models/é")
        and 0 <= seq <= names.MAX_SEQ
        and len(write_id) == 16
        and target != b"t"
        and metadata != {1: 2}
        and not any(type(item) is object for item in metadata.values())
    )
    try:
        record.check_writable(value)
    except ConfigError:
        assert not fits
    else:
        assert fits
        record.decode(record.encode(value), key=value.key)
        assert names.parse_key(value.key).seq == seq


def test_a_record_of_too_many_bytes_is_refused(monkeypatch):
    value = record.Record("models/m", 1, b"w" * 16, 1, "w", b"t" * 32, metadata={"a": "x" * 5000})
    size = len(record.encode(value))
    monkeypatch.setattr(record, "MAX_RECORD", size)
    record.check_writable(value)
    monkeypatch.setattr(record, "MAX_RECORD", size - 1)
    with pytest.raises(ConfigError, match="limit"):
        record.check_writable(value)
    with pytest.raises(FormatError, match="larger"):
        record.decode(record.encode(value), key=value.key)


@given(
    st.sampled_from([None, b"i" * 32, b"i"]),
    st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from([b"m" * 32, b"m", None])),
    st.sampled_from([None, "cpu", 5]),
    st.dictionaries(st.sampled_from(["c"]), scalars, max_size=1),
    st.sampled_from([1, 1.5, -1]),
)
def test_runs_at_the_limits(input_id, artifacts, accelerator, config, started):
    key = run.RunKey("in", "pass", "1", config, accelerator)
    value = run.RunManifest(
        "r", key, run.RunStatus.DONE, input_id, None, "in", started, 1, config, artifacts=artifacts
    )
    fits = (
        input_id != b"i"
        and all(item == b"m" * 32 for item in artifacts.values())
        and accelerator != 5
        and started != 1.5
    )
    assert encoded(run.encode_run, run.decode_run, value) == fits
    evaluation = run.EvaluationManifest("e", input_id, "how", config)
    assert encoded(run.encode_evaluation, run.decode_evaluation, evaluation) == (input_id != b"i")


@given(st.lists(st.sampled_from([b"l" * 32, b"l"]), max_size=3), st.sampled_from([b"m" * 32, b"m"]))
def test_models_at_the_limits(layouts, model_id):
    value = ModelManifest(model_id, tuple(layouts))
    fits = len(model_id) == 32 and len(b"".join(layouts)) % 32 == 0
    assert encoded(manifest.encode_model, manifest.decode_model, value) == fits


base_lists = st.lists(
    st.lists(st.sampled_from([bytes([n]) * 32 for n in range(5)]), min_size=1, max_size=4).map(tuple),
    max_size=30,
)


@given(base_lists)
def test_sorted_base_lists_say_the_same_with_equal_ones_once(given_lists):
    lists = rows.BaseLists.of(given_lists)
    merged, renumbered = lists.sorted()
    assert renumbered[0] == 0
    for at, item in enumerate(given_lists):
        assert merged.get(int(renumbered[at + 1])) == item
    assert len(merged) == len(set(given_lists))
    leads = [merged.get(at + 1)[0][:8] for at in range(len(merged))]
    assert leads == sorted(leads)
    again, same = merged.sorted()
    assert (again.ids, again.offsets.tolist()) == (merged.ids, merged.offsets.tolist())
    assert same.tolist() == list(range(len(merged) + 1))


@given(base_lists)
def test_base_lists_in_a_segment_round_trip(given_lists):
    table = np.zeros(len(given_lists), rows.ROW)
    table["id"] = np.frombuffer(np.random.default_rng(1).bytes(32 * len(table)), ">u8").reshape(-1, 4)
    table["kind"], table["rank"], table["bases"] = Kind.CHUNK, 1, np.arange(1, len(table) + 1)
    data = index.encode(table, rows.BaseLists.of(given_lists), {bytes(32): 1})
    shape = index.decode_shape(data, key="i")
    head = index.decode_head(data, shape, key="i")
    lists = index.decode_bases(data[shape.bases_begin :], head, key="i")
    found = np.frombuffer(data[shape.rows_begin : shape.bases_begin], rows.ROW)
    told = {row["id"].tobytes(): lists.get(int(row["bases"])) for row in found}
    assert told == dict(zip(rows.row_ids(table), given_lists, strict=True))
