"""microsoft/Olive on casstore: `install()` puts casstore's classes where Olive looks for its own.

    from casstore.integrations.olive import install
    install()
    # … then use Olive as usual

or, without changing a line: `python -m casstore.integrations.olive -- olive run --config workflow.json`.
"""

from __future__ import annotations

from casstore.integrations.olive.install import install

__all__ = ["install"]
