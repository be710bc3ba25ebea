"""Network namespaces that stand for machines, each on a shaped link to a server's. Needs Linux, root and iproute2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERVER_ADDRESS = "10.77.0.1"
SERVER = "server"

_ROOT = Path(__file__).parents[2]
_LARGEST_OFFLOAD = "65536"


class NetworkMissing(Exception):
    """Namespaces cannot be made here; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What each link is like, both ways: its rate, and the time that a packet takes there and its answer back."""

    bits_per_s: float = 200e6
    round_trip_s: float = 0.05

    @property
    def bytes_per_s(self) -> float:
        """The rate as storage people count."""
        return self.bits_per_s / 8

    def __str__(self) -> str:
        return f"{self.bits_per_s / 1e6:g} Mbit/s, {self.round_trip_s * 1e3:g} ms"


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes that a machine and the server sent to each other: of TCP streams alone, and with all headers."""

    payload: int
    wire: int

    def since(self, before: Sent) -> Sent:
        """Return what was sent after `before` was taken."""
        return Sent(self.payload - before.payload, self.wire - before.wire)


class Network:
    """Machines by name, each with a link of its own to the server."""

    def __init__(self, prefix: str, machines: Sequence[str], relay: subprocess.Popen[str]) -> None:
        self._prefix = prefix
        self._machines = list(machines)
        self._relay = relay

    def command(self, machine: str) -> list[str]:
        """Return the words that, put before a command, run it on a machine."""
        return ["ip", "netns", "exec", self._prefix + machine]

    def sent(self, machine: str) -> Sent:
        """Return what went over a machine's link so far."""
        found = _ask(self._relay, "\n")
        number = self._machines.index(machine)
        ways = [found[_device(self._prefix, number, side)] for side in "ms"]
        return Sent(sum(way["payload"] for way in ways), sum(way["wire"] for way in ways))


@contextmanager
def network(machines: Sequence[str], shape: Shape) -> Iterator[Network]:
    """Make the namespaces and links, and take them away again; raise NetworkMissing where that cannot be."""
    _check()
    prefix = f"cas{os.getpid()}-"
    with ExitStack() as stack:
        for name in (SERVER, *machines):
            _ip("netns", "add", prefix + name)
            stack.callback(_ip, "netns", "delete", prefix + name)
            _ip("-n", prefix + name, "link", "set", "lo", "up")
        _ip("-n", prefix + SERVER, "address", "add", f"{SERVER_ADDRESS}/32", "dev", "lo")
        links = [[_device(prefix, number, side) for side in "ms"] for number in range(len(machines))]
        relay = stack.enter_context(_running_relay(links, shape))
        for number, (name, (own, other)) in enumerate(zip(machines, links, strict=True), start=1):
            address = f"10.77.{number}.1"
            _attach(prefix + name, own, address, SERVER_ADDRESS)
            _attach(prefix + SERVER, other, SERVER_ADDRESS, address)
        yield Network(prefix, machines, relay)


@contextmanager
def _running_relay(links: list[list[str]], shape: Shape) -> Iterator[subprocess.Popen[str]]:
    given = {"links": links, "bits_per_s": shape.bits_per_s, "delay_s": shape.round_trip_s / 2}
    command = [sys.executable, "-m", "benchmarks.network.relay", json.dumps(given)]
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as relay:
        try:
            _ask(relay, "")
            yield relay
        finally:
            relay.terminate()


def _ask(relay: subprocess.Popen[str], question: str) -> dict[str, dict[str, int]]:
    assert relay.stdin is not None
    assert relay.stdout is not None
    relay.stdin.write(question)
    relay.stdin.flush()
    line = relay.stdout.readline()
    if not line:
        raise NetworkMissing("The relay between the namespaces ended: see what it printed above.")
    answer: dict[str, dict[str, int]] = json.loads(line)
    return answer


def _attach(namespace: str, device: str, address: str, peer: str) -> None:
    _ip("link", "set", device, "netns", namespace)
    inside = ("-n", namespace)
    _ip(*inside, "address", "add", address, "peer", peer, "dev", device)
    _ip(*inside, "link", "set", device, "mtu", "1500", "gso_max_size", _LARGEST_OFFLOAD, "up")
    # Linux's usual congestion control, whatever this machine's is.
    _ip(*inside, "route", "replace", peer, "dev", device, "src", address, "congctl", "cubic")


def _device(prefix: str, number: int, side: str) -> str:
    return f"{prefix}{number}{side}"  # At most 15 characters.


def _check() -> None:
    if shutil.which("ip") is None:
        raise NetworkMissing("`ip` is not installed: apt-get install iproute2")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise NetworkMissing("/dev/net/tun cannot be opened: emulating a network needs Linux and root.")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkMissing(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
