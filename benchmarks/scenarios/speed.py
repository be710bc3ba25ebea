"""The metrics that adding and restoring share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.harness import Metric

if TYPE_CHECKING:
    from benchmarks.harness import Sample

SPEED = Metric("throughput", "MB/s", "higher")
DURABLE_SPEED = Metric("until durable", "MB/s", "higher")
CPU = Metric("processor", "s/GB", "lower")
PEAK = Metric("peak RSS", "MB", "lower")


def sample(size: int, answer: dict[str, Any]) -> Sample:
    """Return the figures of one run over `size` plain bytes."""
    megabytes = size / 1e6
    return {
        SPEED: megabytes / answer["seconds"],
        DURABLE_SPEED: megabytes / (answer["seconds"] + answer["sync_seconds"]),
        CPU: answer["cpu_seconds"] / (size / 1e9),
        PEAK: answer["rss_peak"] / 1e6,
    }
