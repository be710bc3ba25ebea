"""A pipeline's use of the shared cache: reads and writes through it, and goes on without it if it fails."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, TypeVar

from casstore.cache.model_cache import model_ref
from casstore.cache.transfer import ModelFileTransfer
from casstore.errors import CasstoreError, ConflictError, IntegrityError, RefNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casstore.api.store import Store
    from casstore.cache.model_cache import ModelCacheManager
    from casstore.cache.shared_cache import SharedCache
    from casstore.format.record import Record
    from casstore.format.run import RunManifest

_log = logging.getLogger("casstore.cache")
_T = TypeVar("_T")

PAUSE_SECONDS = 300.0
"""Seconds for which a shared cache that failed is not used: every request would wait for its time-outs."""


class Sharing:
    """The shared cache beside one local store. A failure is logged, and counts as an empty answer.

    `update` writes to it; otherwise it is only read.
    """

    def __init__(self, shared: SharedCache, local: Store, *, update: bool) -> None:
        self.shared = shared
        self._local = local
        self._update = update
        self._retry_at = 0.0
        self._owed: dict[str, None] = {}

    def push(self, refs: Sequence[str]) -> None:
        """Copy refs to the shared cache, and what it lacks of their objects.

        Another result that is there under the same name is kept beside ours, with a warning: the newest one
        counts. What could not be copied is tried again after the next push that works.
        """
        if not self._update:
            return
        if not self._give(refs):
            self._owed.update(dict.fromkeys(refs))
            return
        for ref in list(self._owed):
            # It may have been deleted since; and damaged refs must not be retried for ever or block the others.
            self._owed.pop(ref, None)
            if not self._give([ref], if_here=True) and self._pausing():
                self._owed[ref] = None
                break

    def _give(self, refs: Sequence[str], *, if_here: bool = False) -> bool:
        def copy() -> bool:
            if if_here and self._local.record(refs[0]) is None:
                return True
            differing = self.shared.store(self._local, refs).conflicts
            for item in differing:
                _log.warning(
                    "%s of %s is %s there and %s here. Both are kept; the one from here counts.",
                    item.name, self.shared.url, item.dst_target[:16] or "something else", item.src_target[:16],
                )  # fmt: skip
            if differing:
                self.shared.store(self._local, [item.name for item in differing], overwrite=True)
            return True

        return bool(self._attempt(f"take {', '.join(refs)}", copy))

    def pull(self, ref: str) -> bool:
        """Copy a ref from the shared cache with the objects that are missing here; say whether it is there."""

        def take() -> bool:
            if not self.shared.exists(ref):
                return False
            # Only called when the local ref of this name is of no use.
            self.shared.retrieve(self._local, [ref], overwrite=True)
            return True

        return bool(self._attempt(f"give {ref}", take))

    def model_record(self, model_id: str) -> Record | None:
        """Return the record of a model in the shared cache, None if there is none."""
        return self._attempt(f"tell of the model {model_id}", lambda: self.shared.record(model_ref(model_id)))

    def holds_output(self, run: RunManifest) -> bool:
        """Say whether every object of what a run made is in the shared cache."""

        def look() -> bool:
            remote = self.shared.existing()
            if remote is None:
                return False
            records = [item for item in remote.history(model_ref(run.name)) if item.target == run.output]
            return bool(records) and not remote.lacks(records[-1])

        return bool(self._attempt(f"tell of the model {run.name}", look))

    def future_config(self, models: ModelCacheManager, model_id: str) -> dict[str, Any] | None:
        """Return the config of a model that only the shared cache has, `{}` for a failed pass, None if it has none."""

        def read() -> dict[str, Any] | None:
            record = self.shared.record(model_ref(model_id))
            if record is None:
                return None
            return models.future_config(ModelFileTransfer(self.shared.remote), record)

        return self._attempt(f"tell of the model {model_id}", read)

    def _pausing(self) -> bool:
        return time.monotonic() < self._retry_at

    def _attempt(self, doing: str, action: Callable[[], _T]) -> _T | None:
        if self._pausing():
            return None
        try:
            return action()
        except IntegrityError as error:
            # Invariant 11: damage to one item, there or here, does not affect the others.
            _log.error(
                "%s could not %s because it is damaged: %s", self.shared.url, doing, error
            )  # for people
            return None
        except (ConflictError, RefNotFound) as error:
            # Invariant 11: nor does an item that another machine has just moved or removed.
            _log.warning("%s could not %s: %s", self.shared.url, doing, error)
            return None
        except (CasstoreError, OSError) as error:
            # Invariant 11: only the pipeline's cache may do this; the failure is logged, never silent.
            self._retry_at = time.monotonic() + PAUSE_SECONDS
            _log.warning(
                "%s could not %s, so it is not used for %d s: %s",
                self.shared.url, doing, PAUSE_SECONDS, error,
            )  # fmt: skip
            return None
