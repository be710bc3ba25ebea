"""A question makes no shared store; a disk that is not mounted is no empty one."""

import logging

import pytest
from fakes.machines import Machines, is_hit, run_pass
from fakes.pipeline_models import hf_config

from casstore import ConfigError, RefNotFound, SharedCache, Store
from casstore.cache.mounts import unmounted


@pytest.mark.parametrize("there", [False, True])
def test_questions_make_nothing(tmp_path, there):
    place = tmp_path / "shared"
    if there:
        place.mkdir()
    shared = SharedCache(str(place))
    assert not shared.exists("models/m")
    assert not shared.exist_in_shared_cache("m/run.json")
    assert shared.record("models/m") is None
    assert shared.list() == {}
    assert shared.load_model("m", tmp_path / "model.json") is None
    assert shared.load_run("m", tmp_path / "run.json") == {}
    with pytest.raises(RefNotFound):
        shared.delete("models/m")
    with pytest.raises(RefNotFound):
        shared.download_model({"config": {}}, "m", tmp_path / "dest")
    with Store(tmp_path / "here", create=True) as store, pytest.raises(RefNotFound):
        shared.retrieve(store, ["models/m"])
    assert place.exists() == there
    assert not there or not list(place.iterdir())
    shared.cache_model("m", hf_config("hub/name"))
    assert shared.exists("models/m")
    shared.close()


def test_lookups_of_a_pipeline_make_nothing(tmp_path):
    machines = Machines(tmp_path / "machines", shared=(tmp_path / "shared").as_uri())
    cache = machines.open()
    model_id = cache.get_output_model_id("p", {}, "input")
    assert not is_hit(cache, model_id)
    assert cache.load_evaluation("m") is None
    assert not (tmp_path / "shared").exists()
    run_pass(cache)
    assert (tmp_path / "shared" / "format").exists()
    machines.close()


def test_a_store_that_was_there_and_is_not_is_not_made_anew(tmp_path, caplog):
    shared = tmp_path / "shared"
    machines = Machines(tmp_path / "machines", shared=shared.as_uri())
    model_id = run_pass(machines.open(), seed=1)
    machines.close()
    shared.rename(tmp_path / "unmounted")
    shared.mkdir()
    with caplog.at_level(logging.WARNING):
        cache = machines.open()
        assert is_hit(cache, model_id)
        assert not is_hit(cache, "never")
        run_pass(cache, config={"bits": 4})
    assert "Is its disk mounted?" in caplog.text
    assert not list(shared.iterdir())
    assert not cache.problems
    with pytest.raises(ConfigError, match="casstore init"):
        cache.shared_cache.remote  # noqa: B018  # the property is what is tested
    machines.close()
    shared.rmdir()
    (tmp_path / "unmounted").rename(shared)
    cache = machines.open("late")
    assert is_hit(cache, model_id)
    machines.close()


def test_a_store_that_someone_made_in_its_place_is_used(tmp_path):
    shared = tmp_path / "shared"
    machines = Machines(tmp_path / "machines", shared=shared.as_uri())
    run_pass(machines.open(), seed=1)
    machines.close()
    shared.rename(tmp_path / "away")
    Store(shared, create=True).close()
    model_id = run_pass(machines.open(), config={"bits": 4})
    assert is_hit(machines.open("other"), model_id)
    machines.close()


def test_what_an_outage_kept_back_is_shared_later(tmp_path):
    shared = tmp_path / "shared"
    machines = Machines(tmp_path / "machines", shared=shared.as_uri())
    cache = machines.open()
    run_pass(cache, seed=1)
    cache.shared_cache.close()
    shared.rename(tmp_path / "away")
    shared.mkdir()
    kept = [run_pass(cache, seed=seed, config={"bits": seed}) for seed in (2, 3)]
    shared.rmdir()
    (tmp_path / "away").rename(shared)
    cache._sharing._retry_at = 0.0
    cache.cache_evaluation("m", {"a": 1})
    assert all(is_hit(machines.open("other"), model_id) for model_id in kept)
    machines.close()


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("nas:/team {point} nfs defaults 0 0", True),
        ("nas:/team\t{parent}\tnfs defaults,noauto", True),
        ("# nas:/team {point} nfs", False),
        ("nas:/team {point}2 nfs", False),
        ("nas:/team / nfs", False),
        ("proc /proc proc", False),
        ("swap none swap", False),
        ("broken", False),
    ],
)
def test_mount_points_are_known_from_fstab(tmp_path, line, missing):
    point = tmp_path / "with space"
    point.mkdir()
    fstab = tmp_path / "fstab"
    escaped = str(point).replace(" ", r"\040")
    fstab.write_text(line.format(point=escaped, parent=tmp_path) + "\n")
    found = unmounted(str(point / "store"), fstab=str(fstab))
    assert found == ((str(tmp_path) if "noauto" in line else str(point)) if missing else None)
    assert unmounted("/proc/self/store", fstab=str(fstab)) is None
    assert unmounted(str(point), fstab=str(tmp_path / "none")) is None


def test_the_home_folder_may_be_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SharedCache("~/shared").url == str(tmp_path / "shared")
