from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from fakes.model_files import BytesSource, pickle_call, pickle_dict, pickle_int, torch_legacy_bytes

from casstore.tensors import find_spans

A = np.arange(6, dtype="f4").reshape(2, 3)
B = np.arange(5, dtype="f2")

# torch 2.13.0: torch.save({"w": torch.arange(6.).view(2, 3), "t": torch.arange(6).view(2, 3).t(), "h": torch.zeros(2, dtype=
# torch.bfloat16), "n": 3}, path, _use_new_zipfile_serialization=False), compressed.
WRITTEN = zlib.decompress(
    base64.b85decode(
        r"c-n1{O;6iE5QgntCxLCDK%p(AA326gl$gqx6R1L5w)7)he5tJ9tgw;g&DdiQNJzO5mHq|}9QkYfgi1Xyb^<6UEANgxJNrKG%"
        r"z*tB@&D_+fA!<rpR3IQ+rQ&<UVzc?77WAary6yjWB){@S)>y%slc0~n>a#@m9LUs)J=f>@dPFDtgrkmI#(I+3$Pkqg_2pQQ-"
        r"q3S9;d%3L8wa0vkDEJ96?Q5dH%pODSHZLfI1Drrk`UJXTnd_VIIXjA61g+)IYHWutvkH72;IcJyO6&PsCoVyLd243b4F+s@d"
        r"9bzie%`T)SmEt_zjYN6^p7NA){G?UytplY9s>l1p<4vsVGN9IF7S<4pWWdn#4E-6%i-V!Z<|5MFj*t~84<ACi~wf&YzKdc?n"
        r"a!aH``ah<m9!a_L0E*4lW*$|ebS<qi!g@yVu!b%6;l<Fb8olyT;w%2wZ3Gbd0oR$l#L|{aCUp96LYtp=g4<q%D2%kFexl~V}"
        r"E_pHf-^J*sST(1qvuQKss#!HAmpP7X9Qim}<5+oiU#v-u!8RQ`^wA#BzS+44)GD9R"
    )
)


def summary(data):
    return [(s.name, s.dtype, s.shape) for s in find_spans(BytesSource(data))]


def test_a_file_that_torch_wrote():
    spans = {span.dtype: span for span in find_spans(BytesSource(WRITTEN))}
    assert {dtype: span.shape for dtype, span in spans.items()} == {"F32": (2, 3), "I64": (6,), "BF16": (2,)}
    assert spans["F32"].name == "w"
    assert spans["BF16"].name == "h"
    # A transposed view leaves its storage whole.
    assert spans["I64"].name.startswith("data/")
    assert WRITTEN[spans["F32"].begin : spans["F32"].end] == np.arange(6, dtype="<f4").tobytes()
    assert WRITTEN[spans["I64"].begin : spans["I64"].end] == np.arange(6, dtype="<i8").tobytes()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(protocol):
    data = torch_legacy_bytes({"a": A, "b": B}).replace(b"\x80\x02", bytes([0x80, protocol]))
    if protocol >= 4:
        data = data[:2] + b"\x95" + (13).to_bytes(8, "little") + data[2:]
    assert summary(data) == [("a", "F32", (2, 3)), ("b", "F16", (5,))]


def test_names_follow_the_path_in_the_saved_value():
    data = torch_legacy_bytes({"a": A}, value=lambda given: pickle_dict({"model": pickle_dict(given)}))
    assert summary(data) == [("model.a", "F32", (2, 3))]


def test_nothing_in_a_pickle_is_called(monkeypatch):
    monkeypatch.setattr("os.system", lambda command: pytest.fail("ran"))
    evil = pickle_call("os system", pickle_int(1))
    assert summary(torch_legacy_bytes({"a": A}, value=lambda given: pickle_dict(given | {"x": evil}))) == [
        ("a", "F32", (2, 3))
    ]


def test_a_long_pickle_is_read_in_steps():
    padding = {f"k{number}": b"X" + (5000).to_bytes(4, "little") + b"x" * 5000 for number in range(600)}
    source = BytesSource(torch_legacy_bytes({"a": A}, value=lambda given: pickle_dict(padding | given)))
    assert [span.name for span in find_spans(source)] == ["a"]
    assert len(source.reads) < 10
    assert sum(length for _, length in source.reads) < 3 * source.size


def test_storages_are_not_read():
    source = BytesSource(torch_legacy_bytes({f"w{number}": np.zeros(1 << 17, "f4") for number in range(8)}))
    assert len(find_spans(source)) == 8
    assert sum(length for _, length in source.reads) < 400_000


def test_big_endian_storages_are_bytes():
    assert summary(torch_legacy_bytes({"a": A}, little=False)) == [("data/9000", "U8", (24,))]


def test_bytes_behind_the_storages_belong_to_nobody():
    assert summary(torch_legacy_bytes({"a": A}) + b"more") == [("a", "F32", (2, 3))]


@pytest.mark.parametrize(
    "data",
    [
        torch_legacy_bytes({"a": A}, protocol=1000),
        torch_legacy_bytes({"a": A}, magic=b"\x8a\x0a" + bytes(10)),
        torch_legacy_bytes({"a": A, "b": B}, keys=["9001", "9000"]),
        torch_legacy_bytes({"a": A, "b": B}, keys=["9000", "9000"]),
        torch_legacy_bytes({"a": A}, keys=["9000", "9001"]),
        torch_legacy_bytes({"a": A}, counts={"9000": 5}),
        torch_legacy_bytes({"a": A}, counts={"9000": 1 << 63}),
        torch_legacy_bytes({"a": A})[:-1],
        torch_legacy_bytes({"a": A})[:-30],
        torch_legacy_bytes({"a": A}).replace(b"FloatStorage", b"CloudStorage"),
        torch_legacy_bytes({"a": A}).replace(b"X\4\0\0\0" + b"9000e", b"K\1" + b"e"),
        # A view of another storage, as before torch 0.4.
        torch_legacy_bytes({"a": A}).replace(b"NtQ", b"(K\1K\0K\1ttQ"),
    ],
    ids=range(12),
)
def test_odd_files_are_unknown(data):
    assert summary(data) == []


def test_a_storage_that_no_tensor_uses_is_a_span():
    data = torch_legacy_bytes({"a": A}, value=lambda given: pickle_dict({"x": given["a"] + b"0N"}))
    assert summary(data) == [("data/9000", "U8", (24,))]
