"""What a collection removes, and for how long it leaves things alone."""

from __future__ import annotations

from dataclasses import dataclass

from casstore.errors import ConfigError

HOUR = 3600.0
DAY = 24 * HOUR
WEEK = 7 * DAY
"""Seconds for which tombstones stay after their packs went, and records after a newer one or a deletion replaced them."""

KEPT_ELDERS = 32
"""Replaced records of each ref that are never trimmed: sync compares them to see which store is ahead."""

MAX_SKEW = 300.0
"""Seconds by which this machine's clock and the storage's may differ."""


@dataclass(frozen=True, slots=True)
class GcPolicy:
    """What goes beside objects that no ref reaches. All times are in seconds.

    `keep_last` values of each ref are kept, the current one included. Refs below `models/` go whose record is older than
    `older_than`, or whose model nobody has written or used for `unused_for`; what only they needed goes with the next
    collection. Cache entries go, and what they needed with them, until packs, index and records take `max_size` bytes at
    most. Refs of models that a tag or a pin names, and those that a running pipeline uses, never go. `unused_for` and
    `max_size` need a store that is private to this machine. With `orphans_now`, packs that no ref needs and temporary files go however
    young they are. Where writers may work without the publishers' lock, `grace` is the age of a pack before it is
    condemned, and of a tombstone before its packs go, and values that were replaced stay readable for
    `superseded`. A pack is rewritten if less than the share `repack` of it is needed; 0 never rewrites one.
    """

    keep_last: int = 1
    older_than: float | None = None
    unused_for: float | None = None
    max_size: int | None = None
    orphans_now: bool = False
    grace: float = DAY
    superseded: float = WEEK
    repack: float = 0.5

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ConfigError(f"Cannot keep the last {self.keep_last} values of a ref: give 1 or more.")
        if not 0 <= self.repack <= 1:
            raise ConfigError(f"The share of a pack that must be needed is 0 to 1, not {self.repack}.")
        if min(self.grace, self.superseded, self.older_than or 0, self.unused_for or 0) < 0:
            raise ConfigError("An age must not be negative.")
        if self.max_size is not None and self.max_size < 0:
            raise ConfigError(f"A store cannot take {self.max_size} bytes at most: give 0 or more.")

    @property
    def deletes_refs(self) -> bool:
        """Whether refs may go."""
        return not (self.older_than is None and self.unused_for is None and self.max_size is None)

    @property
    def needs_private(self) -> str:
        """What needs a store that is private to this machine, "" for nothing."""
        if self.max_size is not None:
            return "Making a store fit a size"
        return "" if self.unused_for is None else "Deleting what was not used for long"
