"""torch zip archives: what torch.save has written since 1.6, and TorchScript.

An archive keeps each storage as the entry `<root>/data/<key>` and describes tensors, views of storages, in
`<root>/data.pkl`; TorchScript has a second pair, `constants`. Source: torch/serialization.py and
https://github.com/pytorch/pytorch/blob/main/caffe2/serialize/inline_container.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.tensors.span import TensorSpan, UniqueNames, Unrecognised
from casstore.tensors.torch.pickle_machine import MAX_PICKLE_BYTES, read_symbols
from casstore.tensors.torch.storages import named_views, storage_spans
from casstore.tensors.window import Window, read_exactly
from casstore.tensors.zip_directory import locate

if TYPE_CHECKING:
    from casstore.tensors.span import ByteSource
    from casstore.tensors.torch.storages import View
    from casstore.tensors.zip_directory import Entries, ZipEntry

__all__ = ["is_little_endian", "is_torch_zip", "spans"]


def is_torch_zip(entries: Entries) -> bool:
    """Say whether an archive holds a value that torch saved."""
    return bool(_roots(entries))


def spans(source: ByteSource, entries: Entries, *, prefix: str = "") -> list[TensorSpan]:
    """Return the tensors of the archive, named below `prefix`, or raise Unrecognised.

    Where the tensors on a storage lie in it one after another they are the spans, named by their path in the saved
    value (`model.fc.weight`). Otherwise, and where the pickle cannot be read, the storage is one span,
    named by its zip entry (`archive/data/3`). Storages of unknown type or big-endian order are U8.
    """
    roots = _roots(entries)
    if len(roots) != 1:
        raise Unrecognised("two values in one zip")
    root = roots[0]
    little = is_little_endian(source, entries.get(root + "byteorder"))
    names = UniqueNames()
    found: list[TensorSpan] = []
    for part, front in (("data", prefix), ("constants", f"{prefix}.constants" if prefix else "constants")):
        folder = f"{root}{part}/"
        storages = [entry for name, entry in entries.items() if name.startswith(folder)]
        if not storages:
            continue
        views = _views(source, entries.get(f"{root}{part}.pkl"), front) if little else {}
        begins = {entry.name: begin for entry, begin in locate(Window(source), storages)}
        for name, _, length in storages:
            for span in storage_spans(name, begins[name], length, views.get(name[len(folder) :], [])):
                unique = names.claim(span.name)
                found.append(span if unique == span.name else span._replace(name=unique))
    return found


def _roots(entries: Entries) -> list[str]:
    return [
        name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1
    ]


def is_little_endian(source: ByteSource, entry: ZipEntry | None) -> bool:
    """Say whether an archive with this `byteorder` entry is little-endian."""
    # Archives from before the entry existed are little-endian, as the machines were.
    return entry is None or (entry.length == 6 and _content(source, entry) == b"little")


def _content(source: ByteSource, entry: ZipEntry) -> bytes:
    ((_, begin),) = locate(Window(source), [entry])
    return read_exactly(source, begin, entry.length)


def _views(source: ByteSource, entry: ZipEntry | None, prefix: str) -> dict[str, list[View]]:
    """Return the named tensors on each storage key; none at all if the pickle cannot be read or is absurd."""
    if entry is None or entry.length > MAX_PICKLE_BYTES:
        return {}
    data = _content(source, entry)
    try:
        return named_views(read_symbols(data).value, prefix)
    except Unrecognised:
        # The zip itself still says where storages lie.
        return {}
