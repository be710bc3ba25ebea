"""Garbage collection: plans what a store can forget, and removes it, safely beside writers and other collectors."""

from __future__ import annotations

from casstore.ops.gc.execution import GcReport, execute_gc
from casstore.ops.gc.plan import GcPlan, PlanItem, plan_gc
from casstore.ops.gc.policy import GcPolicy

__all__ = ["GcPlan", "GcPolicy", "GcReport", "PlanItem", "execute_gc", "plan_gc"]
