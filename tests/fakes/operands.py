"""Operands as the operations of deltas get them: in parts, at any address."""

from __future__ import annotations

import itertools
import random
import zlib

import numpy as np


def in_parts(data):
    """Return bytes in one to three parts that are aligned to nothing; where they are cut follows from the bytes."""
    chance = random.Random(zlib.crc32(data))
    unit = chance.choice([1, 4, 8, 128, 1024])
    cuts = {chance.randrange(len(data) // unit + 1) * unit for _ in range(chance.randrange(3))}
    edges = sorted({0, len(data), *cuts})
    return [np.frombuffer(b"x" + data[begin:end], np.uint8)[1:] for begin, end in itertools.pairwise(edges)]
