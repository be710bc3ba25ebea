"""What is measured: each scenario is a function of a harness that returns measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.scenarios import add, cuts, memory, restore, startup

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Harness, Measurement

SCENARIOS: dict[str, Callable[[Harness], list[Measurement]]] = {
    "add": add.cold,
    "add-again": add.again,
    "restore": restore.run,
    "memory": memory.run,
    "startup": startup.run,
    "cuts": cuts.run,
}
