"""The model id of files that are not added: hashed, or known from the stat cache."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from casstore.concurrency.buffers import give_block, take_block
from casstore.digest import DIGEST_SIZE, Hasher, digest
from casstore.format.manifest import TreeEntry, encode_tree, make_tree
from casstore.machine.state import KnownFile
from casstore.machine.unchanged import flush
from casstore.store.adding.sources import check_unchanged, list_sources, open_source, read_full

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casstore.machine.state import MachineState
    from casstore.store.adding.exclusion import Exclusion
    from casstore.store.adding.sources import SourceFile

_NO_LAYOUT = bytes(DIGEST_SIZE)
_PIECE = 256 << 10
"""Bytes read at a time: few enough to be in the processor's cache still when they are hashed."""


def content_id(
    path: str | Mapping[str, str], machine: MachineState, *, exclusion: Exclusion | None = None
) -> bytes:
    """Return the model id that adding `path` (or a map of places to paths) would give; nothing is added.

    Raises ConfigError for paths that could not be added, ConflictError for a file that changes meanwhile.
    """
    sources = list_sources(path, exclusion=exclusion)
    unchanged = machine.unchanged_files()
    keys = [_key(unchanged.key(file.place, file.identity)) for file in sources.files]
    entries: list[TreeEntry] = []
    read: list[tuple[bytes, KnownFile]] = []
    for file, key, known in zip(sources.files, keys, machine.known_files(keys), strict=True):
        if known is not None:
            entries.append(TreeEntry(file.path, file.identity.size, known.file_id))
            continue
        file_id, size, is_sure = _hash_file(file, is_worth_knowing=key is not None)
        if key is not None and is_sure:
            read.append((key, KnownFile(file_id, _NO_LAYOUT)))
        entries.append(TreeEntry(file.path, size, file_id))
    machine.remember_files(read)
    entries += [TreeEntry(name, 0, None) for name in sources.empty]
    return digest(encode_tree(make_tree(entries)))


def _key(of_file: bytes | None) -> bytes | None:
    return None if of_file is None else digest(b"content|" + of_file)


def _hash_file(file: SourceFile, *, is_worth_knowing: bool) -> tuple[bytes, int, bool]:
    """Return a file's id, its size in bytes, and whether its stat identity will show if it changes.

    It is read rather than mapped: one that becomes shorter meanwhile would end the process.
    """
    descriptor = open_source(file)
    buffer = take_block()
    try:
        is_flushed = is_worth_knowing and flush(descriptor)
        check_unchanged(file, os.fstat(descriptor))
        hasher = Hasher()
        size = 0
        piece = buffer[:_PIECE]
        while count := read_full(descriptor, piece, size, file.shown):
            hasher.update(piece[:count])
            size += count
            if size > file.identity.size:
                check_unchanged(file, os.fstat(descriptor))
        check_unchanged(file, os.fstat(descriptor))
        return hasher.digest(), size, is_flushed and size == file.identity.size
    finally:
        give_block(buffer)
        os.close(descriptor)
