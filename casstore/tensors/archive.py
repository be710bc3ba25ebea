"""Zip archives: told apart by what they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.tensors import npz
from casstore.tensors.span import Unrecognised
from casstore.tensors.torch import exported_program as torch_export
from casstore.tensors.torch import zip_file as torch_zip
from casstore.tensors.zip_directory import stored_entries

if TYPE_CHECKING:
    from casstore.tensors.span import ByteSource, TensorSpan

__all__ = ["spans"]


def spans(source: ByteSource) -> list[TensorSpan]:
    """Return the tensors of an archive of a known kind, or raise Unrecognised."""
    entries = stored_entries(source)
    if torch_zip.is_torch_zip(entries):
        return torch_zip.spans(source, entries)
    if torch_export.is_torch_export(entries):
        return torch_export.spans(source, entries)
    if npz.is_npz(entries):
        return npz.spans(source, entries)
    raise Unrecognised("an archive of something else")
