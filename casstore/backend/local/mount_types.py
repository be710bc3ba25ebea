"""What a file system's type, as mount(8) names it, says about other writers and how soon their writes are seen."""

from __future__ import annotations

# One kernel owns these, so its flock sees every writer. Any other type, above all network and FUSE file systems, may be
# written by a machine whose locks are not seen here.
_ONE_KERNEL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs", "tmpfs", "ramfs", "overlay"}
)

_NETWORK = frozenset(
    {
        "9p", "acfs", "afs", "afpfs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs", "gfs2", "glusterfs",
        "gpfs", "lustre", "mmfs", "ncpfs", "nfs", "nfs3", "nfs4", "nfsd", "ocfs2", "orangefs", "panfs", "prl_fs",
        "pvfs2", "quobyte", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "webdav", "weka", "wekafs",
    }
)  # fmt: skip


def is_one_kernels(kind: str | None) -> bool:
    """Say whether one kernel sees every lock on a file system of this type; None means unknown."""
    return kind in _ONE_KERNEL


def is_network(kind: str | None) -> bool:
    """Say whether other machines may write there, behind caches and without shared memory maps.

    FUSE counts, except for block devices (NTFS): what is behind it is unknown.
    """
    return kind is not None and (kind in _NETWORK or kind == "fuse" or kind.startswith("fuse."))
