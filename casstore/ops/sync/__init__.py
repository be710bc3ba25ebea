"""Sync: plan what one store lacks of another, then copy it. README.md beside this file gives the rules."""

from __future__ import annotations

from casstore.ops.sync.execution import SyncReport, execute
from casstore.ops.sync.planning import RefConflictFound, RefToWrite, SyncPlan, plan_sync

__all__ = ["RefConflictFound", "RefToWrite", "SyncPlan", "SyncReport", "execute", "plan_sync"]
