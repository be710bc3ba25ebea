"""The tools that casstore is compared with: one adapter each, all of the same protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers.borg import Borg, BorgBatch
from benchmarks.peers.casstore_cli import CasstoreCli
from benchmarks.peers.casstore_library import CasstoreLibrary
from benchmarks.peers.hf_xet import HfXet
from benchmarks.peers.lmzip import Lmzip
from benchmarks.peers.plain_copy import PlainCopy
from benchmarks.peers.reminis import Reminis
from benchmarks.peers.restic import Restic, ResticBatch
from benchmarks.peers.zipnn import Zipnn
from benchmarks.peers.zstd_files import ZstdFiles

if TYPE_CHECKING:
    from benchmarks.peers.base import Collector, Peer

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        CasstoreLibrary,
        CasstoreCli,
        HfXet,
        Restic,
        ResticBatch,
        Borg,
        BorgBatch,
        Reminis,
        ZstdFiles,
        Zipnn,
        Lmzip,
        PlainCopy,
    )
}

COLLECTORS: dict[str, type[Collector]] = {
    peer.name: peer for peer in (CasstoreLibrary, CasstoreCli, Restic, Borg, PlainCopy)
}
"""Those that can forget single models. In one snapshot or archive for all of them, they cannot."""
