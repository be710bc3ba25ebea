"""The tools that casstore is compared with: one adapter each, all of the same protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers.casstore_library import CasstoreLibrary
from benchmarks.peers.hf_xet import HfXet
from benchmarks.peers.plain_copy import PlainCopy

if TYPE_CHECKING:
    from benchmarks.peers.base import Peer

PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (CasstoreLibrary, HfXet, PlainCopy)}
