from __future__ import annotations

import struct
import zipfile
from io import BytesIO

import numpy as np
import pytest
from fakes.model_files import (
    BytesSource,
    View,
    npy_bytes,
    parts,
    pickle_call,
    pickle_dict,
    pickle_int,
    pickle_of,
    pickle_tensor,
    pickle_text,
    pickle_tuple,
    strides_of,
    torch_views_bytes,
    torch_zip_bytes,
    torch_zip_of,
    zip_bytes,
)

from casstore.tensors import find_spans

A = np.arange(6, dtype="f4").reshape(2, 3)
B = np.arange(5, dtype="f2")


def summary(data):
    return [(s.name, s.dtype, s.shape) for s in find_spans(BytesSource(data))]


def storage_view(array, key="0", offset=0, shape=None, strides=None):
    shape = array.shape if shape is None else shape
    part = parts(array)
    return pickle_tensor(View(key, part.dtype, offset, shape, strides or strides_of(shape)), part)


def saved(body, storages):
    return torch_zip_of(pickle_of(body), {key: parts(array).data for key, array in storages.items()})


def test_a_standard_zip_reader_agrees_with_the_builder():
    with zipfile.ZipFile(BytesIO(torch_zip_bytes({"a": A}))) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/data/0") == A.tobytes()
    with zipfile.ZipFile(BytesIO(torch_zip_bytes({"a": A}, zip64=True))) as archive:
        assert archive.testzip() is None


def test_types_of_both_pickle_forms():
    tensors = {
        name: (name, (2, 2), bytes(4 * width))
        for name, width in [("F64", 8), ("BF16", 2), ("BOOL", 1), ("C64", 8), ("U32", 4), ("F8_E4M3", 1)]
    }
    assert summary(torch_zip_bytes(tensors)) == [(name, name, (2, 2)) for name in tensors]


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (
            pickle_dict({"model": pickle_dict({"fc.weight": storage_view(A)}), "epoch": pickle_int(3)}),
            "model.fc.weight",
        ),
        (b"](" + b"N" + storage_view(A) + b"e", "1"),
        (b"]" + storage_view(A) + b"a", "0"),
        (b"}" + pickle_int(7) + storage_view(A) + b"s", "7"),
        (b"(" + pickle_text("k") + storage_view(A) + b"d", "k"),
        (b"}" + pickle_tuple([pickle_int(1)]) + storage_view(A) + b"s", "0"),
        (storage_view(A), "archive/data/0"),
        (
            pickle_dict(
                {"p": pickle_call("torch._utils _rebuild_parameter", storage_view(A), b"\x88", b"N")}
            ),
            "p",
        ),
        (pickle_call("my.module Thing", pickle_int(1), storage_view(A)), "1"),
        (b"cmy.module\nThing\n)\x81" + pickle_dict({"w": storage_view(A)}) + b"b", "w"),
        (b"cmy.module\nThing\n)}\x92" + pickle_dict({"w": storage_view(A)}) + b"b", "w"),
        (b"(imy.module\nThing\n" + pickle_dict({"w": storage_view(A)}) + b"b", "w"),
        (b"(cmy.module\nThing\no" + pickle_dict({"w": storage_view(A)}) + b"b", "w"),
        (
            b"c__torch__\nNet\n)\x81"
            + pickle_dict(
                {
                    "_modules": pickle_dict(
                        {"fc": pickle_dict({"_parameters": pickle_dict({"w": storage_view(A)})})}
                    )
                }
            )
            + b"b",
            "fc.w",
        ),
        (
            pickle_dict(
                {
                    "sub": pickle_call(
                        "torch._tensor _rebuild_from_type_v2",
                        b"ctorch._utils\n_rebuild_tensor_v2\n",
                        b"cmy\nTensor\n",
                        # The arguments that the plain call would get.
                        storage_view(A).split(b"_rebuild_tensor_v2\n", 1)[1][:-1],
                        b"}",
                    )
                }
            ),
            "sub",
        ),
        (pickle_dict({"t": b"G" + bytes(8) + b"0" + storage_view(A) + b"2" + b"0"}), "t"),
        (b"\x95" + bytes(8) + pickle_dict({"t": b"\x8a\x0c" + bytes(12) + b"0" + storage_view(A)}), "t"),
    ],
    ids=range(17),
)
def test_names_follow_the_path_in_the_saved_value(body, want):
    assert summary(saved(body, {"0": A})) == [(want, "F32", (2, 3))]


def test_one_tensor_in_two_places_is_tied():
    body = b"(" + pickle_text("a") + storage_view(A) + b"q\1" + pickle_text("b") + b"h\1" + b"d"
    first, second = find_spans(BytesSource(saved(body, {"0": A})))
    assert (first.name, second.name) == ("a", "b")
    assert (first.begin, first.end) == (second.begin, second.end)


def test_shared_containers_are_named_once():
    body = b"](" + pickle_dict({"w": storage_view(A)}) + b"q\1" + b"h\1h\1" + b"e"
    assert summary(saved(body, {"0": A})) == [("0.w", "F32", (2, 3))]


def test_a_cycle_ends():
    body = b"]q\1" + b"(" + storage_view(A) + b"h\1e"
    assert summary(saved(body, {"0": A})) == [("0", "F32", (2, 3))]


def test_names_that_fall_together_get_numbers():
    body = b"(" + pickle_text("1") + storage_view(A) + pickle_int(1) + storage_view(B, "1") + b"d"
    assert summary(saved(body, {"0": A, "1": B})) == [("1", "F32", (2, 3)), ("1#2", "F16", (5,))]


FUSED = np.arange(64, dtype="f4").reshape(8, 8)


def views(**named):
    found = summary(
        torch_views_bytes({"0": FUSED}, {name: View("0", "F32", *view) for name, view in named.items()})
    )
    return {name: shape for name, _, shape in found}


WHOLE = {"archive/data/0": (64,)}


@pytest.mark.parametrize(
    ("named", "want"),
    [
        ({"a": (0, (2, 8), (8, 1)), "b": (16, (6, 8), (8, 1))}, {"a": (2, 8), "b": (6, 8)}),
        ({"a": (0, (2, 8), (8, 1)), "b": (32, (2, 8), (8, 1))}, {"a": (2, 8), "b": (2, 8)}),
        ({"a": (0, (8, 8), (8, 1)), "b": (0, (64,), (1,))}, {"a": (8, 8), "b": (64,)}),
        ({"a": (0, (1, 8), (999, 1))}, {"a": (1, 8)}),
        ({"a": (0, (64,), (1,)), "e": (40, (0, 3), (3, 1))}, {"a": (64,), "e": (0, 3)}),
        ({"t": (0, (8, 8), (1, 8))}, WHOLE),
        ({"a": (0, (4, 8), (8, 1)), "b": (16, (6, 8), (8, 1))}, WHOLE),
        ({"a": (0, (8, 4), (8, 1))}, WHOLE),
        ({"a": (60, (8,), (1,))}, WHOLE),
        ({"a": (1 << 62, (8,), (1,))}, WHOLE),
        ({"a": (0, (1 << 62, 1 << 62), (1 << 62, 1))}, WHOLE),
        ({"a": (0, (8, 8), (8,))}, None),
        ({"a": (-2, (2,), (1,))}, None),
        ({"a": (0, (-1, -8), (8, 1))}, None),
        ({"a": (0, (1,) * 17, (1,) * 17)}, None),
    ],
)
def test_views_are_spans_where_they_are_disjoint_runs(named, want):
    # Arguments that describe no tensor say nothing about the storage's type either.
    assert views(**named) == (want or {"archive/data/0": (256,)})


def test_a_storage_that_is_no_whole_number_of_elements_is_bytes():
    body = pickle_dict({"t": storage_view(FUSED, shape=(8, 8), strides=(1, 8))})
    assert summary(torch_zip_of(pickle_of(body), {"0": bytes(258)})) == [("archive/data/0", "U8", (258,))]


def test_containers_are_followed_to_a_depth():
    for depth, want in ((60, "F32"), (70, "U8")):
        body = b"]" * depth + storage_view(A) + b"a" * depth
        ((_, dtype, _),) = summary(saved(body, {"0": A}))
        assert dtype == want


def test_a_whole_storage_keeps_its_type():
    assert summary(torch_views_bytes({"0": FUSED}, {"t": View("0", "F32", 0, (8, 8), (1, 8))})) == [
        ("archive/data/0", "F32", (64,))
    ]


@pytest.mark.parametrize(
    "pickle",
    [
        b"",
        b"garbage",
        pickle_of(b""),
        pickle_of(b"h\1"),
        pickle_of(b"R"),
        pickle_of(b"u"),
        pickle_of(b"t"),
        pickle_of(b"\x87"),
        pickle_of(b"Q"),
        pickle_of(b"N" + b"X\xff\xff\xff\x7fabc"),
        pickle_of(b"X\1\0\0\0\xff"),
        pickle_of(b"T\xff\xff\xff\xff"),
        pickle_of(b"(NNNd"),
        pickle_of(b"cno newline"),
        pickle_of(b"Inot a number\n"),
        pickle_of(b"N" + b"g" + b"9" * 5000 + b"\n"),
        pickle_of(b"NN\x93"),
        pickle_of(b"]" * 200_000 + b"a" * 199_999),
        pickle_of(b")" + b"\x85" * 200_000),
        pickle_of(b"N" + b"\x85NR" * 3),
        pickle_of(b"\xff"),
    ],
    ids=range(21),
)
def test_without_names_the_storages_are_spans(pickle):
    assert summary(torch_zip_of(pickle, {"0": bytes(24), "1": b"", "2": bytes(3)})) == [
        ("archive/data/0", "U8", (24,)),
        ("archive/data/2", "U8", (3,)),
    ]


def test_the_number_of_opcodes_has_a_limit(monkeypatch):
    data = torch_zip_bytes({"a": A})
    assert summary(data) == [("a", "F32", (2, 3))]
    monkeypatch.setattr("casstore.tensors.torch.pickle_machine.MAX_OPCODES", 20)
    assert summary(data) == [("archive/data/0", "U8", (24,))]


def test_a_pickle_has_a_largest_size(monkeypatch):
    monkeypatch.setattr("casstore.tensors.torch.zip_file.MAX_PICKLE_BYTES", 20)
    source = BytesSource(torch_zip_bytes({"a": A}))
    assert [(span.name, span.dtype) for span in find_spans(source)] == [("archive/data/0", "U8")]


def test_nothing_in_a_pickle_is_called(monkeypatch):
    monkeypatch.setattr("os.system", lambda command: pytest.fail("ran"))
    body = pickle_dict({"w": storage_view(A), "x": pickle_call("os system", pickle_text("echo"))})
    assert summary(saved(body, {"0": A})) == [("w", "F32", (2, 3))]


def test_billion_laughs_end_soon():
    body = b"]q\0"
    for level in range(200):
        body += b"](h" + bytes([level]) + b"h" + bytes([level]) + b"eq" + bytes([level + 1])
    body = b"(" + body + storage_view(A) + b"t"
    assert len(summary(saved(body, {"0": A}))) == 1


def many_names(length, count):
    """A list of one tensor, and a dict that has it again under one long key, over and over."""
    key = pickle_text("k" * length) + b"q\2"
    body = b"](" + storage_view(A) + b"q\1" + key + b"0" + b"}(" + b"h\2h\1" * count + b"u" + b"e"
    return saved(body, {"0": A})


def test_a_name_that_is_too_long_is_replaced():
    assert summary(many_names(60_000, 1)) == [("0", "F32", (2, 3)), ("archive/data/0", "F32", (2, 3))]


def test_absurdly_many_long_names_are_left_out():
    assert len(summary(many_names(4000, 1000))) == 1001
    assert summary(many_names(4000, 20_000)) == [("archive/data/0", "U8", (24,))]


def test_one_long_key_at_every_level_stays_short():
    key = b"X" + struct.pack("<I", 1 << 20) + b"k" * (1 << 20) + b"q\2"
    body = key + b"0" + (b"}h\2" * 60) + storage_view(A) + b"s" * 60
    assert summary(saved(body, {"0": A})) == [("archive/data/0", "F32", (2, 3))]


@pytest.mark.parametrize("order", ["big", "Little", ""])
def test_other_byte_orders_are_bytes(order):
    assert summary(torch_zip_bytes({"a": A}, byteorder=order)) == [("archive/data/0", "U8", (24,))]


def test_archives_from_before_the_byte_order_entry():
    assert summary(torch_zip_bytes({"a": A}, byteorder=None)) == [("a", "F32", (2, 3))]


def test_torchscript_constants_have_storages_of_their_own():
    data = torch_zip_of(
        pickle_of(b"c__torch__\nNet\n)\x81" + pickle_dict({"w": storage_view(A)}) + b"b"),
        {"0": A.tobytes()},
        constants_pkl=pickle_of(pickle_tuple([storage_view(B)])),
        constants={"0": B.tobytes()},
    )
    assert summary(data) == [("w", "F32", (2, 3)), ("constants.0", "F16", (5,))]


def test_the_type_of_a_storage_without_a_known_type_is_left_open():
    body = pickle_dict({"w": storage_view(A).replace(b"FloatStorage", b"CloudStorage")})
    assert summary(saved(body, {"0": A})) == [("archive/data/0", "U8", (24,))]
    body = pickle_dict({"w": storage_view(A).replace(b"ctorch\n", b"cnotme\n")})
    assert summary(saved(body, {"0": A})) == [("archive/data/0", "U8", (24,))]


# The zip around it.


@pytest.mark.parametrize(
    "entries", [{}, {"a.txt": b"x"}, {"data.pkl": b"x"}, {"a/b/data.pkl": b"x"}, {"a/x": b"y"}]
)
def test_other_zips_are_unknown(entries):
    assert find_spans(BytesSource(zip_bytes(entries))) == ()


def test_two_roots_are_unknown():
    assert find_spans(BytesSource(zip_bytes({"a/data.pkl": b"", "b/data.pkl": b"", "a/data/0": b"x"}))) == ()


def test_compressed_storages_are_left_out():
    data = torch_zip_bytes({"a": A, "b": B}, deflate=["archive/data/0"])
    assert summary(data) == [("b", "F16", (5,))]


def test_a_compressed_pickle_is_not_read():
    assert summary(torch_zip_bytes({"a": A}, deflate=["archive/data.pkl"])) == []


def patched(data, magic, offset, form, value):
    at = data.rindex(magic) + offset
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


@pytest.mark.parametrize(
    ("magic", "offset", "form", "value"),
    [
        (b"PK\5\6", 4, "<H", 1),
        (b"PK\5\6", 10, "<H", 9),
        (b"PK\5\6", 12, "<I", 1 << 30),
        (b"PK\5\6", 16, "<I", 1 << 30),
        (b"PK\5\6", 20, "<H", 5),
        (b"PK\1\2", 8, "<H", 1),
        (b"PK\1\2", 20, "<I", 7),
        (b"PK\1\2", 24, "<I", 7),
        (b"PK\1\2", 28, "<H", 60_000),
        (b"PK\1\2", 30, "<H", 60_000),
        (b"PK\1\2", 42, "<I", 1 << 30),
        (b"PK\1\2", 42, "<I", 3),
        (b"PK\1\2", 42, "<I", 0),
        (b"PK\1\2", 46, "<B", 0xFF),
        (b"PK\3\4", 8, "<H", 8),
        (b"PK\3\4", 6, "<H", 1),
        (b"PK\3\4", 26, "<H", 2),
        (b"PK\3\4", 28, "<H", 60_000),
    ],
)
def test_a_lying_zip_is_unknown(magic, offset, form, value):
    # The last entry is the storage: what is said about it must hold.
    data = zip_bytes({"r/data.pkl": pickle_of(b"N"), "r/data/0": bytes(64)})
    assert len(summary(data)) == 1
    assert summary(patched(data, magic, offset, form, value)) == []


@pytest.mark.parametrize(
    ("magic", "offset", "form", "value"),
    [
        (b"PK\6\7", 0, "<B", 0),
        (b"PK\6\7", 8, "<Q", 1 << 60),
        (b"PK\6\7", 16, "<I", 2),
        (b"PK\6\6", 32, "<Q", 1 << 60),
        (b"PK\6\6", 40, "<Q", 1 << 60),
        (b"PK\6\6", 48, "<Q", 1 << 60),
        (b"PK\1\2", 42, "<I", 0),
        (b"PK\1\2", 46 + 8, "<H", 2),
        (b"PK\1\2", 46 + 8 + 4, "<Q", 1 << 60),
        (b"PK\1\2", 46 + 8 + 20, "<Q", 1 << 60),
    ],
)
def test_a_lying_zip64_is_unknown(magic, offset, form, value):
    data = zip_bytes({"r/data.pkl": pickle_of(b"N"), "r/data/0": bytes(64)}, zip64=True)
    assert len(summary(data)) == 1
    assert summary(patched(data, magic, offset, form, value)) == []


def test_two_entries_of_one_name_are_unknown():
    data = zip_bytes({"r/data.pkl": pickle_of(b"N"), "r/data/0": bytes(8), "r/data/1": bytes(8)})
    assert len(summary(data)) == 2
    assert summary(data.replace(b"r/data/1", b"r/data/0")) == []


def test_entries_that_overlap_are_unknown():
    data = zip_bytes({"r/data.pkl": pickle_of(b"N"), "r/data/0": bytes(64)})
    inner = data[data.index(b"PK\3\4", 4) : data.index(b"PK\1\2")]
    # The whole local entry of a second storage lies inside the first storage's bytes.
    sound = zip_bytes({"r/data.pkl": pickle_of(b"N"), "r/data/1": inner + bytes(64)})
    central = sound.rindex(b"PK\1\2")
    at = sound.index(inner)
    extra_entry = bytearray(sound[central : sound.rindex(b"PK\5\6")].replace(b"r/data/1", b"r/data/0"))
    extra_entry[20:28] = struct.pack("<2I", 64, 64)
    extra_entry[42:46] = struct.pack("<I", at)
    end = bytearray(sound[sound.rindex(b"PK\5\6") :])
    end[8:16] = struct.pack("<2HI", 3, 3, struct.unpack_from("<I", end, 12)[0] + len(extra_entry))
    data = sound[: sound.rindex(b"PK\5\6")] + bytes(extra_entry) + bytes(end)
    with zipfile.ZipFile(BytesIO(data)) as archive:
        assert len(archive.namelist()) == 3
    assert summary(sound) != []
    assert summary(data) == []


def test_bytes_before_or_behind_the_archive_are_unknown():
    data = torch_zip_bytes({"a": A})
    assert summary(data) != []
    assert summary(data + b"\n") == []
    assert summary(b"#!/bin/sh\n" + data) == []


def test_storage_bytes_are_not_read():
    source = BytesSource(torch_zip_bytes({f"w{i}": np.zeros(1 << 17, "f4") for i in range(8)}))
    assert len(find_spans(source)) == 8
    assert sum(length for _, length in source.reads) < 100_000


def test_many_small_storages_take_few_reads():
    source = BytesSource(torch_zip_bytes({f"w{number}": np.zeros(250, "f4") for number in range(2000)}))
    assert len(find_spans(source)) == 2000
    assert len(source.reads) < 40
    assert sum(length for _, length in source.reads) < 2 * source.size


def test_entries_inside_one_another_are_read_once():
    # Each of a thousand entries says that it reaches to the end of the file.
    data = bytearray(zip_bytes({f"{n}.npy": npy_bytes(A) for n in range(1000)}))
    central, end = data.index(b"PK\1\2"), len(data)
    at = central
    while data.startswith(b"PK\1\2", at):
        size = end - struct.unpack_from("<I", data, at + 42)[0] - 100
        struct.pack_into("<2I", data, at + 20, size, size)
        at += 46 + struct.unpack_from("<H", data, at + 28)[0]
    source = BytesSource(bytes(data))
    assert find_spans(source) == ()
    assert len(source.reads) < 10
