"""All fuzz targets by name, and the bounds that every one of them keeps: time by size, and memory."""

from __future__ import annotations

import resource
import sys
import time

from fuzz import delta_operations, stored_values, tensor_files

TARGETS = {**stored_values.TARGETS, **delta_operations.TARGETS, **tensor_files.TARGETS}
"""Name → the function that takes any bytes, and the inputs from which mutation begins."""

SECONDS_PER_MIB = 1.0
MEMORY = 256 << 20


def peak_memory():
    """Return the most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(name, data):
    """Try one input; raise whatever the target raises, and AssertionError beyond a bound.

    The memory is that which this input adds: atheris itself takes more with each.
    """
    fuzz, _ = TARGETS[name]
    before, begun = peak_memory(), time.thread_time()
    fuzz(data)
    seconds = time.thread_time() - begun
    mib = -(-len(data) // (1 << 20))
    assert seconds <= SECONDS_PER_MIB * max(1, mib), f"{seconds:.1f} s for {len(data)} bytes"
    used = peak_memory() - before
    assert used < MEMORY, f"{used >> 20} MiB of memory for {len(data)} bytes"
