"""The verbs of `Store` that look after what one store holds: verify it, measure it, free what nothing needs.

Each imports its work when it is called: most programs start faster without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.store.model_store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsspec import Callback

    from casstore.ops.check import CheckReport
    from casstore.ops.du import Usage
    from casstore.ops.gc import GcPolicy, GcReport
    from casstore.ops.leftovers import Leftovers
    from casstore.ops.stats import StoreStats

__all__ = ["MaintainedStore"]


class MaintainedStore(ModelStore):
    """A store of models, and the upkeep of it."""

    def check(
        self,
        *,
        read_data: bool | float = False,
        bandwidth_limit: float | None = None,
        callback: Callback | None = None,
    ) -> CheckReport:
        """Verify every record, index segment and footer, and that each model's objects are there. Changes nothing.

        With `read_data`, every byte of every pack is read, hashed and decoded as well. With a share, 0.05 for a
        twentieth of the stored bytes, those packs are read that this machine has not read for the longest time, so that
        repeated checks go through all of them. `bandwidth_limit` is in bytes per second, `callback` counts the bytes of
        packs. Problems are in the report: look at its `ok`. Raises ConfigError for what is no share, BackendError only if
        the store cannot be listed.
        """
        from casstore.ops.check import check  # noqa: PLC0415 - see the top of this file

        return check(self, read_data=read_data, bandwidth_limit=bandwidth_limit, callback=callback)

    def stats(self) -> StoreStats:
        """Measure what the store holds, how much space it takes, and what a collection would free."""
        from casstore.ops.stats import measure  # noqa: PLC0415 - see the top of this file

        return measure(self)

    def leftovers(self) -> Leftovers:
        """Return how much interrupted and deleted work takes."""
        from casstore.ops.leftovers import find_leftovers  # noqa: PLC0415 - see the top of this file

        return find_leftovers(self)

    def du(self, *prefixes: str, depth: int | None = None) -> Usage:
        """Say where the bytes are: by ref, what it takes alone and shared, and what removing it would free.

        Only refs whose names start with one of `prefixes`, if there are any; what other refs share with them counts as
        shared. With `depth`, a row is for all refs whose names agree in so many parts: `depth=1` for the namespaces.
        Raises RefNotFound for a prefix with which no name starts.
        """
        from casstore.ops.du import du  # noqa: PLC0415 - see the top of this file

        return du(self, prefixes, depth=depth)

    def gc(
        self,
        policy: GcPolicy | None = None,
        *,
        dry_run: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> GcReport:
        """Free what no ref reaches, and what `policy` says; safe while others add to this store or collect it.

        With `dry_run`, nothing is changed, and the report's `bytes_freed` say what would go. `tell` is given a
        sentence when other writers are waited for. `plan_gc` and `execute_gc` do the same in two steps. Raises an
        IntegrityError, naming the ref, for anything that cannot be read, BackendError for a store that fails, and
        ConfigError for a policy by last use or size on a store that is not private; what is left then goes with the
        next collection.
        """
        from casstore.ops.gc import GcReport, execute_gc, plan_gc  # noqa: PLC0415 - see the top of this file

        plan = plan_gc(self, policy)
        if dry_run:
            return GcReport(
                bytes_freed=plan.bytes_freed,
                refs_deleted=list(plan.refs),
                missing=dict(plan.missing),
                problems=list(plan.problems),
                notes=list(plan.notes),
            )
        return execute_gc(self, plan, tell=tell)
