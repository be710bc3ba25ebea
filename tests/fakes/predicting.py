"""Adds that write deltas: chunks of one family of bytes are predicted from whichever of it the store holds."""

from __future__ import annotations

import contextlib
import itertools
import random

from fakes.stores import noise

from casstore.codecs.delta import Extent, Order, Residual, same
from casstore.digest import digest
from casstore.errors import IntegrityError
from casstore.objects import EncodedFrames, encode_delta
from casstore.store.adding.ingest import Ingest

FAMILY = 12
"""How many relatives there are."""

_SIZE = 40_000


def relative(number):
    """Return one chunk of the family: all are alike but for some bytes."""
    data = bytearray(noise(500, _SIZE))
    at = 100 + 20 * number
    data[at : at + 40] = noise(600 + number, 40)
    return bytes(data)


_FAMILY = {digest(plain): plain for plain in map(relative, range(FAMILY))}


def predicted(objects, plain):
    """Return a frame of a chunk that is a delta, if the store holds a relative of it; None otherwise."""
    own = digest(plain)
    if own not in _FAMILY:
        return None
    others = sorted(_FAMILY.keys() - {own})
    random.Random(own).shuffle(others)
    # As the index knows them: looking harder for all that is not there would take longer than the rest.
    for other in itertools.compress(others, objects.find(others).found):
        # Gone or damaged: it is no base.
        with contextlib.suppress(IntegrityError):
            bases = objects.read_bases([other])
            pieces = [same(0, [Extent(0, 0, _SIZE)], Residual(Order.INTEGER, 1))]
            frames = encode_delta(plain, bases=bases, pieces=pieces)
            if frames is not None:
                return frames
    return None


_work = Ingest._work


def _predicting_work(self, block, part):
    worked = _work(self, block, part)
    headers, parts = [], []
    places = dict(zip(worked.ids, block.cuts[part.start : part.stop], strict=True))
    begin = 0
    for header in worked.frames.headers:
        offset, length = places[header.object_id]
        end = begin + header.size + header.stored
        delta = predicted(self._objects, bytes(block.buffer[offset : offset + length]))
        headers += [header] if delta is None else delta.headers
        parts.append(worked.frames.data[begin:end] if delta is None else delta.data)
        begin = end
    frames = EncodedFrames(headers, memoryview(b"".join(parts)))
    worked.frames.release()
    return worked._replace(frames=frames)


def predict_from_now_on():
    """Let every add of this process write deltas."""
    Ingest._work = _predicting_work


@contextlib.contextmanager
def predicting():
    """Let adds write deltas inside this block."""
    predict_from_now_on()
    try:
        yield
    finally:
        Ingest._work = _work
