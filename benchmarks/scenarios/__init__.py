"""What is measured: each scenario is a function of a harness that returns measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.scenarios import (
    add,
    concurrent,
    cuts,
    deltas,
    gc,
    growth,
    memory,
    one_more,
    read_tensor,
    refs,
    restore,
    serve,
    size,
    startup,
    sync,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Harness, Measurement

SCENARIOS: dict[str, Callable[[Harness], list[Measurement]]] = {
    "size": size.run,
    "deltas": deltas.run,
    "add": add.cold,
    "add-again": add.again,
    "one-more": one_more.run,
    "restore": restore.run,
    "read-tensor": read_tensor.run,
    "gc": gc.run,
    "concurrent": concurrent.run,
    "sync": sync.run,
    "serve": serve.run,
    "memory": memory.run,
    "refs": refs.run,
    "growth": growth.run,
    "startup": startup.run,
    "cuts": cuts.run,
}
