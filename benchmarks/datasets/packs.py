"""Footers of packs that are not there: chunks of the usual size, of which nothing but the ids matters."""

from __future__ import annotations

import numpy as np

from casstore.chunking import FIXED_CHUNK
from casstore.codecs import Encoding
from casstore.format import frame, pack
from casstore.format.pack import Footer
from casstore.format.rows import ROW, BaseLists, Kind

STORED = FIXED_CHUNK * 2 // 3
"""Bytes that a chunk takes, as those of real weights do."""


def footer_of(ids: bytes) -> Footer:
    """Return the footer of a pack that holds the chunks with these ids, one behind another."""
    words = np.frombuffer(ids, ">u8").reshape(-1, 4)
    rows = np.zeros(len(words), ROW)
    rows["id"] = words
    rows["offset"] = pack.HEADER_SIZE + np.arange(len(words)) * (frame.HEADER_SIZE + STORED)
    rows["stored"], rows["raw"] = STORED, FIXED_CHUNK
    rows["kind"], rows["encoding"] = Kind.CHUNK, Encoding.PLANES
    return Footer(rows, BaseLists.empty())
