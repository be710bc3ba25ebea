"""The model id of files that are not added: hashed, or known from the stat cache."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from casstore.digest import DIGEST_SIZE, Hasher, digest
from casstore.errors import BackendUnavailable
from casstore.format.manifest import TreeEntry, encode_tree, make_tree
from casstore.store.machine import KnownFile
from casstore.store.sources import check_unchanged, find_sources, open_source, place_sources

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casstore.store.machine import MachineState
    from casstore.store.sources import SourceFile

_NO_LAYOUT = bytes(DIGEST_SIZE)


def content_id(path: str | Mapping[str, str], machine: MachineState) -> bytes:
    """Return the model id that adding `path` (or a map of places to paths) would give; nothing is added.

    Raises ConfigError for paths that could not be added, ConflictError for a file that changes meanwhile.
    """
    started = time.time_ns()
    sources = find_sources(path) if isinstance(path, str) else place_sources(path)
    entries: list[TreeEntry] = []
    learnt: list[tuple[bytes, KnownFile]] = []
    for file in sources.files:
        key = digest(b"content|" + file.identity.packed())
        known = machine.known_file(key)
        if known is None:
            known = KnownFile(_hash_file(file), _NO_LAYOUT)
            if file.identity.settled(started):
                learnt.append((key, known))
        entries.append(TreeEntry(file.path, file.identity.size, known.file_id))
    machine.remember_files(learnt)
    entries += [TreeEntry(name, 0, None) for name in sources.empty]
    return digest(encode_tree(make_tree(entries)))


def _hash_file(file: SourceFile) -> bytes:
    descriptor = open_source(file)
    try:
        check_unchanged(file, os.fstat(descriptor))
        hasher = Hasher()
        if file.identity.size:
            # Mapped and hashed in native code: the interpreter sees none of the bytes.
            hasher.update_mmap(f"/dev/fd/{descriptor}")
        check_unchanged(file, os.fstat(descriptor))
        return hasher.digest()
    except OSError as error:
        # Invariant 8: a file that cannot be read is an error, it is not left out of the id.
        raise BackendUnavailable(f"{file.location} cannot be read: {error}.", retryable=False) from error
    finally:
        os.close(descriptor)
