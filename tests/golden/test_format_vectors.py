"""The vectors in casstore/format/README.md: bytes that every version must write and read alike."""

from __future__ import annotations

import importlib.resources
import re

import numpy as np
import pytest

from casstore.digest import digest
from casstore.format import frame, index, layout, manifest, marks, pack, record, rows, run
from casstore.format.frame import FrameHeader
from casstore.format.layout import Layout, Span
from casstore.format.manifest import ModelManifest, TreeEntry
from casstore.format.rows import Kind

README = importlib.resources.files("casstore.format").joinpath("README.md").read_text("utf-8")
VECTORS = {
    name: bytes.fromhex(body) for name, body in re.findall(r"```vector ([a-z-]+)\n([0-9a-f\s]*)```", README)
}

HELLO = b"hello, chunk\n"
HELLO_ID = digest(HELLO)
LAYOUT = Layout(
    file_id=HELLO_ID,
    size=len(HELLO),
    ids=HELLO_ID,
    lengths=np.array([len(HELLO)], "<u4"),
    spans=(Span("w", "U8", (13,), 0, 13),),
)
TREE = manifest.make_tree(
    [
        TreeEntry("b/run.sh", len(HELLO), HELLO_ID),
        TreeEntry("a.txt", len(HELLO), HELLO_ID),
        TreeEntry("logs", 0, None),
    ]
)
TREE_ID = digest(manifest.encode_tree(TREE))
MODEL = ModelManifest(TREE_ID, (digest(layout.encode(LAYOUT)),) * 2, executable=(1,))
RECORD = record.Record(
    name="tags/Best.v1",
    seq=2,
    write_id=bytes(range(16)),
    time=1_700_000_000_000_000_000,
    writer="host",
    target=TREE_ID,
    manifest=digest(manifest.encode_model(MODEL)),
    base=HELLO_ID,
    metadata={"epoch": 3, "lr": 0.5},
    packs=(HELLO_ID,),
    exclusive=True,
)
HEADERS = [
    FrameHeader(HELLO_ID, Kind.CHUNK, 0, len(HELLO), len(HELLO)),
    FrameHeader(TREE_ID, Kind.TREE, 3, 9, 1, rank=1, bases=(HELLO_ID,)),
]
PAYLOADS = [HELLO, b"?"]


def make_pack():
    body = pack.encode_header(bytes(range(16)))
    offsets = []
    for header, payload in zip(HEADERS, PAYLOADS, strict=True):
        offsets.append(len(body))
        body += frame.encode_header(header) + payload
    footer = pack.footer_rows(HEADERS, offsets)
    return body + pack.encode_footer(footer, begin=len(body)), footer


def make_index():
    footer = make_pack()[1]
    return index.encode(footer.rows, footer.bases, {digest(make_pack()[0]): len(make_pack()[0])})


RUN = run.RunManifest(
    name="out",
    key=run.RunKey(HELLO_ID.hex(), "quantize", "1", {"bits": 4, "scale": 0.5}, "cpu", {"onnx": "1.23"}),
    status=run.RunStatus.DONE,
    input=HELLO_ID,
    output=TREE_ID,
    input_name="in",
    started=7,
    duration=8,
    config={"bits": 4},
    metrics={"accuracy": 0.5},
    artifacts={"log": HELLO_ID},
)
EVALUATION = run.EvaluationManifest("out-cpu", TREE_ID, "e1", {"accuracy": 0.5})

EXPECTED = {
    "format": marks.encode_format(marks.StoreFormat(bytes(range(16)))),
    "private": marks.encode_private(marks.Private(bytes(range(16)), 7)),
    "tombstone": marks.encode_tombstone(marks.Tombstone((HELLO_ID,), 7)),
    "quarantine": marks.encode_quarantine(marks.Quarantine(HELLO_ID, "torn", 7)),
    "run": run.encode_run(RUN),
    "evaluation": run.encode_evaluation(EVALUATION),
    "layout": layout.encode(LAYOUT),
    "tree": manifest.encode_tree(TREE),
    "model": manifest.encode_model(MODEL),
    "record": record.encode(RECORD),
    "pack": make_pack()[0],
    "index": make_index(),
}


def test_every_vector_has_a_test_and_every_test_a_vector():
    assert VECTORS.keys() >= EXPECTED.keys()


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_encoding_gives_the_vector(name):
    assert EXPECTED[name].hex() == VECTORS[name].hex()


def test_decoding_the_vectors():
    assert marks.decode_format(VECTORS["format"]).store_id == bytes(range(16))
    assert marks.decode_private(VECTORS["private"]) == marks.Private(bytes(range(16)), 7)
    assert marks.decode_tombstone(VECTORS["tombstone"], key="t").packs == (HELLO_ID,)
    note = marks.decode_quarantine(VECTORS["quarantine"], key=marks.quarantine_key(HELLO_ID))
    assert note == marks.Quarantine(HELLO_ID, "torn", 7)
    assert run.decode_run(VECTORS["run"]) == RUN
    assert RUN.key.digest().hex() in README
    assert run.decode_evaluation(VECTORS["evaluation"]) == EVALUATION
    assert layout.decode(VECTORS["layout"]).spans == LAYOUT.spans
    assert manifest.decode_tree(VECTORS["tree"]) == TREE
    assert manifest.decode_model(VECTORS["model"]) == MODEL
    assert record.decode(VECTORS["record"], key="refs/tags/65/=42est.v1@0000000000000002") == RECORD


def test_reading_the_pack_and_index_vectors():
    data = VECTORS["pack"]
    trailer = pack.decode_trailer(data[-pack.TRAILER_SIZE :], pack_size=len(data), key="p")
    footer = pack.decode_footer(data[trailer.begin : -pack.TRAILER_SIZE], trailer, key="p")
    assert rows.row_ids(footer.rows) == [HELLO_ID, TREE_ID]
    assert footer.bases.get(int(footer.rows["bases"][1])) == (HELLO_ID,)
    start = int(footer.rows["offset"][0])
    header = frame.decode_header(data[start:], key="p")
    assert data[start + header.size :][: header.stored] == HELLO
    shape = index.decode_shape(VECTORS["index"], key="i")
    head = index.decode_head(VECTORS["index"], shape, key="i")
    assert head.packs == [digest(data)]
    assert head.sizes == [len(data)] == [footer.pack_size]
