"""A pipeline's use of a shared store: reads and writes through it, and goes on without it if it fails."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, TypeVar

from casstore.errors import CasstoreError, ConflictError, IntegrityError, RefNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casstore.api.store import Store
    from casstore.cache.shared.store import SharedStore
    from casstore.format.record import Record

_log = logging.getLogger("casstore.cache")
_T = TypeVar("_T")

PAUSE_SECONDS = 300.0
"""Seconds for which a shared store that failed is not used: every request would wait for its time-outs."""


class Sharing:
    """The shared store, if there is one, beside one local store. A failure is logged, and counts as an empty answer.

    `update` writes to it; otherwise it is only read.
    """

    def __init__(
        self,
        shared: SharedStore | None,
        local: Store,
        *,
        update: bool,
        fetched: Callable[[int], None],
    ) -> None:
        """`fetched(bytes)` is called for what came from the shared store."""
        self.shared = shared
        self._fetched = fetched
        self.local = local
        self._update = update
        self._retry_at = 0.0
        self._owed: dict[str, None] = {}

    def push(self, refs: Sequence[str]) -> None:
        """Copy refs to the shared store, and what it lacks of their objects.

        Another result that is there under the same name is kept beside ours, with a warning: the newest one
        counts. What could not be copied is tried again after the next push that works.
        """
        if self.shared is None or not self._update:
            return
        if not self._send(refs):
            self._owed.update(dict.fromkeys(refs))
            return
        for ref in list(self._owed):
            # It may have been deleted since; and damaged refs must not be retried for ever or block the others.
            self._owed.pop(ref, None)
            if not self._send([ref], if_here=True) and self._is_pausing():
                self._owed[ref] = None
                break

    def _send(self, refs: Sequence[str], *, if_here: bool = False) -> bool:
        def copy(shared: SharedStore) -> bool:
            if if_here and self.local.record(refs[0]) is None:
                return True
            differing = shared.store(self.local, refs).conflicts
            for item in differing:
                _log.warning(
                    "%s of %s is %s there and %s here. Both are kept; the one from here counts.",
                    item.name, shared.url, item.dst_target[:16] or "something else", item.src_target[:16],
                )  # fmt: skip
            if differing:
                shared.store(self.local, [item.name for item in differing], overwrite=True)
            return True

        return bool(self.ask(f"store {', '.join(refs)}", copy))

    def pull(self, ref: str) -> bool:
        """Copy a ref from the shared store with the objects that are missing here; say whether it is there."""

        def copy(shared: SharedStore) -> bool:
            if not shared.exists(ref):
                return False
            # Only called when the local ref of this name is of no use.
            self.retrieve(shared, ref, overwrite=True)
            return True

        return bool(self.ask(f"return {ref}", copy))

    def retrieve(self, shared: SharedStore, ref: str, *, overwrite: bool) -> None:
        """Copy a ref from the shared store as it does; raises what it raises."""
        report = shared.retrieve(self.local, [ref], overwrite=overwrite)
        self._fetched(report.bytes_written)

    def record(self, ref: str) -> Record | None:
        """Return the record of a ref in the shared store, None if there is none."""
        return self.ask(f"look up {ref}", lambda shared: shared.record(ref))

    def holds(self, ref: str, model_id: bytes | None) -> bool:
        """Say whether every object of a model that a ref is, or was, is in the shared store."""
        return bool(self.ask(f"look up {ref}", lambda shared: shared.holds(ref, model_id)))

    def ask(self, doing: str, question: Callable[[SharedStore], _T]) -> _T | None:
        """Return the answer of the shared store; None where there is none, or it fails to do what `doing` says."""
        if self.shared is None or self._is_pausing():
            return None
        try:
            return question(self.shared)
        except IntegrityError as error:
            # Invariant 11: damage to one item, there or here, does not affect the others.
            _log.error("%s could not %s because it is damaged: %s", self.shared.url, doing, error)
        except (ConflictError, RefNotFound) as error:
            # Invariant 11: nor does an item that another machine has just moved or removed.
            _log.warning("%s could not %s: %s", self.shared.url, doing, error)
        except (CasstoreError, OSError) as error:
            # Invariant 11: only the pipeline's cache may do this; the failure is logged, never silent.
            self._retry_at = time.monotonic() + PAUSE_SECONDS
            _log.warning(
                "%s could not %s, so it is not used for %d s: %s",
                self.shared.url, doing, PAUSE_SECONDS, error,
            )  # fmt: skip
        return None

    def _is_pausing(self) -> bool:
        return time.monotonic() < self._retry_at
