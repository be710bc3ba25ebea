"""Where a cache lies: with and without a home directory, with names of every kind."""

import os
import subprocess
import sys

import pytest

from casstore import OliveCache, Store


def test_the_home_folder_may_be_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with OliveCache("~/cache") as cache:
        assert cache.dirs.cache_dir == (tmp_path / "cache").resolve()


NOBODY = """
import os, pwd, sys
def nobody(*_):
    raise KeyError("no such user")

pwd.getpwuid = pwd.getpwnam = nobody
os.environ.pop("HOME", None)
from casstore import OliveCache, SharedCache
from pathlib import Path

def make(model, output):
    (output / "o.bin").write_bytes(b"x")

here = Path(sys.argv[1])
(here / "in.bin").write_bytes(b"x")
for place in (str(here / "cache"), "~/cache"):
    with OliveCache({"cache_dir": [place, (here / "shared").as_uri()]}) as cache:
        assert (cache.run_pass("p", make, here / "in.bin", version="1") / "o.bin").read_bytes() == b"x"
        assert bool(cache.problems) == place.startswith("~"), cache.problems
os.chdir(here)
assert not (here / "~").exists()
print("done")
"""


def test_without_a_home_and_without_a_name_an_explicit_folder_is_all_that_is_needed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["パス" * 100, "a/b\\c:d", "..", "\n\t", "con", "x" * 1000, "🙂"])
def test_a_pass_may_be_called_anything(tmp_path, name):
    (tmp_path / "in.bin").write_bytes(b"x")

    def make(model, output, **_):
        (output / "o.bin").write_bytes(b"y")

    with OliveCache(tmp_path / "cache") as cache:
        for _ in range(2):
            folder = cache.run_pass(
                name, make, tmp_path / "in.bin", {name: name}, version=name, accelerator=name
            )
            assert (folder / "o.bin").read_bytes() == b"y"
        assert not cache.problems
        [row] = cache.runs.list_runs()
        assert row.pass_name == name.lower()
    longest = max(len(os.fsencode(path.name)) for path in (tmp_path / "cache").rglob("*"))
    assert longest <= 255


@pytest.mark.parametrize("folder", ["with\nnew line", "キャッシュ" * 16, "a:b", " ", "~"])
def test_a_cache_may_lie_anywhere(tmp_path, folder):
    config = {"cache_dir": str(tmp_path / folder), "max_checkout_bytes": 0}
    (tmp_path / "in.bin").write_bytes(b"x")
    calls = []

    def make(model, output):
        calls.append(output)
        (output / "o.bin").write_bytes(b"y")

    with OliveCache(config) as one:
        kept = one.run_pass("p", make, tmp_path / "in.bin", version="1")
        with OliveCache(config) as two:
            assert (two.run_pass("p", make, tmp_path / "in.bin", version="1") / "o.bin").read_bytes() == b"y"
        assert (kept / "o.bin").exists()
        assert not one.problems
    assert len(calls) == 1


def test_a_store_beside_a_new_cache_is_not_taken_for_the_caches(tmp_path):
    with Store(tmp_path / "store", create=True):
        pass
    with OliveCache(str(tmp_path / ".cache")) as cache:
        assert cache.dirs.store == tmp_path / ".cache" / "store"
    assert not (tmp_path / "in-use").exists()
