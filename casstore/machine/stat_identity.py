"""The stat identity of a file: what its file system says of it beside its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os


@dataclass(frozen=True, slots=True)
class StatIdentity:
    """The stat identity of a file: device, inode, size in bytes, and both times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> StatIdentity:
        """Return the identity in a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def packed(self) -> bytes:
        """Return the identity as bytes."""
        return b"%d,%d,%d,%d,%d" % self.fields()

    def fields(self) -> tuple[int, int, int, int, int]:
        """Return the five numbers in the order in which the class takes them."""
        return (self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns)
