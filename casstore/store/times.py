"""Times: nanoseconds since 1970 as they are stored, `datetime` in front of people."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EARLIEST = datetime.min.replace(tzinfo=timezone.utc)
_LATEST = datetime.max.replace(tzinfo=timezone.utc)


def utc(nanoseconds: int) -> datetime:
    """Return nanoseconds since 1970 as a time in UTC: the nearest that there is, since a clock may claim any."""
    try:
        return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:
        return (
            _LATEST if nanoseconds > 0 else _EARLIEST
        )  # Shown instead: it is the writer's clock that is wrong.


def nanoseconds(time: datetime) -> int:
    """Return a time as nanoseconds since 1970; one without a time zone is local, as in the standard library."""
    return (time.astimezone(timezone.utc) - _EPOCH) // timedelta(microseconds=1) * 1000
