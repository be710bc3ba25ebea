"""The wire of an emulated network: a process that hands packets from one TUN device to another, late and no faster than it may.

`python -m benchmarks.network.relay '{"links": [["left", "right"], …], "bits_per_s": …, "delay_s": …}'`

What `tc netem rate … delay …` does, for systems whose kernel lacks it: a packet leaves once all before it have, each
at the link's rate, and arrives `delay_s` later. What does not fit into a queue of five bandwidth-delay products is dropped, as by a
router. The devices take segmentation offload: the kernel hands over up to
16 KiB at once, which is charged as the packets of 1500 bytes that a wire would carry. Each line read from
standard input is answered with a line of JSON: what went over each link so far.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TUN_NO_PACKET_INFORMATION_WITH_HEADER = 0x0001 | 0x1000 | 0x4000
_CHECKSUM_AND_TCP_SEGMENTATION = 0x01 | 0x02 | 0x04
_OFFLOAD_HEADER = struct.Struct("<BBHHHH")
"""virtio_net_hdr: flags, segmentation type, header length, segment size, where the checksum is."""

_LARGEST = 1 << 17
_PATIENCE = 10
"""How long a packet may wait to leave, in delays of the link: what waits longer is dropped."""

_TICK = 0.001
"""Packets that come within so many seconds are handed over together: else the wire itself takes half a processor."""

_ETHERNET = 14
_TCP = 6


@dataclass(slots=True)
class Traffic:
    """What went one way: bytes as on a wire, bytes of TCP streams alone, packets, packets that were dropped."""

    wire: int = 0
    payload: int = 0
    packets: int = 0
    dropped: int = 0


@dataclass(slots=True)
class Way:
    """One direction of a link."""

    source: int
    target: int
    seconds_per_byte: float
    delay: float
    traffic: Traffic = field(default_factory=Traffic)
    free_at: float = 0.0
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, now: float) -> None:
        """Read every packet that waits, and say when each arrives."""
        while True:
            try:
                packet = os.read(self.source, _LARGEST)
            except BlockingIOError:
                return
            wire, payload, packets = measure(packet)
            starts = max(now, self.free_at)
            if starts - now > _PATIENCE * self.delay:
                self.traffic.dropped += packets
                continue
            self.free_at = starts + wire * self.seconds_per_byte
            self.under_way.append((self.free_at + self.delay, packet))
            self.traffic.wire += wire
            self.traffic.payload += payload
            self.traffic.packets += packets

    def deliver(self, now: float) -> None:
        """Hand over what has arrived."""
        while self.under_way and self.under_way[0][0] <= now:
            # A device that is down, as all are at first, takes nothing: the packet is lost, as on a wire.
            with suppress(OSError):
                os.write(self.target, self.under_way.popleft()[1])


def measure(packet: bytes) -> tuple[int, int, int]:
    """Return bytes on the wire, bytes of TCP payload, and how many packets a wire would carry."""
    _, segmented, _, segment, _, _ = _OFFLOAD_HEADER.unpack_from(packet)
    at = _OFFLOAD_HEADER.size
    size = len(packet) - at
    if packet[at] >> 4 != 4 or packet[at + 9] != _TCP:
        return size + _ETHERNET, 0, 1
    header = (packet[at] & 15) * 4
    header += (packet[at + header + 12] >> 4) * 4
    payload = size - header
    packets = -(-payload // segment) if segmented else 1
    return payload + packets * (header + _ETHERNET), payload, packets


def _device(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", name.encode(), _TUN_NO_PACKET_INFORMATION_WITH_HEADER)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _CHECKSUM_AND_TCP_SEGMENTATION)
    return descriptor


def _forward(ways: list[Way], names: list[str]) -> None:
    by_source = {way.source: way for way in ways}
    while True:
        due = min((way.under_way[0][0] for way in ways if way.under_way), default=None)
        patience = None if due is None else max(0.0, due - time.monotonic())
        readable, _, _ = select.select([*by_source, 0], [], [], patience)
        time.sleep(_TICK)
        now = time.monotonic()
        for source in readable:
            if source in by_source:
                by_source[source].take(now)
            elif not sys.stdin.readline():
                return
            else:
                found = {name: asdict(way.traffic) for name, way in zip(names, ways, strict=True)}
                print(json.dumps(found), flush=True)
        for way in ways:
            way.deliver(now)


def main() -> None:
    given = json.loads(sys.argv[1])
    ways, names = [], []
    for left, right in given["links"]:
        ends = {name: _device(name) for name in (left, right)}
        for source, target in ((left, right), (right, left)):
            ways.append(Way(ends[source], ends[target], 8 / given["bits_per_s"], given["delay_s"]))
            names.append(source)
    print(json.dumps("ready"), flush=True)
    _forward(ways, names)


if __name__ == "__main__":
    main()
