"""npz: numpy arrays in a zip archive, each a stored member `<name>.npy`.

Source: https://numpy.org/doc/stable/reference/generated/numpy.savez.html. Compressed members are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.tensors import npy
from casstore.tensors.span import UniqueNames, Unrecognised
from casstore.tensors.window import Section, Window
from casstore.tensors.zip_directory import locate

if TYPE_CHECKING:
    from casstore.tensors.span import ByteSource, TensorSpan
    from casstore.tensors.zip_directory import Entries

__all__ = ["is_npz", "spans"]

_SUFFIX = ".npy"


def is_npz(entries: Entries) -> bool:
    """Say whether an archive has a stored array."""
    return any(name.endswith(_SUFFIX) for name in entries)


def spans(source: ByteSource, entries: Entries) -> list[TensorSpan]:
    """Return the stored arrays, each under its member's name, or raise Unrecognised.

    A member that is no array that is known (objects, records) is left out.
    """
    window = Window(source)
    names = UniqueNames()
    found = []
    members = [entry for name, entry in entries.items() if name.endswith(_SUFFIX)]
    for entry, begin in locate(window, members):
        try:
            (span,) = npy.spans(Section(window, begin, entry.length))
        except Unrecognised:
            continue
        if span.end > entry.length:
            continue
        # An array in Fortran order is named for its transpose.
        name = entry.name.removesuffix(_SUFFIX) + span.name.removeprefix(npy.NAME)
        found.append(span._replace(name=names.claim(name), begin=begin + span.begin, end=begin + span.end))
    return found
