"""The emulated wire of the sync benchmark: as fast, as late and as full as it is told."""

from __future__ import annotations

import os
import struct

import pytest

from benchmarks.network.relay import Way, measure

IP, TCP = 20, 32


def _packet(payload, *, segment=0, protocol=6):
    offload = struct.pack("<BBHHHH", 0, 1 if segment else 0, IP + TCP, segment, 0, 0)
    ip = bytearray(IP)
    ip[0], ip[9] = 0x45, protocol
    tcp = bytearray(TCP)
    tcp[12] = (TCP // 4) << 4
    return offload + bytes(ip + tcp) + bytes(payload)


@pytest.fixture
def way():
    ends = [
        os.pipe2(os.O_DIRECT | os.O_NONBLOCK) for _ in range(2)
    ]  # what is written at once is read at once
    (source, feed), (result, target) = ends
    yield Way(source, target, seconds_per_byte=0.001, delay=10.0), feed, result
    for descriptor in (source, feed, result, target):
        os.close(descriptor)


def _arrived(result):
    found = 0
    while True:
        try:
            os.read(result, 1 << 17)
        except BlockingIOError:
            return found
        found += 1


def test_a_large_packet_counts_as_those_that_a_wire_would_carry():
    assert measure(_packet(1000)) == (1000 + IP + TCP + 14, 1000, 1)
    assert measure(_packet(3001, segment=1000)) == (3001 + 4 * (IP + TCP + 14), 3001, 4)
    assert measure(_packet(1000, protocol=17)) == (1000 + IP + TCP + 14, 0, 1)


def test_packets_leave_one_after_another_and_arrive_late(way):
    way, feed, result = way
    for _ in range(3):
        os.write(feed, _packet(934))  # 1,000 bytes on the wire: one second each
    way.take(now=100.0)
    for now, arrived in ((110.9, 0), (111.1, 1), (112.9, 1), (113.1, 1)):
        way.deliver(now)
        assert _arrived(result) == arrived
    assert (way.traffic.wire, way.traffic.payload, way.traffic.packets) == (3000, 3 * 934, 3)


def test_what_would_wait_too_long_is_dropped(way):
    way, feed, _ = way
    for _ in range(150):
        os.write(feed, _packet(934))
        way.take(now=0.0)
    assert way.traffic.packets == 101  # the last one waits for ten delays
    assert way.traffic.dropped == 49
