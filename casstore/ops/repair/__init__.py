"""Repair: make a store whole from its own packs and from other stores. README.md beside this file gives the rules."""

from __future__ import annotations

from casstore.ops.repair.execution import repair
from casstore.ops.repair.report import Health, RecordRepair, RefHealth, RepairReport

__all__ = ["Health", "RecordRepair", "RefHealth", "RepairReport", "repair"]
