"""A store that an attacker wrote, with the package's own encoders.

What the attacker may do is write any bytes under any key; what must hold is that a reader raises one of
casstore's errors, takes bounded memory, and writes nothing outside the destination of a checkout.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import pytest

from casstore import IntegrityError, Store
from casstore.codecs import Encoding
from casstore.digest import digest
from casstore.errors import CasstoreError
from casstore.format import canonical, frame, index, layout, pack
from casstore.format.manifest import ModelManifest, encode_model
from casstore.format.record import Record
from casstore.format.record import encode as encode_record
from casstore.format.rows import BaseLists, Kind, sort_order
from casstore.objects.keys import index_key, pack_key
from casstore.ops.check import check

GOOD = ["f.bin", 4, digest(b"evil")]
"""The row of a tree that describes a file of four bytes truly."""


@contextmanager
def lying():
    """Let encoders write what no reader takes."""
    checks = {"_check": layout, "_check_limits": frame, "check_rows": pack}
    with ExitStack() as stack:
        for name, module in checks.items():
            stack.enter_context(patch.object(module, name, lambda *_, **__: None))
        yield


class Forge:
    """Writes whatever it is told to, in the right form, under the right names."""

    def __init__(self, root):
        self.root = root
        self.store = Store(root, create=True, durability="none")
        self._frames = []
        self._models = 0

    def frame(
        self, kind, plain, *, object_id=None, encoding=Encoding.RAW, payload=None, raw=None, stored=None
    ):
        """Add a frame to the next pack; everything that its header says may be a lie."""
        payload = plain if payload is None else payload
        object_id = digest(plain) if object_id is None else object_id
        header = frame.FrameHeader(
            object_id,
            kind,
            encoding,
            len(plain) if raw is None else raw,
            len(payload) if stored is None else stored,
        )
        self._frames.append((header, payload))
        return object_id

    def layout_of(self, plain, *, pieces=None, **changes):
        """Add a layout that cuts `plain` into `pieces` (one by default), and its chunks."""
        pieces = [plain] if pieces is None else pieces
        values = {
            "file_id": digest(plain),
            "size": len(plain),
            "ids": b"".join(self.frame(Kind.CHUNK, piece) for piece in pieces),
            "lengths": np.array([len(piece) for piece in pieces], "<u4"),
        }
        with lying():
            return self.frame(Kind.LAYOUT, layout.encode(layout.Layout(**{**values, **changes})))

    def flush(self, *, cover=True, change_rows=None):
        """Write one pack of the frames so far, and a segment over it."""
        blob = bytearray(pack.encode_header(os.urandom(16)))
        offsets = []
        for header, payload in self._frames:
            offsets.append(len(blob))
            with lying():
                blob += frame.encode_header(header) + payload
        with lying():
            footer = pack.footer_rows([header for header, _ in self._frames], offsets)
        if change_rows is not None:
            change_rows(footer.rows)
        blob += pack.encode_footer(footer, begin=len(blob))
        self._frames = []
        pack_id = digest(blob)
        self.store.backend.put(pack_key(pack_id), [blob])
        if cover:
            self.segment(footer.rows, [pack_id])
        return pack_id, footer.rows

    def segment(self, rows, packs):
        sizes = {pack_id: self.store.backend.stat(pack_key(pack_id)).size for pack_id in packs}
        rows = rows[sort_order(rows)]
        self.put_segment(
            b"".join(index.encode_parts(lambda: iter((rows,)), len(rows), BaseLists.empty(), sizes))
        )

    def put_segment(self, data):
        self.store.backend.put(index_key(data), [data])

    def model(self, rows, layouts, *, executable=(), ref=None, target=None, flush=True, **tree):
        """Publish a tree of [path, size, file id] rows, sorted or not, safe or not."""
        self._models += 1
        name = ref or f"models/m{self._models}"
        body = {"type": "tree", "version": 1, "entries": rows, **tree}
        model_id = self.frame(Kind.TREE, canonical.encode(body))
        manifest = self.frame(
            Kind.MANIFEST, encode_model(ModelManifest(model_id, tuple(layouts), executable))
        )
        if flush:
            self.flush()
        self.record(name, target=target or model_id, manifest=manifest)
        return name

    def file(self, plain, path="f.bin", **changes):
        """Publish a model of one file whose layout has these changes."""
        pieces = changes.pop("pieces", None)
        return self.model(
            [[path, len(plain), digest(plain)]], [self.layout_of(plain, pieces=pieces, **changes)]
        )

    def record(self, name, **values):
        seq = values.pop("seq", 1)
        made = Record(name, seq, os.urandom(16), time.time_ns(), "forge", values.pop("target"), **values)
        self.store.backend.put(made.key, [encode_record(made)])

    def opened(self):
        return Store(self.root)


def assert_refused(forge, ref, destination, *, error=IntegrityError, path="f.bin", reported=True):
    """No way of reading gives anything, and `check` says why."""
    with forge.opened() as store:
        with pytest.raises(error):
            store.get(ref, destination)
        assert not destination.exists()
        with pytest.raises(CasstoreError):
            store.open_file(ref, path).read()
        with pytest.raises(CasstoreError):
            store.read_tensor(ref, "w", file=path)
        assert check(store, read_data=True).ok != reported
