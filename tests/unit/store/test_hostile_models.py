"""Trees, manifests and layouts that an attacker wrote: every lie is an error, and none does harm."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from fakes.forge import GOOD, assert_refused
from fakes.stores import assert_clean, model_of, noise, write_model

from casstore import IntegrityError, Store
from casstore.digest import digest
from casstore.errors import DigestMismatch, FormatError, MissingObject
from casstore.format import canonical, layout
from casstore.format.manifest import EMPTY_FILE_ID, ModelManifest, encode_model
from casstore.format.rows import Kind


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
