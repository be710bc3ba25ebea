"""A store that an attacker wrote, with the package's own encoders: every lie is an error, and none does harm.

What the attacker may do is write any bytes under any key; what must hold is that a reader raises one of
casstore's errors, takes bounded memory, and writes nothing outside the destination of a checkout.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
import time
import tracemalloc
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import zstandard
from fakes.model_files import safetensors_bytes
from fakes.stores import assert_clean, model_of, noise, write_model
from fsspec import Callback

from casstore import ConfigError, IntegrityError, Store
from casstore.codecs import Encoding
from casstore.digest import digest
from casstore.errors import CasstoreError, DigestMismatch, FormatError, MissingObject, UnsupportedVersion
from casstore.format import canonical, envelope, frame, index, layout, marks, pack
from casstore.format.manifest import EMPTY_FILE_ID, ModelManifest, encode_model
from casstore.format.record import Record
from casstore.format.record import encode as encode_record
from casstore.format.rows import ROW, BaseLists, Kind, sort_order
from casstore.objects.keys import index_key, pack_key
from casstore.ops.check import check

MIB = 1 << 20


@contextmanager
def lying():
    """Let encoders write what no reader takes."""
    checks = {"_check": layout, "_check_limits": frame, "check_rows": pack}
    with ExitStack() as stack:
        for name, module in checks.items():
            stack.enter_context(patch.object(module, name, lambda *_, **__: None))
        yield


class Forge:
    """Writes whatever it is told to, in the right form, under the right names."""

    def __init__(self, root):
        self.root = root
        self.store = Store(root, create=True, durability="none")
        self._frames = []
        self._models = 0

    def frame(
        self, kind, plain, *, object_id=None, encoding=Encoding.RAW, payload=None, raw=None, stored=None
    ):
        """Add a frame to the next pack; everything that its header says may be a lie."""
        payload = plain if payload is None else payload
        object_id = digest(plain) if object_id is None else object_id
        header = frame.FrameHeader(
            object_id,
            kind,
            encoding,
            len(plain) if raw is None else raw,
            len(payload) if stored is None else stored,
        )
        self._frames.append((header, payload))
        return object_id

    def layout_of(self, plain, *, pieces=None, **changes):
        """Add a layout that cuts `plain` into `pieces` (one by default), and its chunks."""
        pieces = [plain] if pieces is None else pieces
        values = {
            "file_id": digest(plain),
            "size": len(plain),
            "ids": b"".join(self.frame(Kind.CHUNK, piece) for piece in pieces),
            "lengths": np.array([len(piece) for piece in pieces], "<u4"),
        }
        with lying():
            return self.frame(Kind.LAYOUT, layout.encode(layout.Layout(**{**values, **changes})))

    def flush(self, *, cover=True, change_rows=None):
        """Write one pack of the frames so far, and a segment over it."""
        blob = bytearray(pack.encode_header(os.urandom(16)))
        offsets = []
        for header, payload in self._frames:
            offsets.append(len(blob))
            with lying():
                blob += frame.encode_header(header) + payload
        with lying():
            footer = pack.footer_rows([header for header, _ in self._frames], offsets)
        if change_rows is not None:
            change_rows(footer.rows)
        blob += pack.encode_footer(footer, begin=len(blob))
        self._frames = []
        pack_id = digest(blob)
        self.store.backend.put(pack_key(pack_id), [blob])
        if cover:
            self.segment(footer.rows, [pack_id])
        return pack_id, footer.rows

    def segment(self, rows, packs):
        sizes = {pack_id: self.store.backend.stat(pack_key(pack_id)).size for pack_id in packs}
        rows = rows[sort_order(rows)]
        self.put_segment(
            b"".join(index.encode_parts(lambda: iter((rows,)), len(rows), BaseLists.empty(), sizes))
        )

    def put_segment(self, data):
        self.store.backend.put(index_key(data), [data])

    def model(self, rows, layouts, *, executable=(), ref=None, target=None, flush=True, **tree):
        """Publish a tree of [path, size, file id] rows, sorted or not, safe or not."""
        self._models += 1
        name = ref or f"models/m{self._models}"
        body = {"type": "tree", "version": 1, "entries": rows, **tree}
        model_id = self.frame(Kind.TREE, canonical.encode(body))
        manifest = self.frame(
            Kind.MANIFEST, encode_model(ModelManifest(model_id, tuple(layouts), executable))
        )
        if flush:
            self.flush()
        self.record(name, target=target or model_id, manifest=manifest)
        return name

    def file(self, plain, path="f.bin", **changes):
        """Publish a model of one file whose layout has these changes."""
        pieces = changes.pop("pieces", None)
        return self.model(
            [[path, len(plain), digest(plain)]], [self.layout_of(plain, pieces=pieces, **changes)]
        )

    def record(self, name, **values):
        seq = values.pop("seq", 1)
        made = Record(name, seq, os.urandom(16), time.time_ns(), "forge", values.pop("target"), **values)
        self.store.backend.put(made.key, [encode_record(made)])

    def opened(self):
        return Store(self.root)


@pytest.fixture
def forge(tmp_path):
    made = Forge(tmp_path / "store")
    yield made
    made.store.close()


@pytest.fixture
def outside(tmp_path):
    """A place beside the destination that nobody may touch; the test fails if anybody did."""
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "sandbox/precious").write_bytes(b"precious")
    (tmp_path / "sandbox/folder").mkdir()
    yield tmp_path / "sandbox"
    left = {str(path.relative_to(tmp_path / "sandbox")) for path in (tmp_path / "sandbox").rglob("*")}
    assert {name for name in left if not name.startswith("out")} == {"precious", "folder"}
    assert (tmp_path / "sandbox/precious").read_bytes() == b"precious"


def assert_refused(forge, ref, destination, *, error=IntegrityError, path="f.bin", reported=True):
    """No way of reading gives anything, and `check` says why."""
    with forge.opened() as store:
        with pytest.raises(error):
            store.get(ref, destination)
        assert not destination.exists()
        with pytest.raises(CasstoreError):
            store.open_file(ref, path).read()
        with pytest.raises(CasstoreError):
            store.read_tensor(ref, "w", file=path)
        assert check(store, read_data=True).ok != reported


def test_an_honest_forgery_is_read(forge, tmp_path):
    """Otherwise the tests below would show nothing."""
    ref = forge.file(b"harmless")
    with forge.opened() as store:
        store.get(ref, tmp_path / "out")
        assert_clean(store)
    assert (tmp_path / "out/f.bin").read_bytes() == b"harmless"


# ---- trees


ESCAPES = [
    "../escaped",
    "/escaped",
    "//escaped",
    "a/../../escaped",
    "a/..",
    "..",
    ".",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "",
    "a\0b",
    "d/" * 32768 + "f",
]


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("is_file", [True, False])
def test_paths_that_lead_out_of_the_destination(forge, outside, path, is_file):
    rows = [[path, 4, digest(b"evil")]] if is_file else [[path, 0, None]]
    ref = forge.model(rows, [forge.layout_of(b"evil")] if is_file else [])
    assert_refused(forge, ref, outside / "out", error=FormatError, path=path)


CLASHES = [
    ["a", "a"],
    ["a", "a/b"],
    ["b", "a"],
]


@pytest.mark.parametrize("paths", CLASHES)
def test_paths_that_meet_or_are_out_of_order(forge, outside, paths):
    for ordered in (paths, sorted(paths, key=str.encode)) if paths != ["b", "a"] else (paths,):
        rows = [[path, 1, digest(b"%d" % at)] for at, path in enumerate(ordered)]
        ref = forge.model(rows, [forge.layout_of(b"%d" % at) for at in range(len(paths))])
        assert_refused(forge, ref, outside / "out", error=FormatError, path=paths[0])


GOOD = ["f.bin", 4, digest(b"evil")]
BAD_ROWS = [
    ["f.bin", "4", digest(b"evil")],
    ["f.bin", -4, digest(b"evil")],
    ["f.bin", True, digest(b"evil")],
    ["f.bin", 4.0, digest(b"evil")],
    ["f.bin", 1 << 63, digest(b"evil")],
    ["f.bin", 4, digest(b"evil")[:31]],
    ["f.bin", 4, digest(b"evil").hex()],
    ["f.bin", 0, digest(b"evil")],
    ["f.bin", 4, EMPTY_FILE_ID],
    ["f.bin", 4, None],
    ["f.bin", False, None],
    ["f.bin", 0.0, None],
    ["f.bin", None, None],
    [b"f.bin", 4, digest(b"evil")],
    ["f.bin", 4],
    ["f.bin", 0, 4, digest(b"evil")],
    ["f.bin", 4, digest(b"evil"), "more"],
    "f.bin",
    None,
]


@pytest.mark.parametrize("row", BAD_ROWS)
def test_entries_that_are_none(forge, outside, row):
    ref = forge.model([row], [forge.layout_of(b"evil")])
    assert_refused(forge, ref, outside / "out", error=FormatError)


@pytest.mark.parametrize("size", [3, 5, 1 << 20, 1 << 40, (1 << 63) - 1])
def test_sizes_that_the_layout_does_not_have(forge, outside, size):
    """A reader must not prepare for what a tree promises before it looked at the layout."""
    ref = forge.model([["f.bin", size, digest(b"evil")]], [forge.layout_of(b"evil")])
    assert_refused(forge, ref, outside / "out", error=FormatError)


def test_a_tree_with_keys_of_its_own(forge, outside):
    ref = forge.model([GOOD], [forge.layout_of(b"evil")], note="x")
    assert_refused(forge, ref, outside / "out", error=FormatError)


@pytest.mark.parametrize("count", [0, 2])
def test_a_manifest_with_too_few_or_too_many_layouts(forge, outside, count):
    ref = forge.model([GOOD], [forge.layout_of(b"evil")] * count)
    assert_refused(forge, ref, outside / "out", error=FormatError)


def test_a_record_that_names_another_model_than_its_manifest(forge, outside):
    ref = forge.model([GOOD], [forge.layout_of(b"evil")], target=digest(b"another model"))
    assert_refused(forge, ref, outside / "out", error=FormatError)


def test_objects_in_each_others_places(forge, outside):
    """Each id names an object that is there, whole and of another kind."""
    chunk = forge.frame(Kind.CHUNK, b"evil")
    tree = forge.frame(Kind.TREE, canonical.encode({"type": "tree", "version": 1, "entries": [GOOD]}))
    cut = forge.layout_of(b"evil")
    manifest = forge.frame(Kind.MANIFEST, encode_model(ModelManifest(tree, (cut,))))
    swapped = [
        encode_model(ModelManifest(*ids)) for ids in ((cut, (tree,)), (tree, (chunk,)), (manifest, (cut,)))
    ]
    ids = [chunk, tree, cut, *(forge.frame(Kind.MANIFEST, plain) for plain in swapped)]
    forge.flush()
    for number, object_id in enumerate(ids):
        forge.record(f"models/swapped{number}", target=tree, manifest=object_id)
        assert_refused(forge, f"models/swapped{number}", outside / "out", error=FormatError)


def test_a_file_that_is_a_layout_is_only_a_file(forge, tmp_path):
    """Ids say nothing of kinds: bytes that happen to be a layout are stored once and read as both."""
    with forge.opened() as store:
        store.add(write_model(model_of(f=noise(1, 3000)), tmp_path / "one"), ref="models/one")
        [layout_id] = {
            bytes(row["id"].tobytes())
            for rows in store.objects._index.all_rows()
            for row in rows[rows["kind"] == 2]
        }
        [tree_id] = {
            bytes(row["id"].tobytes())
            for rows in store.objects._index.all_rows()
            for row in rows[rows["kind"] == 4]
        }
        both = model_of(layout=store.objects.read(layout_id), tree=store.objects.read(tree_id))
        assert store.add(write_model(both, tmp_path / "two"), ref="models/two").chunks_new == 0
        store.get("models/two", tmp_path / "out")
        assert_clean(store)
    assert (tmp_path / "out/layout").read_bytes() == both.files["layout"][0]
    with Store("memory://kinds", create=True) as store:
        store.add(tmp_path / "two", ref="models/two")
        store.add(tmp_path / "one", ref="models/one")
        assert_clean(store)
        with store.open_file("models/one", "f") as file:
            assert file.read() == noise(1, 3000)


# ---- layouts


@pytest.mark.parametrize(
    "changes",
    [
        {"lengths": np.array([0, 4], "<u4"), "ids": digest(b"") + digest(b"evil")},
        {"lengths": np.array([4, 4], "<u4")},
        {"lengths": np.zeros(0, "<u4")},
        {"lengths": np.array([5], "<u4"), "size": 5},
        {"lengths": np.array([3], "<u4"), "size": 3},
        {"lengths": np.array([(1 << 20) + 1], "<u4"), "size": (1 << 20) + 1},
        {"lengths": np.array([0xFFFFFFFF], "<u4"), "size": 0xFFFFFFFF},
        {"size": 1 << 62},
        {"ids": digest(b"evil")[:31]},
        {"file_id": b"short"},
        {"file_id": digest(b"another file")},
    ],
)
def test_layouts_that_do_not_describe_their_file(forge, outside, changes):
    size = changes.get("size", 4)
    ref = forge.model([["f.bin", size, digest(b"evil")]], [forge.layout_of(b"evil", **changes)])
    assert_refused(forge, ref, outside / "out")


def test_a_layout_whose_chunks_are_longer_or_shorter_than_it_says(forge, outside):
    for lengths in ([2, 6], [6, 2]):
        ref = forge.file(b"evil" * 2, pieces=[b"evil", b"evil"], lengths=np.array(lengths, "<u4"))
        assert_refused(forge, ref, outside / "out")


def test_a_layout_that_swaps_chunks_never_becomes_a_file(forge, outside):
    """Every chunk is whole, only their order is not the file's: the whole file's hash stops the checkout."""
    ref = forge.file(b"onetwo", pieces=[b"two", b"one"])
    (outside / "out").mkdir()
    with forge.opened() as store, pytest.raises(DigestMismatch, match=r"f\.bin"):
        store.get(ref, outside / "out")
    assert list((outside / "out").iterdir()) == []


def test_chunks_that_no_pack_holds(forge, outside):
    ref = forge.file(b"evil", ids=digest(b"not there"))
    assert_refused(forge, ref, outside / "out", error=MissingObject)


HUGE = [
    (1 << 63,),
    (0, 1 << 63),
    (1 << 32, 1 << 32),
    (0, (1 << 64) - 1),
    (0,) * 100,
    (1,) * 100,
    (3,),
    (2, 3),
]


@pytest.mark.parametrize("shape", HUGE)
@pytest.mark.parametrize("dtype", ["F32", "Q4_0", "BOOL"])
def test_tensors_of_impossible_shapes(forge, shape, dtype):
    plain = noise(1, 16)
    for begin, end in ((0, 16), (0, 0), (16, 16), (3, 7)):
        ref = forge.file(plain, spans=(layout.Span("w", dtype, shape, begin, end),))
        with forge.opened() as store, suppress(IntegrityError):
            # What is empty anyway may have any shape that an array can have.
            assert store.read_tensor(ref, "w", file="f.bin").size == end - begin == 0


def u64(*numbers):
    return np.array(numbers, "<u8").tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"begins": u64((1 << 64) - 1)},
        {"begins": u64(17), "ends": u64(17)},
        {"ends": u64(17)},
        {"begins": u64(16), "ends": u64(0)},
        {"begins": u64(0, 0)},
        {"begins": b""},
        {"begins": b"1234567"},
        {"begins": 0},
        {"dtype": bytes(3)},
        {"dtype": b"\1\0\0\0"},
        {"dtypes": []},
        {"dtypes": ["F32", "F32"]},
        {"dtypes": ["F32", "I8"]},
        {"dtypes": [5]},
        {"dtypes": "F32"},
        {"names": b"ww"},
        {"names": b"\xff"},
        {"names": "w"},
        {"name_lengths": b"\2\0\0\0"},
        {"ranks": b"\2"},
        {"shapes": u64(4, 4)},
        {"shapes": [4]},
        {"more": b""},
    ],
    ids=repr,
)
def test_spans_that_are_none(forge, outside, change):
    plain = noise(1, 16)
    good = layout.encode(
        layout.Layout(
            digest(plain),
            16,
            forge.frame(Kind.CHUNK, plain),
            np.array([16], "<u4"),
            spans=(layout.Span("w", "F32", (4,), 0, 16),),
        )
    )
    body = canonical.decode(good, what="layout")
    for spans in ({**body["spans"], **change}, {}, [["w", "F32", [4], 0, 16]], 5, b""):
        cut = forge.frame(Kind.LAYOUT, canonical.encode({**body, "spans": spans}))
        ref = forge.model([["f.bin", 16, digest(plain)]], [cut])
        assert_refused(forge, ref, outside / "out", error=FormatError)


def test_a_tensor_of_a_type_that_nobody_knows_is_its_bytes(forge):
    plain = noise(1, 16)
    ref = forge.file(plain, spans=(layout.Span("w", "X" * 1000, (1 << 63,), 0, 16),))
    with forge.opened() as store:
        assert store.read_tensor(ref, "w", file="f.bin").tobytes() == plain


# ---- frames and packs


def zstd_frame(stated, blocks):
    """A zstd frame whose header states a size, and RLE blocks of 128 KiB each that say otherwise."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0xA0]) + struct.pack("<I", stated)
    body = bytearray()
    for at in range(blocks):
        body += ((1 << 17) << 3 | 1 << 1 | (at == blocks - 1)).to_bytes(3, "little") + b"A"
    return head + bytes(body)


def planes_frame(raw, run):
    return struct.pack("<BBHHBB", 1, 0, 2, 0, 1, 0) + struct.pack("<HBBI", 2, 1, 0, len(run)) + run


GOOD_ZSTD = zstandard.ZstdCompressor().compress(b"A" * MIB)
NO_SIZE = zstandard.ZstdCompressor(write_content_size=False).compress(b"A" * MIB)
BOMBS = [
    (Encoding.ZSTD, zstd_frame(MIB, 8 * 1000), MIB),
    (Encoding.ZSTD, zstd_frame(MIB, 4), MIB),
    (Encoding.ZSTD, zstd_frame(0xFFFFFFFF, 8), MIB),
    (Encoding.ZSTD, zstd_frame(0xFFFFFFFF, 8), 4),
    (Encoding.ZSTD, GOOD_ZSTD + GOOD_ZSTD, MIB),
    (Encoding.ZSTD, GOOD_ZSTD + b"\x50\x2a\x4d\x18\x04\0\0\0skip", MIB),
    (Encoding.ZSTD, NO_SIZE, MIB),
    (Encoding.ZSTD, b"", MIB),
    (Encoding.ZSTD, GOOD_ZSTD, 0),
    (Encoding.ZSTD, GOOD_ZSTD, MIB - 1),
    (Encoding.ZSTD, GOOD_ZSTD[:-1], MIB),
    (Encoding.PLANES, planes_frame(MIB, zstd_frame(MIB, 8 * 1000)), MIB),
    (Encoding.PLANES, planes_frame(MIB, zstd_frame(0xFFFFFFFF, 8)), MIB),
    (Encoding.PLANES, planes_frame(MIB, GOOD_ZSTD[:-2]), MIB),
    (Encoding.PLANES, planes_frame(MIB, NO_SIZE), MIB),
    (Encoding.PLANES, b"", MIB),
    (Encoding.PLANES, b"\x01", 0),
    (Encoding.RAW, b"A", MIB),
    (Encoding.RAW, b"A" * 100, 1),
    (Encoding.DELTA, b"A" * 100, 100),
    (77, b"A" * 100, 100),
]


def test_the_bombs_would_be_read_were_they_harmless(forge):
    for encoding, payload in (
        (Encoding.ZSTD, zstd_frame(MIB, 8)),
        (Encoding.PLANES, planes_frame(MIB, GOOD_ZSTD)),
    ):
        object_id = forge.frame(Kind.CHUNK, b"A" * MIB, encoding=encoding, payload=payload)
        forge.flush()
        with forge.opened() as store:
            assert store.objects.read(object_id) == b"A" * MIB
            assert_clean(store)


@pytest.mark.parametrize(("encoding", "payload", "raw"), BOMBS)
@pytest.mark.parametrize("kind", [Kind.CHUNK, Kind.LAYOUT, Kind.MANIFEST])
def test_payloads_that_are_bombs_or_rubbish(forge, encoding, payload, raw, kind):
    object_id = forge.frame(kind, b"A" * raw, encoding=encoding, payload=payload)
    forge.flush()
    with forge.opened() as store:
        tracemalloc.start()
        try:
            with pytest.raises(IntegrityError, match="packs/"):
                store.objects.read(object_id)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * MIB
        assert not check(store, read_data=True).ok


@pytest.mark.parametrize("encoding", [9, 255])
@pytest.mark.parametrize("kind", list(Kind))
def test_an_encoding_from_the_future_is_not_damage(forge, encoding, kind):
    object_id = forge.frame(kind, b"plain", encoding=encoding)
    forge.flush()
    with forge.opened() as store:
        with pytest.raises(UnsupportedVersion, match=r"packs/.*[Uu]pgrade"):
            store.objects.read(object_id)
        [problem] = check(store, read_data=True).problems
    assert "pgrade" in problem.message


@pytest.mark.parametrize("plain", [b"", b"evil", b"A" * 100_000])
def test_frames_that_hold_other_bytes_than_their_name_says(forge, outside, plain):
    forge.frame(Kind.CHUNK, plain, object_id=digest(b"good"), raw=len(plain))
    cut = layout.encode(layout.Layout(digest(b"good"), 4, digest(b"good"), np.array([4], "<u4")))
    ref = forge.model([["f.bin", 4, digest(b"good")]], [forge.frame(Kind.LAYOUT, cut)])
    assert_refused(forge, ref, outside / "out")


def test_frames_that_claim_to_be_longer_than_the_format_allows(forge):
    for kind, limit in ((Kind.CHUNK, MIB), (Kind.LAYOUT, 1 << 28)):
        for changes in (
            {"raw": limit + 1},
            {"raw": 0xFFFFFFFF},
            {"stored": limit + 1},
            {"stored": 0xFFFFFFFF},
        ):
            object_id = forge.frame(kind, b"x", **changes)
            forge.flush(cover=False)
            with forge.opened() as store:
                with pytest.raises(FormatError, match="packs/"):
                    store.objects.read(object_id)
                report = check(store)
                assert not report.ok
            for entry in list(forge.store.backend.list("packs/")):
                forge.store.backend.delete(entry.key)


# A look-up table of frames, of which every field may lie: those that a pack's own footer can contradict.
LIES = [
    ("offset", 1 << 63),
    ("offset", (1 << 64) - 1),
    ("offset", (1 << 63) - 1),
    ("offset", 1 << 40),
    ("offset", 0),
    ("offset", 33),
    ("stored", 0),
    ("stored", 3),
    ("stored", 0xFFFFFFFF),
    ("stored", 1 << 20),
    ("raw", 0),
    ("raw", 3),
    ("raw", 0xFFFFFFFF),
    ("raw", 1 << 20),
    ("kind", 0),
    ("kind", 5),
    ("kind", 2),
    ("encoding", 1),
    ("encoding", 200),
    ("rank", 1),
    ("rank", 9),
    ("bases", 1),
    ("bases", 0xFFFFFFFF),
    ("pack", 1),
    ("pack", 0xFFFFFFFF),
    ("reserved", 1),
]


@pytest.mark.parametrize(("field", "value"), LIES)
def test_a_segment_that_lies_about_a_frame(forge, field, value):
    """Right bytes or an error that names a file, never anything else; `check` sees the lie."""
    object_id = forge.frame(Kind.CHUNK, b"evil")
    pack_id, rows = forge.flush(cover=False)
    lying = rows.copy()
    lying[field] = value
    forge.segment(lying, [pack_id])
    with forge.opened() as store:
        try:
            plain = store.objects.read(object_id)
        except IntegrityError as caught:
            plain, message = None, str(caught)
        assert plain == b"evil" or (plain is None and ("packs/" in message or "index/" in message))
        assert not check(store).ok


def test_a_segment_that_gives_an_object_another_name(forge):
    forge.frame(Kind.CHUNK, b"evil")
    pack_id, rows = forge.flush(cover=False)
    lying = rows.copy()
    lying["id"] = np.frombuffer(digest(b"good"), ">u8")
    forge.segment(lying, [pack_id])
    with forge.opened() as store:
        with pytest.raises(IntegrityError, match="packs/"):
            store.objects.read(digest(b"good"))
        assert not check(store).ok


def test_a_segment_that_covers_a_pack_and_hides_its_frames(forge):
    object_id = forge.frame(Kind.CHUNK, b"evil")
    pack_id, rows = forge.flush(cover=False)
    forge.segment(rows[:0], [pack_id])
    with forge.opened() as store:
        with pytest.raises(MissingObject, match=object_id.hex()):
            store.objects.read(object_id)
        assert not check(store).ok


def test_a_segment_whose_rows_are_out_of_order(forge):
    """Its checksums are right, so only a reader that knows the order can tell that objects are hidden."""
    ids = [forge.frame(Kind.CHUNK, b"%d" % number) for number in range(300)]
    pack_id, rows = forge.flush(cover=False)
    size = forge.store.backend.stat(pack_key(pack_id)).size
    honest = index.encode(rows, BaseLists.empty(), {pack_id: size})
    shape = index.decode_shape(honest, key="k")
    body = np.frombuffer(honest[shape.rows_begin : shape.bases_begin], ROW)
    fanout = np.frombuffer(honest[104 : 104 + 4 * (shape.buckets + 1)], "<u4")
    shuffled = np.concatenate([body[a:b][::-1] for a, b in itertools.pairwise(fanout)], dtype=ROW)
    checks = b"".join(digest(shuffled[a:b].tobytes())[:8] for a, b in itertools.pairwise(fanout))
    head = struct.Struct("<8sHBBIQII32s")
    counts = (b"cassindx", 1, shape.bits, 0, 1, len(rows), shape.lists, shape.list_ids)
    tables = pack_id + struct.pack("<Q", size) + fanout.tobytes() + checks
    tables += honest[shape.head_size - 8 * shape.blocks : shape.head_size]
    sealed = head.pack(*counts, digest(head.pack(*counts, bytes(32)) + tables))
    keys = index.decode_head(honest, shape, key="k").key_of(shuffled["id"].astype(np.uint64))
    rest = shuffled.tobytes() + honest[shape.bases_begin :]
    forge.put_segment(sealed + tables + keys.astype("<u4").tobytes() + rest)
    with forge.opened() as store:
        [problem] = check(store).problems
        assert "is not in order" in problem.message
        for object_id in ids[:20]:
            with suppress(MissingObject):
                assert digest(store.objects.read(object_id)) == object_id


@pytest.mark.parametrize("field", ["id", "offset", "stored", "raw", "kind", "rank", "bases"])
def test_a_footer_that_lies_about_its_frames(forge, field):
    object_id = forge.frame(Kind.CHUNK, b"evil")
    other = forge.frame(Kind.CHUNK, b"more")

    def lie(rows):
        rows[field][0] = rows[field][0] + 1

    forge.flush(cover=False, change_rows=lie)
    with forge.opened() as store:
        for wanted in (object_id, other):
            with suppress(IntegrityError):  # a frame that is told truly may be read
                assert digest(store.objects.read(wanted)) == wanted
        assert not check(store, read_data=True).ok


def test_packs_that_are_only_numbers(forge):
    """A trailer may point anywhere."""
    for begin, rows, size in (
        (1 << 63, 0, 500),
        (32, 1 << 60, 500),
        ((1 << 64) - 1, 0, 500),
        (0, 0, 500),
        (32, 0, 500),
    ):
        trailer = struct.pack("<QQ32sQ8s", begin, rows, digest(b""), 0, b"packcass")
        blob = pack.encode_header(bytes(16)) + bytes(size) + trailer
        pack_id = digest(blob)
        forge.store.backend.put(pack_key(pack_id), [blob])
        with forge.opened() as store:
            with pytest.raises(FormatError, match="packs/"):
                store.objects.read(digest(b"anything"))
            assert not check(store).ok
        forge.store.backend.delete(pack_key(pack_id))


@pytest.mark.parametrize(
    "count", [(32, 0, 0), (33, 0, 0), (0, 0xFFFFFFFF, 0), (0, 0, 1 << 33), (0, 0, 0xFFFFFFFF)]
)
def test_segments_that_are_only_numbers(forge, count, caplog):
    bits, packs, rows = count
    data = struct.pack("<8sHBBIQII32s", b"cassindx", 1, bits, 0, packs, rows, 0, 0, bytes(32)) + bytes(500)
    forge.put_segment(data)
    with forge.opened() as store:
        with pytest.raises(MissingObject):
            store.objects.read(digest(b"anything"))
        assert not check(store).ok
    assert re.search(r"index/.*Remove that file", caplog.text)


# ---- size


def test_deep_paths_take_memory_in_proportion(forge, outside):
    """Two hundred paths of two thousand folders each are a tree of less than a megabyte."""
    rows = [[f"{number:03}/" + "d/" * 2000 + "f", 1, digest(b"x")] for number in range(200)]
    ref = forge.model(rows, [forge.layout_of(b"x")] * 200)
    with forge.opened() as store:
        tracemalloc.start()
        try:
            store.model(ref)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 200 * MIB


def test_a_tree_of_many_files(forge):
    rows = [[f"folder-{number % 50:02}/file-{number:06}", 1, digest(b"x")] for number in range(20_000)]
    rows.sort(key=lambda row: row[0].encode())
    cut = forge.layout_of(b"x")
    ref = forge.model(rows, [cut] * len(rows))
    with forge.opened() as store:
        assert len(store.model(ref).tree.files) == 20_000


BLOWN_UP = [
    (b"\x90", 1),
    (b"\x80", 1),
    (b"\xc0", 1),
    (b"\x91" * 31 + b"\xc0", 32),
    (b"\x81\xa0\xc0", 3),
    (b"\xdc\x10\x00" + b"\x05" * 4096, 4099),
]


@pytest.mark.parametrize(("item", "size"), BLOWN_UP)
@pytest.mark.parametrize("kind", [Kind.TREE, Kind.LAYOUT])
def test_values_of_too_many_items(forge, monkeypatch, kind, item, size):
    """Stored in a few bytes, each item of one byte would take a hundred in memory."""
    monkeypatch.setattr(canonical, "MAX_ITEMS", 1 << 16)
    count = (8 << 20) // size
    plain = b"\xdd" + count.to_bytes(4, "big") + item * count
    compressed = zstandard.compress(plain)
    assert len(compressed) < 10_000
    object_id = forge.frame(kind, plain, encoding=Encoding.ZSTD, payload=compressed)
    tree = object_id
    manifest = encode_model(ModelManifest(tree, ()))
    if kind == Kind.LAYOUT:
        tree = forge.frame(Kind.TREE, canonical.encode({"type": "tree", "version": 1, "entries": [GOOD]}))
        manifest = encode_model(ModelManifest(tree, (object_id,)))
    manifest_id = forge.frame(Kind.MANIFEST, manifest)
    forge.flush()
    forge.record("models/bomb", target=tree, manifest=manifest_id)
    with forge.opened() as store:
        tracemalloc.start()
        try:
            with pytest.raises(FormatError, match=r"canonical|items"):
                _ = store.model("models/bomb").layouts
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 60 << 20


def test_what_could_not_be_read_is_not_written(forge, tmp_path, monkeypatch):
    monkeypatch.setattr(canonical, "MAX_ITEMS", 1000)
    path = write_model(model_of(f=b"x"), tmp_path / "m")
    with forge.opened() as store:
        with pytest.raises(ConfigError, match="items"):
            store.add(path, metadata={"losses": [0.5] * 1000})
        store.add(path, metadata={"losses": [0.5] * 900})
        assert_clean(store)


def test_values_nested_deeper_than_allowed(forge, outside):
    for depth in (33, 500, 5000):
        deep = b"\x91" * depth + b"\xc0"
        body = b"\x83\xa7entries" + deep + b"\xa4type\xa4tree\xa7version\x01"
        model_id = forge.frame(Kind.TREE, body)
        manifest = forge.frame(Kind.MANIFEST, encode_model(ModelManifest(model_id, ())))
        forge.flush()
        forge.record(f"models/deep{depth}", target=model_id, manifest=manifest)
        assert_refused(forge, f"models/deep{depth}", outside / "out", error=FormatError)


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]
)
def test_values_that_promise_more_than_there_is(forge, outside, body):
    manifest = forge.frame(Kind.MANIFEST, body or b"\x00")
    forge.flush()
    forge.record("models/short", target=digest(b"x"), manifest=manifest)
    assert_refused(forge, "models/short", outside / "out", error=FormatError)


def test_a_record_with_much_metadata(forge, tmp_path):
    """Large is no crime: it is kept, and other refs are read as before."""
    metadata = {f"key{number}": "x" * 1000 for number in range(4000)}
    path = write_model(model_of(f=b"x"), tmp_path / "m")
    with forge.opened() as store:
        store.add(path, ref="models/big", metadata=metadata)
        store.add(path, ref="models/small")
        assert store.refs()["models/big"].metadata == metadata
        assert_clean(store)


def test_a_ref_whose_numbers_are_used_up(forge, tmp_path):
    """Nobody can be newer than the newest number: said plainly, and other refs go on."""
    ref = forge.file(b"harmless")
    record = forge.store.refs()[ref]
    forge.record(ref, seq=(1 << 64) - 1, target=record.target, manifest=record.manifest)
    path = write_model(model_of(f=b"x"), tmp_path / "m")
    with forge.opened() as store:
        with pytest.raises(CasstoreError, match=ref):
            store.add(path, ref=ref)
        with pytest.raises(CasstoreError, match=ref):
            store.rm(ref)
        assert store.model(ref).model_id == record.target.hex()
        store.add(path, ref="models/other")


# ---- tombstones


EVIL = "gc/tombstones/00000000-0000-4000-8000-00000000e711"


def test_tombstones_that_are_none_stop_writers_by_name(forge, tmp_path):
    path = write_model(model_of(f=b"x"), tmp_path / "m")
    bodies = [
        b"",
        b"rubbish" * 20,
        envelope.seal(
            b"casstomb", canonical.encode({"type": "tombstone", "version": 2, "packs": b"", "time": 1})
        ),
        envelope.seal(
            b"casstomb", canonical.encode({"type": "tombstone", "version": 1, "packs": b"odd", "time": 1})
        ),
        envelope.seal(b"casstomb", canonical.encode({"type": "store", "version": 1})),
    ]
    for body in bodies:
        forge.store.backend.put(EVIL, [body])
        with forge.opened() as store:
            with pytest.raises(FormatError, match=EVIL):
                store.add(path)
            assert {problem.key for problem in check(store).problems} == {EVIL}
        forge.store.backend.delete(EVIL)


def test_a_tombstone_over_everything_only_costs_a_copy(forge, tmp_path):
    path = write_model(model_of(f=noise(1, 3000)), tmp_path / "m")
    with forge.opened() as store:
        store.add(path, ref="models/m")
        doomed = [bytes.fromhex(entry.key[-64:]) for entry in store.backend.list("packs/")]
        store.backend.put("gc/tombstones/all", [marks.encode_tombstone(marks.Tombstone(tuple(doomed), 1))])
        assert store.add(path, ref="models/again").chunks_new == 1
        assert store.tag("kept", "models/m") == "tags/kept"
        for pack_id in doomed:
            store.backend.delete(pack_key(pack_id))
        assert_clean(store)
    with forge.opened() as store, store.open_file("tags/kept", "f") as file:
        assert file.read() == noise(1, 3000)


# ---- destinations that someone prepared


TRAPS = {
    "a link where a folder must be": ("sub", "../folder"),
    "a link to the root": ("sub", "/"),
    "a link where a deeper folder must be": ("sub/deep", "../../folder"),
    "a link where a file must be": ("sub/f.bin", "../../precious"),
    "a broken link where a file must be": ("sub/f.bin", "../../made-by-mistake"),
    "a link where an empty folder must be": ("hollow", "../folder"),
}


@pytest.mark.parametrize(("name", "target"), TRAPS.values(), ids=TRAPS)
def test_links_planted_in_the_destination(forge, outside, name, target):
    plain = b"evil"
    rows = [
        ["hollow", 0, None],
        ["sub/deep/g.bin", 4, digest(plain)],
        ["sub/f.bin", 4, digest(plain)],
    ]
    ref = forge.model(rows, [forge.layout_of(plain)] * 2)
    link = outside / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with forge.opened() as store, pytest.raises(ConfigError, match=f"{name} is in the way"):
        store.get(ref, outside / "out", force=True)
    assert os.readlink(link) == target
    assert [path for path in (outside / "out").rglob("*.bin") if path != link] == []


class WhileWriting(Callback):
    def __init__(self, action):
        super().__init__()
        self._action = action

    def relative_update(self, inc=1):
        action, self._action = self._action, lambda: None
        action()


def test_a_folder_that_becomes_a_link_while_it_is_written_to(forge, outside):
    """Descriptors do not follow: at worst, files land in the folder that was opened."""
    plain = noise(1, 100)
    names = [f"sub/{number:03}.bin" for number in range(400)]  # more than are ever open at once
    ref = forge.model([[name, 100, digest(plain)] for name in names], [forge.layout_of(plain)] * 400)

    def swap():
        (outside / "out/sub").rename(outside / "out/moved")
        (outside / "out/sub").symlink_to("../folder")

    (outside / "out").mkdir()
    with forge.opened() as store, pytest.raises(ConfigError, match="sub is in the way"):
        store.get(ref, outside / "out", callback=WhileWriting(swap))
    assert list((outside / "folder").iterdir()) == []


def test_what_a_checkout_makes_belongs_to_its_user(forge, tmp_path):
    """Modes come from the user's mask, never from the store: no set-user-id, nothing writable by all."""
    plain = b"evil"
    rows = [["run", 4, digest(plain)], ["sub/f", 4, digest(plain)]]
    ref = forge.model(rows, [forge.layout_of(plain)] * 2, executable=(0,))
    before = os.umask(0o027)
    try:
        with forge.opened() as store:
            store.get(ref, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in Path(tmp_path / "out").rglob("*")}
    assert modes == {"run": 0o750, "sub": 0o750, "f": 0o640}


def test_real_model_files_may_lie_too(forge, tmp_path):
    """Headers of model files are the attacker's as well: a lie makes them plain bytes."""
    header = safetensors_bytes({"w": np.zeros(4, np.float32)})
    lying = header.replace(b"[4]", b"[5]")
    assert lying != header
    path = write_model(model_of(m=lying), tmp_path / "m")
    with forge.opened() as store:
        store.add(path, ref="models/m")
        with pytest.raises(ConfigError, match="no tensors"):
            store.read_tensor("models/m", "w", file="m")
