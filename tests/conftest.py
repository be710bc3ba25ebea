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

if sys.dont_write_bytecode:
    # Where Python is told to keep no byte code, every process of a run would compile all that it imports. Each of
    # them, and each of the next run, finds here what earlier ones compiled.
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(BYTE_CODE)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(BYTE_CODE)


def pytest_xdist_auto_num_workers(config):
    """Use the processors for a run without arguments; whoever names files or folders gets one process, or asks by -n."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS) if everything else 0


def pytest_collection_modifyitems(items):
    """Start with the longest step: begun at the end, it would leave the other processors without work."""
    items.sort(key=lambda item: "smoke" not in item.fixturenames)


@pytest.fixture(scope="session")
def byte_code():
    """Return a folder of the user's for byte code: the next run of the tests finds what this one compiled."""
    return BYTE_CODE


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


@pytest.fixture(scope="session", autouse=True)
def no_power_failure():
    """Let fsync return at once: nothing that this process writes has to survive a power failure.

    What one leaves is tested on a model of a disk (fakes/posix_model.py); processes that tests start do wait for theirs.
    """

    def fsync(file):
        os.fstat(file if isinstance(file, int) else file.fileno())  # which refuses what fsync refuses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "sync", lambda: None)  # the benchmarks', which wait for what all other tests write
        yield


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
