"""`python -m casstore` is the command `casstore`."""

from __future__ import annotations

from casstore.cli import main

if __name__ == "__main__":
    main()
