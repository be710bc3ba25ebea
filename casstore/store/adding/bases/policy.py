"""When a delta is written: the options of a store, and what each allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from casstore.errors import ConfigError
from casstore.format.rows import MAX_RANK, RANK_STEP

DeltaOption = Literal["off", "balanced", "max"]


@dataclass(frozen=True, slots=True)
class DeltaPolicy:
    """What may become a delta. Sizes are in bytes, ranks those of frames.

    A delta is kept if it has at most `keep` of the bytes of the best plain encoding. Bases rank at most `base_rank`, so that
    a read decodes few chunks for one. For each delta below it, a candidate must be smaller by the factor `depth_cost`.
    `whole` is the largest tensor that may be read whole for each of a few chunks, as its transpose needs.
    """

    keep: float
    base_rank: int
    depth_cost: float
    whole: int

    def allows(self, rank: int | None) -> bool:
        """Say whether a frame of this rank may be a base; None is the rank of what is missing."""
        return rank is not None and rank <= self.base_rank


_POLICIES = {
    "balanced": DeltaPolicy(keep=0.9, base_rank=RANK_STEP, depth_cost=1.25, whole=16 << 20),
    "max": DeltaPolicy(keep=0.98, base_rank=MAX_RANK - RANK_STEP, depth_cost=1.02, whole=64 << 20),
}


def delta_policy(option: str) -> DeltaPolicy | None:
    """Return what an option means, None for "off"; raise ConfigError for one that does not exist."""
    if option != "off" and option not in _POLICIES:
        raise ConfigError(f"delta={option!r} is none of off, balanced and max.")
    return _POLICIES.get(option)
