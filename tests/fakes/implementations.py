"""The compiled kernels and the numpy code that they stand for, one after the other."""

from __future__ import annotations

import contextlib
import importlib

from casstore import _build

# Also where CASSTORE_KERNELS=numpy turns them off.
COMPILED = None
with contextlib.suppress(ImportError):
    COMPILED = importlib.import_module("casstore._kernels")


@contextlib.contextmanager
def using(kernels):
    """Let the codecs use `kernels`, or numpy for None."""
    before = _build.kernels
    _build.kernels = kernels
    try:
        yield
    finally:
        _build.kernels = before


def agreed(call):
    """Return the bytes that `call` returns, which are the same with and without compiled kernels."""
    assert COMPILED is not None, "the kernels were not compiled: is there a compiler?"
    found = []
    for kernels in (COMPILED, None):
        with using(kernels):
            found.append(bytes(call()))
    compiled, numpy = found
    assert compiled == numpy
    return compiled
