"""Stores that know a file by its stat identity at once, wherever the test's folder lies."""

from functools import partial

from casstore import Store
from casstore.machine.state import MachineState
from casstore.machine.unchanged import UnchangedFiles


def trust_fresh_files(holder: Store | MachineState, *, min_age: int = 0) -> None:
    """Let files count as unchanged from `min_age` nanoseconds on, whatever file system they are on."""
    machine = holder if isinstance(holder, MachineState) else holder.machine
    machine.unchanged_files = partial(UnchangedFiles, min_age=min_age, mark=lambda path: b"test")
