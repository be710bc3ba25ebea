from __future__ import annotations

import re
from pathlib import Path

import pytest

from casstore.backend.fsspec.drivers import DRIVERS, driver_for
from casstore.backend.fsspec.drivers.driver import COMMON_ERRORS, Driver

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_each_protocol_has_one_driver():
    protocols = [protocol for driver in DRIVERS for protocol in driver.protocols]
    assert len(protocols) == len(set(protocols))
    assert all(driver_for(protocol) in DRIVERS for protocol in protocols)
    assert driver_for("made-up") is Driver


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_a_driver_says_holds_together(driver):
    assert driver.errors.items() >= COMMON_ERRORS.items()
    if driver.is_bucket:
        assert driver.puts_whole_objects
        assert not driver.may_be_locked_by_others
        assert driver.anchor("bucket/some/store") == "bucket"
    if driver.extra is not None:
        assert re.search(rf"^{driver.extra} = \[", PYPROJECT.read_text(), re.MULTILINE)
