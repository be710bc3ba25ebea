"""The payload vectors in casstore/format/README.md decode to their plain bytes, in every version."""

from __future__ import annotations

import importlib.resources
import re

import pytest
from fakes.implementations import agreed
from fakes.payloads import decode

from casstore.codecs import Encoding

README = importlib.resources.files("casstore.format").joinpath("README.md").read_text("utf-8")
VECTORS = {
    name: bytes.fromhex(body) for name, body in re.findall(r"```vector ([a-z-]+)\n([0-9a-f\s]*)```", README)
}
PAYLOADS = sorted(name.removesuffix("-plain") for name in VECTORS if name.endswith("-plain"))


def test_the_page_has_vectors_for_all_encodings():
    assert {name.partition("-")[0] for name in PAYLOADS} == {"planes", "zstd", "delta"}
    assert len(PAYLOADS) >= 17


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload_decodes_to_its_plain_bytes(name):
    plain = VECTORS[f"{name}-plain"]
    bases = [data for item, data in VECTORS.items() if item.startswith(f"{name}-base")]
    encoding = Encoding[name.partition("-")[0].upper()]
    assert agreed(lambda: decode(encoding, VECTORS[name], len(plain), bases)) == plain
