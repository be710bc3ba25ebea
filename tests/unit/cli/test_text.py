"""Numbers, times and names as people read them."""

from __future__ import annotations

import pytest

from casstore.cli.support.text import (
    human_bytes,
    human_duration,
    human_percent,
    human_rate,
    local_time,
    printable,
    utc_time,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**3, "1.0 GiB"),
        (5 * 1024**5, "5.0 PiB"),
        (5000 * 1024**5, "5000.0 PiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_bytes(count, text):
    assert human_bytes(count) == text


def test_rates_and_shares():
    assert human_rate(5_000_000, 2) == "2 MB/s"
    assert human_rate(5, 0) == "- MB/s"
    assert human_duration(0.123) == "0.12 s"
    assert human_duration(12345) == "12,345 s"
    assert human_percent(1, 3) == "33.3%"
    assert human_percent(0, 0) == "-"


def test_times():
    assert utc_time(0) == "1970-01-01T00:00:00Z"
    assert utc_time(1_700_000_000_123_456_789) == "2023-11-14T22:13:20Z"
    assert utc_time(2**63 * 2**40) == str(2**103)
    assert len(local_time(0)) == len("1970-01-01 00:00:00")


def test_printable():
    assert printable("größe [bold] 模型") == "größe [bold] 模型"
    assert printable("a\x1b[31m\r\n\tb") == "a\\x1b[31m\\r\\n\\tb"
    assert printable("\u202efdp.exe") == "\\u202efdp.exe"
    assert printable("\udcff") == "\\udcff"
