from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from fakes.model_files import (
    BytesSource,
    onnx_bytes,
    onnx_external_bytes,
    onnx_model,
    onnx_tensor,
    parts,
    proto_field,
    proto_varint,
)

from casstore.tensors import (
    clip_spans,
    find_context_files,
    find_external_spans,
    find_model_spans,
    find_spans,
)

W = np.arange(6, dtype="f4").reshape(2, 3)
TENSOR = onnx_tensor("w", W)


def names(data):
    return [span.name for span in find_spans(BytesSource(data))]


def node(*attributes, outputs=("out",)):
    fields = [proto_field(1, "in"), *(proto_field(2, name) for name in outputs), proto_field(4, "Constant")]
    return b"".join([*fields, *(proto_field(5, attribute) for attribute in attributes)])


def attribute(number, value):
    return proto_field(1, "value") + proto_field(20, 4) + proto_field(number, value)


CONSTANT = onnx_tensor("", W)


@pytest.mark.parametrize(
    ("graph", "want"),
    [
        (proto_field(5, TENSOR), ["w"]),
        (proto_field(1, node(attribute(5, CONSTANT))), ["out"]),
        (proto_field(1, node(attribute(5, TENSOR))), ["w"]),
        (proto_field(1, node(attribute(10, CONSTANT))), ["out"]),
        (proto_field(1, node(attribute(6, proto_field(5, TENSOR)))), ["w"]),
        (
            proto_field(
                1, node(attribute(11, proto_field(1, node(attribute(5, CONSTANT), outputs=["deep"]))))
            ),
            ["deep"],
        ),
        (
            proto_field(15, proto_field(1, TENSOR) + proto_field(2, onnx_tensor("i", np.arange(2)))),
            ["w", "i"],
        ),
        (proto_field(1, node(attribute(22, proto_field(1, TENSOR)))), ["w"]),
        (proto_field(1, node(attribute(5, CONSTANT), outputs=[])), ["unnamed"]),
        (b"", []),
    ],
)
def test_tensors_are_found_wherever_they_are(graph, want):
    assert names(onnx_model(graph)) == want


def test_functions_and_training_info():
    function = proto_field(
        25, proto_field(1, "f") + proto_field(7, node(attribute(5, CONSTANT), outputs=["y"]))
    )
    training = proto_field(20, proto_field(1, proto_field(5, onnx_tensor("t", W))))
    assert names(onnx_model(proto_field(5, TENSOR), function, training)) == ["w", "y", "t"]


def test_the_main_graph_keeps_its_names():
    inner = proto_field(1, node(attribute(6, proto_field(5, onnx_tensor("w", np.zeros(2))))))
    data = onnx_model(inner + inner + proto_field(5, TENSOR))
    spans = {span.name: span for span in find_spans(BytesSource(data))}
    assert set(spans) == {"w", "w#2", "w#3"}
    assert spans["w"].dtype == "F32"


@pytest.mark.parametrize(
    ("data_type", "field", "data", "dtype"),
    [
        (1, 4, np.arange(4, dtype="<f4"), "F32"),
        (11, 10, np.arange(4, dtype="<f8"), "F64"),
        (14, 4, np.arange(4, dtype="<c8"), "C64"),
    ],
)
def test_packed_typed_fields_are_raw_bytes_too(data_type, field, data, dtype):
    tensor = (
        proto_field(1, 4)
        + proto_field(2, data_type)
        + proto_field(field, data.tobytes())
        + proto_field(8, "w")
    )
    model = onnx_model(proto_field(5, tensor))
    (span,) = find_spans(BytesSource(model))
    assert (span.dtype, span.shape) == (dtype, (4,))
    assert model[span.begin : span.end] == data.tobytes()


def test_varint_values_have_no_span():
    tensor = proto_field(1, 2) + proto_field(2, 7) + proto_field(7, b"\1\2") + proto_field(8, "w")
    assert names(onnx_model(proto_field(5, tensor))) == []


def test_an_unknown_data_type_is_bytes():
    tensor = proto_field(1, 3) + proto_field(2, 99) + proto_field(8, "w") + proto_field(9, bytes(10))
    (span,) = find_spans(BytesSource(onnx_model(proto_field(5, tensor))))
    assert (span.dtype, span.shape) == ("U8", (10,))


def test_payloads_are_not_read():
    data = onnx_bytes({f"w{i}": np.zeros(1 << 18, "f4") for i in range(8)})
    source = BytesSource(data)
    assert len(find_spans(source)) == 8
    assert sum(length for _, length in source.reads) < len(data) // 50


GRAPH = proto_field(5, TENSOR)
MODEL = onnx_model(GRAPH)


@pytest.mark.parametrize(
    "data",
    [
        proto_field(7, GRAPH),  # no version
        proto_field(1, 10) + proto_field(2, "x"),  # no graph
        MODEL + proto_field(1, 3),
        MODEL + proto_field(7, b""),
        proto_field(1, "ten") + proto_field(7, GRAPH),
        proto_field(7, GRAPH) + proto_field(1, "ten"),
        proto_field(1, 10) + proto_field(7, GRAPH) + proto_field(25, 3),
        MODEL + b"\0",
        MODEL + b"\x80" * 12,
        MODEL + proto_varint(200 << 3 | 2) + b"\x05ab",
        MODEL + proto_varint(200 << 3 | 5) + b"abc",
        MODEL + proto_varint(200 << 3 | 1) + b"abcdefg",
        MODEL + proto_varint(200 << 3) + b"\x80",
        MODEL + proto_varint(1 << 32 | 2) + b"\0",  # a field number beyond protobuf's largest
        MODEL + proto_field(5000, 3) * 2000,
        MODEL + b"\x0b",
        MODEL + b"\x0c",
        MODEL + proto_varint(300 << 3 | 3) + proto_field(1, 2),  # a group without an end
        MODEL + proto_varint(300 << 3 | 3) + proto_varint(301 << 3 | 4),
        MODEL + proto_varint(300 << 3 | 3) * 20 + proto_varint(300 << 3 | 4) * 20,
        MODEL + proto_varint(300 << 3 | 3) + b"\x06" + proto_varint(300 << 3 | 4),
    ],
    ids=range(21),
)
def test_broken_models_are_unknown(data):
    assert names(MODEL) == ["w"]
    assert find_spans(BytesSource(data)) == ()
    assert find_external_spans(BytesSource(data)) == {}


HEAD = proto_field(1, 2) + proto_field(1, 3) + proto_field(2, 1)


@pytest.mark.parametrize(
    "tensor",
    [
        TENSOR[:-4],  # raw_data runs out of its message, into what follows
        TENSOR[:-30],
        TENSOR + proto_field(9, bytes(24)),
        proto_field(1, 5) + TENSOR,
        HEAD + proto_field(2, "F32") + proto_field(9, bytes(24)),
        HEAD + proto_field(8, 5) + proto_field(9, bytes(24)),
        HEAD + proto_field(8, b"\xff") + proto_field(9, bytes(24)),
        HEAD + proto_field(14, "x") + proto_field(9, bytes(24)),
        HEAD + proto_field(13, 1) + proto_field(9, bytes(24)),
        onnx_tensor("n" * 5000, W),
        proto_field(1, 1) * 17 + proto_field(2, 1) + proto_field(9, bytes(4)),
        proto_field(1, b"\1" * 17) + proto_field(2, 1) + proto_field(9, bytes(4)),
        proto_field(1, b"\1" * 500) + proto_field(2, 1) + proto_field(9, bytes(4)),
        proto_field(1, b"\x80") + TENSOR,
        onnx_tensor("w", ("F32", ((1 << 64) - 1,), b"abcd")),
    ],
    ids=range(15),
)
def test_one_broken_tensor_makes_the_file_unknown(tensor):
    padding = proto_field(10, "a doc string behind it")
    assert names(onnx_model(GRAPH + proto_field(5, HEAD + proto_field(9, bytes(24))) + padding)) == [
        "w",
        "unnamed",
    ]
    assert names(onnx_model(GRAPH + proto_field(5, tensor) + padding)) == []


@pytest.mark.parametrize(
    "field", [proto_field(2, 5), proto_field(5, 5), proto_field(1, 5), proto_field(11, 5)]
)
def test_a_graph_with_fields_of_another_type_is_unknown(field):
    assert names(onnx_model(GRAPH + field)) == []
    assert names(onnx_model(GRAPH + proto_field(1, proto_field(1, "in") + proto_field(5, 5)))) == []


def test_the_number_of_fields_has_a_limit(monkeypatch):
    assert names(onnx_model(GRAPH * 20))[:2] == ["w", "w#2"]
    monkeypatch.setattr("casstore.tensors.onnx.wire.MAX_FIELDS", 50)
    assert names(onnx_model(GRAPH * 20)) == []


def test_the_number_of_tensors_has_a_limit(monkeypatch):
    monkeypatch.setattr("casstore.tensors.onnx.walk.MAX_SPANS", 10)
    assert len(names(onnx_model(GRAPH * 10))) == 10
    assert names(onnx_model(GRAPH * 11)) == []


def nested(levels):
    graph = proto_field(5, TENSOR)
    for _ in range(levels):
        graph = proto_field(1, node(attribute(6, graph)))
    return onnx_model(graph)


def test_nesting_has_a_limit():
    assert names(nested(4)) == ["w"]
    assert names(nested(5)) == []
    assert names(nested(400)) == []


def test_newer_fields_are_stepped_over():
    extra = (
        proto_field(99, "later") + proto_varint(98 << 3 | 5) + bytes(4) + proto_varint(97 << 3 | 1) + bytes(8)
    )
    group = proto_varint(5000 << 3 | 3) + proto_field(1, "x") + extra + proto_varint(5000 << 3 | 4)
    extra += group + proto_varint(5001 << 3 | 3) + group + proto_varint(5001 << 3 | 4)
    extra += proto_field((1 << 29) - 1, 7)
    assert names(onnx_model(proto_field(5, TENSOR + extra) + extra, extra)) == ["w"]
    assert names(onnx_model(proto_field(1, node(attribute(5, CONSTANT) + extra) + extra))) == ["out"]


def test_real_models_of_the_onnx_package(tmp_path):
    tensors = {f"w{number}": np.full((64, number + 1), number, "f4") for number in range(50)}
    nodes = [
        onnx.helper.make_node(
            "Gemm", ["x", name], [f"{name}.out"], name=f"/layer/{name}", alpha=0.5, transB=1
        )
        for name in tensors
    ]
    nodes.append(onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(W)))
    body = onnx.helper.make_graph([nodes[-1]], "body", [], [])
    nodes.append(onnx.helper.make_node("Loop", ["n"], ["loop"], body=body, perm=[2, 0, 5, 10, 82, 90]))
    graph = onnx.helper.make_graph(
        nodes, "g", [], [], [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    )
    model = onnx.helper.make_model(graph)
    data = model.SerializeToString()
    spans = {span.name: span for span in find_spans(BytesSource(data))}
    assert set(spans) == {*tensors, "c", "c#2"}
    for name, array in [*tensors.items(), ("c", W), ("c#2", W)]:
        assert data[spans[name].begin : spans[name].end] == array.tobytes()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    data = (tmp_path / "m.data").read_bytes()
    found = find_model_spans(BytesSource((tmp_path / "m.onnx").read_bytes()))
    assert {span.name for span in found.own} == {"c", "c#2"}
    external = clip_spans(found.external["m.data"], len(data))
    assert {data[span.begin : span.end] for span in external} == {a.tobytes() for a in tensors.values()}


def test_a_graph_is_read_once():
    source = BytesSource(onnx_bytes(TENSORS))
    found = find_model_spans(source)
    assert {span.name for span in found.own} == set(TENSORS)
    assert sum(length for _, length in source.reads) <= source.size + 24
    assert find_model_spans(BytesSource(onnx_bytes(TENSORS, external="d"))).external == find_external_spans(
        BytesSource(onnx_bytes(TENSORS, external="d"))
    )


@pytest.mark.parametrize("value", ["*2RZ", "Z", b"\xb2\x01"])
def test_attributes_that_look_as_if_they_held_tensors(value):
    text = proto_field(1, "note") + proto_field(4, value) + proto_field(20, 3)
    assert names(onnx_model(proto_field(1, node(text, attribute(5, TENSOR), text)))) == ["w"]


# External data.

TENSORS = {
    "a": W,
    "b": np.arange(5, dtype="i8"),
    "e": np.zeros((0, 2), "f4"),
    "bf": ("BF16", (3,), b"abcdef"),
}


def test_external_tensors_are_found_in_their_file():
    model, data = onnx_bytes(TENSORS, external="sub/model.data"), onnx_external_bytes(TENSORS)
    assert find_spans(BytesSource(model)) == ()
    external = find_external_spans(BytesSource(model))
    assert set(external) == {"sub/model.data"}
    spans = clip_spans(external["sub/model.data"], len(data))
    assert {span.name for span in spans} == set(TENSORS)
    for span in spans:
        assert data[span.begin : span.end] == parts(TENSORS[span.name]).data


def test_external_spans_beyond_their_file_are_refused_together():
    external = find_external_spans(BytesSource(onnx_bytes(TENSORS, external="model.data")))["model.data"]
    assert clip_spans(external, 100) == ()


def external_tensor(entries, shape=(2, 3), data_type=1):
    out = b"".join(proto_field(1, dim) for dim in shape) + proto_field(2, data_type) + proto_field(8, "w")
    for key, value in entries.items():
        out += proto_field(13, proto_field(1, key) + proto_field(2, value))
    return onnx_model(proto_field(5, out + proto_field(14, 1)))


def test_offset_and_length_have_defaults():
    external = find_external_spans(BytesSource(external_tensor({"location": "d", "checksum": "00"})))
    assert [(s.begin, s.end, s.shape) for s in external["d"]] == [(0, 24, (2, 3))]


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "d", "offset": "-1"},
        {"location": "d", "offset": "1e3"},
        {"location": "d", "offset": "9" * 30},
        {"location": "d", "length": " 24"},
        {"location": "d", "offset": "٣"},
        {"offset": "0"},
        {str(number): "x" for number in range(100)},
    ],
)
def test_absurd_external_entries(entries):
    assert find_external_spans(BytesSource(external_tensor(entries))) == {}


def test_an_external_length_must_fit_the_shape():
    external = find_external_spans(BytesSource(external_tensor({"location": "d", "length": "20"})))
    assert clip_spans(external["d"], 1000) == ()


def test_an_unknown_external_type_needs_a_length():
    assert find_external_spans(BytesSource(external_tensor({"location": "d"}, data_type=99))) == {}
    external = find_external_spans(
        BytesSource(external_tensor({"location": "d", "length": "9"}, data_type=99))
    )
    assert [(s.dtype, s.shape) for s in external["d"]] == [("U8", (9,))]


@pytest.mark.parametrize(
    "location",
    ["", "/etc/passwd", "../d", "a/../../d", "..", "a\\..\\d", "\\d", "C:\\d", "C:/d", "a\0b", "a\nb"],
)
def test_locations_outside_the_model_are_left_out(location):
    assert find_external_spans(BytesSource(external_tensor({"location": location}))) == {}


@pytest.mark.parametrize(
    "location",
    ["d", "./d", "sub/d.bin", "..d", "weights file.data", "12:00.data", "file:d", "*/_ORT_MEM_ADDR_/*"],
)
def test_relative_locations_are_kept_as_written(location):
    assert set(find_external_spans(BytesSource(external_tensor({"location": location})))) == {location}


def context_node(*attributes, op_type="EPContext"):
    fields = b"".join(proto_field(5, attribute) for attribute in attributes)
    return proto_field(1, fields + proto_field(4, op_type))


def context(text, *, name="ep_cache_context"):
    return proto_field(1, name) + proto_field(4, text) + proto_field(20, 3)


def test_files_that_hold_what_was_compiled():
    nodes = [
        context_node(context("graph_qnn.bin"), context("other", name="notes")),
        context_node(context("parts/two.bin")),
        context_node(context("graph_qnn.bin")),
        context_node(context("no_context.bin"), op_type="MatMul"),
        context_node(context(b"\xff\xfe compiled")),
        context_node(context("x" * 100_000)),
        context_node(context("../outside.bin")),
        context_node(),
    ]
    data = onnx_model(b"".join(nodes) + proto_field(2, "g"))
    assert find_context_files(BytesSource(data)) == ("graph_qnn.bin", "parts/two.bin")
    assert find_context_files(BytesSource(onnx_bytes(TENSORS))) == ()
    assert find_context_files(BytesSource(b"GGUF" + data)) == ()
    assert find_context_files(BytesSource(onnx_model(context_node(context("a")) * 5000))) == ()
