"""Reads many objects of which some may be damaged or gone: returns the rest, and an error for each bad one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casstore.errors import CasstoreError


def read_whole(
    read_many: Callable[[Sequence[bytes]], list[bytes]], ids: Sequence[bytes]
) -> tuple[dict[bytes, bytes], dict[bytes, CasstoreError]]:
    """Return the plain bytes of those objects that can be read, by id, and why the others cannot.

    All are read at once if they are whole; else by halves, so that a few bad ones among many cost little.
    Raises BackendError for a store that fails (invariant 8).
    """
    if not ids:
        return {}, {}
    try:
        return dict(zip(ids, read_many(ids), strict=True)), {}
    except IntegrityError as error:
        # Invariant 11: no error is lost: once a single object is left, the error is returned for it.
        if len(ids) == 1:
            return {}, {ids[0]: error}
    middle = len(ids) // 2
    found, damaged = read_whole(read_many, ids[:middle])
    more, others = read_whole(read_many, ids[middle:])
    return {**found, **more}, {**damaged, **others}
