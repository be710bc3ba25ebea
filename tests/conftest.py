"""What every test gets: a home of its own, and hypothesis profiles."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import platformdirs
import pytest
from fakes.counts import EXAMPLES

pytest_plugins = ["servers.fixtures"]

hypothesis.settings.register_profile("casstore", deadline=None, max_examples=EXAMPLES, print_blob=True)
hypothesis.settings.load_profile("casstore")


MAX_WORKERS = 4  # each starts servers of its own
BYTE_CODE = Path(platformdirs.user_cache_dir("casstore-tests")) / "byte-code"


def pytest_xdist_auto_num_workers(config):
    """Use the processors for a run of all tests; whoever names files or folders gets one process, or asks by -n."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS) if everything else 0


def pytest_collection_modifyitems(items):
    """Start with the longest step: begun at the end, it would leave the other processors without work."""
    items.sort(key=lambda item: "smoke" not in item.fixturenames)


@pytest.fixture(scope="session", autouse=True)
def byte_code():
    """Let the processes that tests start find what earlier ones compiled, where Python is told to keep no byte code.

    Return the folder, which is the user's: the next run of the tests finds it too.
    """
    with pytest.MonkeyPatch.context() as patch:
        if sys.dont_write_bytecode:
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(BYTE_CODE))
        yield BYTE_CODE


@contextmanager
def home_in(folder):
    """Let machine state, the default store and caches be in this folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name, part in {
            "HOME": "",
            "XDG_CACHE_HOME": "cache",
            "XDG_DATA_HOME": "data",
            "XDG_CONFIG_HOME": "config",
            "XDG_STATE_HOME": "state",
        }.items():
            patch.setenv(name, str(folder / part))
        patch.delenv("CASSTORE_STORE", raising=False)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def homes(tmp_path_factory):
    """Return the folder of all homes; what modules and the session set up has one of its own, not the user's."""
    folder = tmp_path_factory.mktemp("homes")
    (folder / "session").mkdir()
    with home_in(folder / "session"):
        yield folder


_numbers = itertools.count()


@pytest.fixture(autouse=True)
def own_home(homes):
    """Machine state, default store and caches of a test stay in its own directory."""
    # Not by tmp_path_factory, which looks at all earlier ones to find a number.
    folder = homes / str(next(_numbers))
    folder.mkdir()
    with home_in(folder):
        yield folder
    shutil.rmtree(folder, ignore_errors=True)
