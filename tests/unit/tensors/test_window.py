"""Reading parts of a file in any order."""

from __future__ import annotations

import struct

import pytest
from fakes.model_files import BytesSource

from casstore.tensors.span import Unrecognised
from casstore.tensors.window import Pages

DATA = bytes(range(251)) * 150


@pytest.mark.parametrize("form", ["<B", "<H", "<I", "<Q"])
def test_numbers_are_read_across_the_ends_of_pages(form):
    parser = struct.Struct(form)
    pages = Pages(BytesSource(DATA))
    for page in (16 << 10, 32 << 10):
        for position in range(page - 9, page + 2):
            assert pages.number(parser, position) == parser.unpack_from(DATA, position)[0]
    last = len(DATA) - parser.size
    assert pages.number(parser, last) == parser.unpack_from(DATA, last)[0]
    for position in (-1, -(16 << 10), last + 1, 1 << 70):
        with pytest.raises(Unrecognised):
            pages.number(parser, position)
