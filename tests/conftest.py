"""What every test gets: a home of its own, and hypothesis profiles."""

from __future__ import annotations

import os

import hypothesis
import pytest
from fakes.counts import EXAMPLES

pytest_plugins = ["servers.fixtures"]

hypothesis.settings.register_profile("casstore", deadline=None, max_examples=EXAMPLES, print_blob=True)
hypothesis.settings.load_profile("casstore")


MAX_WORKERS = 4  # each starts servers of its own


def pytest_xdist_auto_num_workers(config):
    """Use the processors for a run of all tests; whoever names files or folders gets one process, or asks by -n."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS) if everything else 0


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """Machine state, default store and caches of a test stay in its own directory."""
    home = tmp_path_factory.mktemp("home")
    for name, folder in {
        "HOME": "",
        "XDG_CACHE_HOME": "cache",
        "XDG_DATA_HOME": "data",
        "XDG_CONFIG_HOME": "config",
    }.items():
        monkeypatch.setenv(name, str(home / folder))
    monkeypatch.delenv("CASSTORE_STORE", raising=False)
    return home
