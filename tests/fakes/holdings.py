"""Stores whose frames are chosen one by one: which pack has which, which are deltas, which models need them."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field

import numpy as np
from fakes.collector import delta_frame
from fakes.stores import noise

from casstore.digest import digest
from casstore.format import layout as layout_format
from casstore.format import manifest as manifest_format
from casstore.format import record as record_format
from casstore.format.layout import Layout
from casstore.format.manifest import ModelManifest, TreeEntry
from casstore.format.record import Record
from casstore.format.rows import Kind
from casstore.objects.publishing.pack_writer import PackWriter, encode_object

_times = itertools.count(1_700_000_000_000_000_000)


@dataclass
class Chunks:
    """Chunks by number: plain bytes, and the frames that packs hold of them."""

    sizes: list[int]
    plain: list[bytes] = field(init=False)

    def __post_init__(self):
        self.plain = [noise(9_000 + at, size) for at, size in enumerate(self.sizes)]

    def id(self, number):
        return digest(self.plain[number])

    def frame(self, number, bases=()):
        """Return a frame of a chunk, a delta of rank 4 with `bases`."""
        if bases:
            return delta_frame(self.plain[number], 4, [self.plain[base] for base in bases])
        return encode_object(Kind.CHUNK, self.plain[number])


def write_pack(store, frames):
    """Write one pack with a segment; return its id."""
    with PackWriter(store.backend) as writer:
        for item in frames:
            writer.append(item)
        (written,) = writer.finish()
    store.objects.cover([(written.pack_id, written.footer)])
    return written.pack_id


def write_model(store, name, chunks, numbers, *, path="model.bin"):
    """Make a ref name a model of one file with these chunks; its description gets a pack of its own."""
    plain = b"".join(chunks.plain[number] for number in numbers)
    lengths = np.array([chunks.sizes[number] for number in numbers], np.uint32)
    ids = b"".join(chunks.id(number) for number in numbers)
    layout = layout_format.encode(Layout(digest(plain), len(plain), ids, lengths))
    tree = manifest_format.encode_tree(
        manifest_format.make_tree([TreeEntry(path, len(plain), digest(plain))])
    )
    model = manifest_format.encode_model(ModelManifest(digest(tree), (digest(layout),)))
    described = [(Kind.LAYOUT, layout), (Kind.TREE, tree), (Kind.MANIFEST, model)]
    write_pack(store, [encode_object(kind, data) for kind, data in described])
    return put_record(store, name, target=digest(tree), manifest=digest(model))


def put_record(store, name, *, target, manifest):
    record = Record(
        name=name,
        seq=1,
        write_id=os.urandom(16),
        time=next(_times),
        writer="test",
        target=target,
        manifest=manifest,
    )
    store.backend.put(record.key, [record_format.encode(record)])
    return record
