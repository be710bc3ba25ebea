"""`python -m casstore.integrations.olive -- olive run --config …`: Olive's own command, on casstore."""

from __future__ import annotations

import runpy
import shutil
import sys

from casstore.errors import CasstoreError
from casstore.integrations.olive.install import install

_USAGE = (
    "usage: python -m casstore.integrations.olive -- olive COMMAND …   (or a Python script instead of olive)"
)


def main(arguments: list[str]) -> int:
    """Run a command of Olive, or a script that uses it; return the exit code."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command or command[0] in ("-h", "--help"):
        sys.stdout.write(f"{_USAGE}\n")
        return 0 if command else 2
    try:
        install()
    except CasstoreError as error:
        # Invariant 11: without Olive there is nothing to run; the error is one line.
        sys.stderr.write(f"{error}\n")
        return 1
    sys.argv = list(command)
    if command[0] == "olive":
        runpy.run_module("olive", run_name="__main__", alter_sys=False)
    else:
        runpy.run_path(shutil.which(command[0]) or command[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
