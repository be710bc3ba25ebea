"""One damaged run or evaluation hides no other one, and can be recorded again."""

import logging

import pytest

from casstore import OliveCache
from casstore.format.run import RunStatus

LARGE = {"samples": [float(number) for number in range(2000)]}
"""A result that does not fit into its record, and so lies in a pack."""


def make(model, output, k):
    (output / "o.bin").write_bytes(b"%d" % k)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "in.bin").write_bytes(b"x")
    return {"cache_dir": str(tmp_path / "cache")}


def damage_newest_pack(cache):
    """Flip a byte of the pack that was written last."""
    [*_, pack] = sorted(cache.dirs.store.glob("packs/*/*"), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(pack.read_bytes())
    data[200] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)


def test_evaluations_beside_a_damaged_one_are_listed(config, caplog):
    with OliveCache(config) as cache:
        cache.cache_evaluation("one", {"a": 1})
        cache.cache_evaluation("two", LARGE)
        damage_newest_pack(cache)
        cache.cache_evaluation("three", {"a": 3})
    with OliveCache(config) as cache, caplog.at_level(logging.ERROR):
        assert {found.name for found in cache.runs.list_evaluations()} == {"one", "three"}
        assert "evaluations/two is damaged" in caplog.text
        assert cache.load_evaluation("two") is None
        assert cache.problems
        cache.cache_evaluation("two", {"a": 2})
        assert cache.load_evaluation("two") == {"a": 2}


def test_a_damaged_run_is_recorded_anew_and_explains_nothing(config, tmp_path, caplog):
    settings = {"k": 1, "list": list(range(5000))}
    run = {"k": 1}
    with OliveCache(config) as cache:
        for k in (1, 2):
            cache.run_pass("p", make, tmp_path / "in.bin", {"k": k}, version="1")
        name = cache.get_output_model_id("p", settings, "input")
        cache.cache_run("p", settings, "input", name)
        damage_newest_pack(cache)
    with OliveCache(config) as cache, caplog.at_level(logging.ERROR):
        assert cache.load_run(name) is None
        assert len(cache.runs.list_runs()) == 3
        other = cache.get_output_model_id("p", {"k": 3}, cache.local.content_id(str(tmp_path / "in.bin")))
        assert cache.explain(other).differences
        assert f"{name} is damaged and was not compared" in caplog.text
        cache.problems.clear()
        cache.get_output_model_id("p", settings, "input")
        cache.cache_run("p", settings, "input", name)
        assert not cache.problems
        assert cache.runs.load_run(name).status is RunStatus.DONE
        assert (
            cache.run_pass("p", make, tmp_path / "in.bin", run, version="1") / "o.bin"
        ).read_bytes() == b"1"
