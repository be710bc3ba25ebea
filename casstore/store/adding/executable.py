"""Which executable bits can be believed: some file systems have none, and show one for every file or for none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casstore.store.adding.sources import SourceFile

_KEEPS = frozenset(
    (
        "apfs",
        "bcachefs",
        "btrfs",
        "ceph",
        "ecryptfs",
        "erofs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "gfs2",
        "hfsplus",
        "jfs",
        "lustre",
        "nilfs2",
        "ocfs2",
        "overlay",
        "ramfs",
        "reiserfs",
        "squashfs",
        "tmpfs",
        "ubifs",
        "xfs",
        "zfs",
    )
)
"""Types, as in mount(8), that keep the bit of each file."""

_INVENTS = frozenset(("exfat", "msdos", "vfat"))
"""Types whose bit is decided by mount options or file names."""


def own_bits(files: Sequence[SourceFile], file_system_type: Callable[[str], str | None]) -> dict[str, bool]:
    """Return whether each file is executable, by path; a file whose bit means nothing is left out.

    `file_system_type` names the type of the file system that a path is on. On one that may or may not keep the
    bit (FUSE, 9p, SMB, NTFS, NFS, unknown ones), it is believed where the files of `files` there differ in it.
    """
    by_device: dict[int, list[SourceFile]] = {}
    for file in files:
        by_device.setdefault(file.identity.device, []).append(file)
    own: dict[str, bool] = {}
    for there in by_device.values():
        kind = file_system_type(there[0].location)
        differ = len({file.executable for file in there}) > 1
        if kind in _KEEPS or (differ and kind not in _INVENTS):
            own.update((file.path, file.executable) for file in there)
    return own
