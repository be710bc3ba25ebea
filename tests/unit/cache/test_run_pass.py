"""A pipeline of one's own: a pass runs once for each content, config and version, on every machine."""

import logging
import shutil

import pytest
from fakes.families import base_tensors, tuned, write_family_model
from fakes.model_files import safetensors_bytes

from casstore import CacheConfig, ConfigError, OliveCache, RefNotFound
from casstore.machine.state import MachineState


class Halving:
    """A pass that counts how often it ran."""

    def __init__(self):
        self.runs = 0

    def __call__(self, model, output, keep=0.5):
        self.runs += 1
        data = model.read_bytes() if model.is_file() else (model / "model.bin").read_bytes()
        (output / "model.bin").write_bytes(data[: int(len(data) * keep)])


@pytest.fixture
def halve():
    return Halving()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


def read(folder):
    return (folder / "model.bin").read_bytes()


def test_it_runs_once_for_each_content_config_and_version(tmp_path, halve, model):
    with OliveCache(tmp_path / "cache") as cache:
        first = cache.run_pass("halve", halve, model, {"keep": 0.5}, version="1")
        assert read(first) == model.read_bytes()[:128_000]
        assert read(cache.run_pass("halve", halve, model, {"keep": 0.5}, version="1")) == read(first)
        assert halve.runs == 1
        cache.run_pass("halve", halve, model, {"keep": 0.25}, version="1")
        cache.run_pass("halve", halve, model, {"keep": 0.5}, version="2")
        cache.run_pass("halve", halve, model, {"keep": 0.5}, version="1", accelerator="gpu")
        assert halve.runs == 4
        model.write_bytes(model.read_bytes()[::-1])
        assert read(cache.run_pass("halve", halve, model, {"keep": 0.5}, version="1")) != read(first)
        assert halve.runs == 5


@pytest.mark.parametrize("version", [{}, {"version": None}, {"version": ""}])
def test_a_pass_needs_a_version(tmp_path, halve, model, version):
    with OliveCache(tmp_path / "cache") as cache, pytest.raises(ConfigError, match="edited pass"):
        cache.run_pass("halve", halve, model, **version)
    assert halve.runs == 0


def test_a_moved_copy_of_the_model_is_the_same_model(tmp_path, halve, model):
    with OliveCache(tmp_path / "cache") as cache:
        cache.run_pass("halve", halve, model, version="1")
        (tmp_path / "elsewhere").mkdir()
        model.rename(tmp_path / "elsewhere" / "model.bin")
        cache.run_pass("halve", halve, tmp_path / "elsewhere" / "model.bin", version="1")
    assert halve.runs == 1


def test_passes_chain_and_their_lineage_is_exact(tmp_path, halve, model):
    with OliveCache(tmp_path / "cache") as cache:
        quarter = cache.run_pass(
            "halve", halve, cache.run_pass("halve", halve, model, version="1"), version="1"
        )
        assert read(quarter) == model.read_bytes()[:64_000]
        last, first = cache.runs.list_runs(pass_name="halve")
        assert last.input == first.output
        assert cache.models.record(last.name).base.hex() == first.output
    with OliveCache(tmp_path / "cache") as cache:
        cache.run_pass("halve", halve, cache.run_pass("halve", halve, model, version="1"), version="1")
    assert halve.runs == 2


def test_a_second_machine_gets_what_the_first_made(tmp_path, halve, model):
    shared = f"file://{tmp_path / 'shared'}"
    folders = []
    for name in ("first", "second"):
        with CacheConfig(cache_dir=[str(tmp_path / name), shared]).create_cache() as cache:
            folders.append(
                cache.run_pass(
                    "halve", halve, cache.run_pass("halve", halve, model, version="1"), version="1"
                )
            )
            assert not cache.problems
    assert halve.runs == 2
    assert read(folders[0]) == read(folders[1])
    assert folders[1].is_relative_to(tmp_path / "second")


def test_what_the_pass_raises_is_recorded_and_raised_and_runs_again(tmp_path, model):
    def fail(model, output):
        (output / "half").write_bytes(b"x")
        raise RuntimeError("out of memory")

    with OliveCache(tmp_path / "cache") as cache:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                cache.run_pass("fail", fail, model, version="1")
        [run] = cache.runs.list_runs()
        assert run.status == "failed"
        assert "out of memory" in cache.runs.load_run(run.name).error


def test_an_output_that_was_changed_by_hand_is_not_the_cached_one(tmp_path, halve, model):
    with OliveCache(tmp_path / "cache") as cache:
        folder = cache.run_pass("halve", halve, model, version="1")
        made = read(folder)
        (folder / "model.bin").write_bytes(b"changed")
        again = cache.run_pass("halve", halve, model, version="1")
        assert read(again) == made
        assert halve.runs == 1
        assert read(cache.run_pass("halve", halve, folder, version="1")) == b"cha"


def test_a_model_that_is_not_there_is_said_so(tmp_path, halve):
    with OliveCache(tmp_path / "cache") as cache, pytest.raises(ConfigError, match="nothing"):
        cache.run_pass("halve", halve, tmp_path / "nothing.bin", version="1")


def test_damage_in_the_store_is_mended_by_the_next_run(tmp_path, halve, model, caplog):
    config = {"cache_dir": str(tmp_path / "cache"), "max_checkout_bytes": 0}
    with OliveCache(config) as cache:
        made = read(cache.run_pass("halve", halve, model, version="1"))
    for pack in (tmp_path / "cache" / "store" / "packs").glob("*/*"):
        data = bytearray(pack.read_bytes())
        data[200] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
    with OliveCache(config) as cache, caplog.at_level(logging.ERROR):
        assert read(cache.run_pass("halve", halve, model, version="1")) == made
        assert halve.runs == 2
        assert "damaged" in caplog.text
        assert cache.problems
    with OliveCache(config) as cache:
        assert read(cache.run_pass("halve", halve, model, version="1")) == made
        assert not cache.problems
    assert halve.runs == 2


def test_explain_names_what_differs(tmp_path, halve, model):
    with OliveCache(tmp_path / "cache") as cache:
        cache.run_pass("halve", halve, model, {"keep": 0.5}, version="1")
        model_id = cache.local.content_id(str(model))
        other = cache.get_output_model_id("halve", {"keep": 0.25}, model_id, pass_version="1")
        [difference] = cache.explain(other).differences
        assert (difference.field, difference.earlier, difference.now) == ("config.keep", 0.5, 0.25)


def test_a_run_keeps_what_it_leaves_besides_its_output(tmp_path, halve, model):
    (tmp_path / "report.txt").write_text("all good")
    with OliveCache(tmp_path / "cache") as cache:
        cache.run_pass("halve", halve, model, version="1")
        [row] = cache.runs.list_runs()
        run = cache.runs.add_artifact(row.name, "report", tmp_path / "report.txt")
        assert cache.runs.load_run(row.name) == run
        assert run.artifacts == {"report": bytes.fromhex(cache.local.content_id(tmp_path / "report.txt"))}
        with pytest.raises(RefNotFound):
            cache.runs.add_artifact("never", "report", tmp_path / "report.txt")


def two_parts(_, output):
    for name in ("a", "b"):
        (output / name).mkdir()
        (output / name / "w").write_text(name)


def names_of(model, output):
    (output / "names").write_text(" ".join(sorted(path.name for path in model.rglob("*"))))


def test_a_part_of_an_earlier_result_is_an_input_of_its_own(tmp_path, model):
    with OliveCache(tmp_path / "cache") as cache:
        made = cache.run_pass("two", two_parts, model, version="1")

        def names(folder):
            return (cache.run_pass("names", names_of, folder, version="1") / "names").read_text()

        assert [names(made), names(made / "b"), names(made / "b" / "..")] == ["a b w w", "w", "a b w w"]
        (made / "added").write_text("by hand")
        assert names(made) == "a added b w w"


def test_a_checkout_is_the_same_input_as_what_it_was_made_from(tmp_path, model):
    ran = []

    def count(source, output):
        ran.append(source)
        names_of(source, output)

    with OliveCache(tmp_path / "cache") as cache:
        made = cache.run_pass("two", two_parts, model, version="1")
        cache.run_pass("count", count, made, version="1")
        shutil.rmtree(made)
        again = cache.run_pass("two", two_parts, model, version="1")
        assert again != made
        cache.run_pass("count", count, again, version="1")
    assert ran == [made]


def test_a_pass_that_only_promises_to_work_is_refused(tmp_path, model):
    def generator(_, output):
        yield (output / "made").write_text("late")

    async def coroutine(_, output):
        (output / "made").write_text("late")

    async def asynchronous(_, output):
        yield (output / "made").write_text("late")

    with OliveCache(tmp_path / "cache") as cache:
        for make in (generator, coroutine, asynchronous):
            for _ in range(2):
                with pytest.raises(ConfigError, match="made nothing"):
                    cache.run_pass("late", make, model, version="1")


def test_a_pass_may_change_its_config(tmp_path, model):
    def consume(_, output, steps, more):
        (output / "steps").write_text(f"{steps} {more}")
        steps.clear()
        more["x"].append(1)

    config = {"steps": [1, 2], "more": {"x": []}}
    with OliveCache(tmp_path / "cache") as cache:
        cache.run_pass("consume", consume, model, config, version="1")
        assert config == {"steps": [1, 2], "more": {"x": []}}
        [run] = cache.runs.list_runs(pass_name="consume")
        assert cache.runs.load_run(run.name).config == config


def test_an_input_that_changes_meanwhile_is_not_what_the_result_was_made_of(tmp_path, model, caplog):
    before = model.read_bytes()

    def slow(source, output):
        source.write_bytes(before[::-1] if len(cache.problems) == 0 else before)
        (output / "model.bin").write_bytes(source.read_bytes())

    with OliveCache(tmp_path / "cache") as cache, caplog.at_level(logging.WARNING):
        assert read(cache.run_pass("slow", slow, model, version="1")) == before[::-1]
        assert "changed while the pass slow ran" in caplog.text
        model.write_bytes(before)
        assert cache.runs.list_runs() == []
        assert read(cache.run_pass("slow", slow, model, version="1")) == before


@pytest.mark.parametrize("delta", ["balanced", "off"])
def test_what_a_pass_makes_of_a_model_is_stored_as_its_difference_from_it(tmp_path, delta):
    write_family_model(tmp_path / "input", base_tensors())

    def write(tensors):
        return lambda _, output: (output / "model.safetensors").write_bytes(safetensors_bytes(tensors))

    with OliveCache({"cache_dir": str(tmp_path / "cache"), "delta": delta}) as cache:
        first = cache.run_pass("load", write(base_tensors()), tmp_path / "input", version="1")
        # Without sketches, only the run tells what was made of what.
        cache.local.machine = MachineState(None)
        cache.run_pass("tune", write(tuned(base_tensors())), first, version="1")
        encodings = {row.encoding for row in cache.local.stats().frames}
    assert ("delta" in encodings) == (delta == "balanced")
