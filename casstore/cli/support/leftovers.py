"""How commands describe the leftovers of interrupted or deleted work in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.cli.support.text import human_bytes

if TYPE_CHECKING:
    from casstore.ops.leftovers import Leftovers

__all__ = ["leftovers_text"]


def leftovers_text(left: Leftovers) -> str:
    """Return what there is, with bytes; packs are not known where something is damaged."""
    found = []
    if left.temporaries:
        files = "1 temporary file" if left.temporaries == 1 else f"{left.temporaries} temporary files"
        found.append(f"{files} ({human_bytes(left.bytes_temporaries)})")
    if left.packs:
        packs = "1 pack" if left.packs == 1 else f"{left.packs} packs"
        found.append(f"{packs} that no ref needs ({human_bytes(left.bytes_packs)})")
    if not left.complete:
        found.append("packs that cannot be told from needed ones: run casstore check")
    return " and ".join(found) or "nothing"
