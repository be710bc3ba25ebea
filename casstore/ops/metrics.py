"""The numbers in the result of an evaluation, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["metrics_of"]


def metrics_of(result: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the numbers in a result, those of inner maps as "latency.avg", in its order."""
    return dict(_numbers(result, ()))


def _numbers(value: Any, place: tuple[str, ...]) -> Iterator[tuple[str, int | float]]:
    if isinstance(value, dict):
        # Olive keeps a metric as a map of its value and of how it is ranked, all of them below "signal".
        if isinstance(value.get("value"), (int, float)):
            yield ".".join(place) or "value", value["value"]
            return
        for key, item in value.items():
            yield from _numbers(item, (*place, str(key)) if place or key != "signal" else ())
    elif isinstance(value, (int, float)):
        yield ".".join(place), value
