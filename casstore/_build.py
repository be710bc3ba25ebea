"""Whether this installation has compiled kernels. Imports nothing slow, since `casstore --version` uses it."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

__all__ = ["Kernels", "kernels", "kernels_name"]


class Kernels(Protocol):
    """The compiled functions; casstore/codecs/kernels.py and the modules of casstore/codecs/delta say what each does."""

    split: Callable[[Buffer, Buffer, int, bool, tuple[int, ...]], None]
    onnx_parts: Callable[..., tuple[int, int, list[tuple[Any, ...]]]]
    onnx_tensor: Callable[..., tuple[int, list[tuple[Any, ...]]] | None]
    planes: Callable[..., list[int]]
    merge: Callable[[Buffer, int, bool, tuple[Any, ...]], None]
    merges_to: Callable[[Buffer, int, bool, tuple[Any, ...]], bool]
    equal: Callable[[Buffer, Buffer], bool]
    repeats: Callable[[Buffer, int], bool]
    column_bits: Callable[[Buffer], list[int]]
    subtract_each: Callable[[tuple[Any, ...], Buffer], bytes]
    add_each: Callable[[tuple[Any, ...]], None]
    cast: Callable[[Buffer, Buffer, int, int, int, bool], None]
    quantise: Callable[..., None]
    combine: Callable[..., None]
    gguf: Callable[..., None]
    lora: Callable[..., None]
    transpose: Callable[[tuple[Buffer, ...], Buffer, int, tuple[int, ...], tuple[int, ...], int], None]
    literals: Callable[[tuple[Buffer, ...], Buffer], tuple[int, ...]]
    literals_room: Callable[[int], int]
    probe_columns: Callable[..., list[tuple[int, int]]]
    probe_literals: Callable[[Buffer], tuple[int, int]]
    sketch_entropy: Callable[[Buffer, int], int]
    sketch_compare: Callable[[Buffer, Buffer, int, bool, int, int], int]
    sketch_distances: Callable[[Buffer, Buffer, Buffer, int, bool], None]
    sketch_signs: Callable[[Buffer, int, int], int]
    read_ranges: Callable[[int, Buffer, Buffer], None]


def _load() -> Kernels | None:
    if os.environ.get("CASSTORE_KERNELS") == "numpy":
        return None
    try:
        # Optional: without a compiler there are none, and numpy does the same work more slowly.
        module = importlib.import_module("casstore._kernels")
    except ImportError:
        return None
    # Beside newer sources, a module of an earlier build lacks some: after a pull in a checkout that was installed as editable.
    return module if all(hasattr(module, name) for name in Kernels.__annotations__) else None


kernels = _load()
kernels_name = "numpy" if kernels is None else "compiled"
