"""File systems that should be mounted on this machine and are not."""

from __future__ import annotations

import os
import re

FSTAB = "/etc/fstab"

_ESCAPED = re.compile(r"\\([0-7]{3})")


def unmounted(path: str, *, fstab: str = FSTAB) -> str | None:
    """Return the mount point that `path` lies on, by fstab(5), if nothing is mounted there; else None."""
    path = os.path.realpath(path)
    try:
        with open(fstab, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return None  # A machine without an fstab mounts its disks in another way.
    for line in lines:
        fields = line.split("#", 1)[0].split()
        if len(fields) < 2 or not fields[1].startswith("/") or fields[1] == "/":
            continue
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[1]).rstrip("/")
        if _is_at(path, point) and not _is_at(_mount_point(path), point):
            return point
    return None


def _is_at(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _mount_point(path: str) -> str:
    while not os.path.ismount(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path
