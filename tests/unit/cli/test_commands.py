"""Every command in this process: what it prints, and its exit code."""

from __future__ import annotations

import io
import json
import signal
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from fakes.command_line import run, run_json
from fakes.model_files import safetensors_bytes

import casstore
from casstore.api.store import Store
from casstore.cli import app
from casstore.cli.support.exits import BROKEN_PIPE, SIGNALLED

HEX = 64


@pytest.fixture
def place(tmp_path):
    place = tmp_path / "store"
    run("init", "--store", place)
    return place


@pytest.fixture
def model(tmp_path):
    """A folder with a real safetensors file, a nested file, an empty folder."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "empty").mkdir()
    random = np.random.default_rng(7)
    weights = random.standard_normal((300, 256)).astype("<f4")
    data = safetensors_bytes({"layer.weight": ("F32", (300, 256), weights.tobytes())})
    (folder / "model.safetensors").write_bytes(data)
    (folder / "sub" / "config.json").write_text('{"layers": 1}')
    return folder


@pytest.fixture
def added(place, model):
    return run_json("add", model, "--ref", "models/one", "--store", place)


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestInit:
    def test_makes_a_store_once(self, tmp_path):
        first = run_json("init", "--store", tmp_path / "new")
        again = run_json("init", "--store", tmp_path / "new")
        assert first["created"] is True
        assert again == {**first, "created": False}
        assert "already" in run("init", "--store", tmp_path / "new")[0]

    def test_takes_the_place_as_an_argument_too(self, tmp_path):
        made = run_json("init", tmp_path / "new")
        assert made["created"] is True
        assert run_json("init", "--store", tmp_path / "new") == {**made, "created": False}
        _, error = run("init", tmp_path / "new", "--store", tmp_path / "other", code=2)
        assert "not both" in error
        run("--store", tmp_path / "other", "init", tmp_path / "new", code=2)
        assert not (tmp_path / "other").exists()

    def test_quiet_prints_nothing(self, tmp_path):
        assert run("init", "--store", tmp_path / "new", "--quiet") == ("", "")

    def test_refuses_a_folder_with_other_things(self, model):
        _, error = run("init", "--store", model, code=1)
        assert error.startswith("casstore: ")
        assert len(error.splitlines()) == 1

    def test_without_a_store_option_uses_the_data_directory(self, own_home):
        url = run_json("init")["url"]
        assert url == f"file://{own_home}/data/casstore/store"


class TestAdd:
    def test_says_what_it_did(self, place, model):
        found = run_json("add", model, "--ref", "models/one", "--store", place)
        assert found["ref"] == "models/one"
        assert len(found["model_id"]) == HEX
        assert found["files"] == 2
        assert found["bytes_total"] == sum(map(len, files_below(model).values()))
        assert found["bytes_new"] == found["bytes_total"]
        again = run_json("add", model, "--store", place)
        assert again["ref"] == f"models/{model.name}"
        assert (again["bytes_new"], again["chunks_new"]) == (0, 0)

    def test_for_people_and_quiet(self, place, model):
        out, error = run("add", model, "--ref", "models/one", "--store", place)
        assert out.startswith("models/one: model ")
        assert "2 files" in out
        assert error == ""
        out, _ = run("add", model, "--ref", "models/one", "--store", place, "-q")
        assert len(out.strip()) == HEX

    def test_keeps_lineage(self, place, model, added):
        (model / "sub" / "config.json").write_text("{}")
        run(
            "add", model, "--ref", "models/two", "--base", "models/one",
            "--metadata", "pass=quantise", "--metadata", "note=a=b", "--store", place,
        )  # fmt: skip
        shown = run_json("show", "models/two", "--store", place)
        assert shown["base"] == added["model_id"]
        assert shown["metadata"] == {"pass": "quantise", "note": "a=b"}

    @pytest.mark.parametrize("pair", ["novalue", "=x"])
    def test_bad_metadata_is_a_usage_error(self, place, model, pair):
        _, error = run("add", model, "--metadata", pair, "--store", place, code=2)
        assert "KEY=VALUE" in error

    def test_metadata_twice_is_a_usage_error(self, place, model):
        run("add", model, "--metadata", "a=1", "--metadata", "a=2", "--store", place, code=2)

    def test_no_follow_refuses_links(self, place, model):
        (model / "link").symlink_to(model / "model.safetensors")
        _, error = run("add", model, "--no-follow", "--store", place, code=1)
        assert str(model / "link") in error
        run("add", model, "--store", place)

    def test_stat_cache_can_be_switched_off(self, place, model, monkeypatch):
        seen = []
        original = Store.add

        def spy(self, path, **options):
            seen.append(options["stat_cache"])
            return original(self, path, **options)

        monkeypatch.setattr(Store, "add", spy)
        run("add", model, "--store", place)
        run("add", model, "--store", place, "--no-stat-cache")
        assert seen == [True, False]

    def test_a_missing_store_names_init(self, tmp_path, model):
        _, error = run("add", model, "--store", tmp_path / "none", code=1)
        assert "casstore init" in error
        assert not (tmp_path / "none").exists()

    def test_the_users_own_store_is_made_on_first_use(self, model, own_home):
        _, error = run("add", model, "--ref", "models/one")
        assert f"{own_home}/data/casstore/store" in error
        _, error = run("add", model, "--ref", "models/one")
        assert error == ""
        assert run("ls", "-q")[0] == "models/one\n"

    def test_a_missing_path_is_named(self, place, tmp_path):
        _, error = run("add", tmp_path / "nothing", "--store", place, code=1)
        assert error == f"casstore: {tmp_path}/nothing does not exist.\n"

    def test_a_bad_ref_name_is_refused(self, place, model):
        _, error = run("add", model, "--ref", "nowhere/x", "--store", place, code=1)
        assert "nowhere/x" in error


class TestStoreOption:
    def test_stands_before_or_after_the_command(self, place, added):
        after = run("ls", "--store", place)
        assert run("--store", place, "ls") == after

    def test_the_one_behind_the_command_wins(self, place, tmp_path, added):
        assert run("--store", tmp_path / "none", "ls", "--store", place, "-q")[0] == "models/one\n"

    def test_the_environment_comes_after_both(self, place, tmp_path, added, monkeypatch):
        monkeypatch.setenv("CASSTORE_STORE", str(place))
        assert run("ls", "-q")[0] == "models/one\n"
        run("--store", tmp_path / "none", "ls", code=1)
        run("ls", "--store", tmp_path / "none", code=1)

    def test_other_options_too(self, place, added):
        out, _ = run("--json", "--quiet", "ls", "--store", place)
        assert json.loads(out)[0]["ref"] == "models/one"

    @pytest.mark.parametrize(
        "command",
        [
            "ls",
            "stats",
            "check",
            "show x",
            "get x y",
            "rm x",
            "tag x y",
            "pin x",
            "unpin x",
            "undelete models/x",
            "cat x y",
            "log",
            "runs",
            "explain x",
        ],
    )
    def test_every_command_wants_a_store_that_exists(self, command, tmp_path):
        _, error = run(*command.split(), "--store", tmp_path / "none", code=1)
        assert error.startswith("casstore: ")
        assert "casstore init" in error


class TestReading:
    def test_ls(self, place, added):
        run("tag", "best", "models/one", "--store", place)
        out, _ = run("ls", "--store", place)
        rows = [line.split("\t") for line in out.splitlines()]
        assert [row[0] for row in rows] == ["models/one", "tags/best"]
        assert {row[1] for row in rows} == {added["model_id"][:12]}
        assert run("ls", "tags/", "-q", "--store", place)[0] == "tags/best\n"
        (found,) = run_json("ls", "models/", "--store", place)
        assert found["ref"] == "models/one"
        assert found["model_id"] == added["model_id"]
        assert found["base"] is None
        assert set(found) == {"ref", "model_id", "base", "time", "time_ns", "writer"}

    def test_ls_of_an_empty_store(self, place):
        assert run("ls", "--store", place) == ("", "")
        assert run_json("ls", "--store", place) == []

    def test_ls_filters(self, place, model):
        first = run_json("add", model, "--ref", "models/one", "--store", place)
        run("tag", "best", "models/one", "--store", place)
        (model / "more.txt").write_text("more")
        run("add", model, "--ref", "models/two", "--base", "one", "--store", place)

        def names(*options):
            return run("ls", *options, "-q", "--store", place)[0].split()

        assert names("--model", "one") == names("--model", first["model_id"]) == ["models/one", "tags/best"]
        assert names("--base", "tags/best") == ["models/two"]
        assert names("--limit", "1") == ["models/two"]
        assert names("--since", "2020-01-01") == ["models/one", "models/two", "tags/best"]
        assert names("--since", "2100-01-01") == []
        assert "No ref or model" in run("ls", "--model", "three", "--store", place, code=1)[1]

    def test_ls_reads_no_manifest(self, place, added, monkeypatch):
        def refuse(*_):
            raise AssertionError("ls must read records only")

        monkeypatch.setattr(Store, "model", refuse)
        run("ls", "--store", place)

    def test_a_model_without_files_is_mentioned(self, place, model):
        out, note = run("add", model, "--exclude", "*", "--store", place)
        assert "0 files" in out
        assert "has no files" in note

    def test_show(self, place, added, model):
        shown = run_json("show", "one", "--store", place)
        assert shown["model_id"] == added["model_id"]
        assert shown["empty_directories"] == ["empty"]
        by_path = {file["path"]: file for file in shown["files"]}
        assert {path: file["bytes_total"] for path, file in by_path.items()} == {
            path: len(data) for path, data in files_below(model).items()
        }
        weights = by_path["model.safetensors"]
        (tensor,) = weights["tensors"]
        assert (tensor["name"], tensor["dtype"], tensor["shape"]) == ("layer.weight", "F32", [300, 256])
        assert sum(share["chunks"] for share in weights["encodings"]) == weights["chunks"]
        assert shown["bytes_stored"] == sum(share["bytes_stored"] for share in shown["encodings"])
        assert shown["chunks"] == added["chunks"]

    def test_show_for_people(self, place, added):
        out, _ = run("show", added["model_id"][:8], "--tensors", "--store", place)
        rows = [line.split("\t") for line in out.splitlines()]
        assert ["model", added["model_id"]] in rows
        assert ["tensor", "layer.weight", "F32", "300x256", "300.0 KiB", "model.safetensors"] in rows
        assert any(row[:2] == ["file", "sub/config.json"] for row in rows)
        assert "layer.weight" not in run("show", "models/one", "--store", place)[0]

    def test_show_counts_a_shared_chunk_once(self, place, tmp_path):
        folder = tmp_path / "twins"
        folder.mkdir()
        for name in "ab":
            (folder / name).write_bytes(b"the same" * 100)
        run("add", folder, "--ref", "models/twins", "--store", place)
        shown = run_json("show", "models/twins", "--store", place)
        assert shown["chunks"] == 2
        assert sum(share["chunks"] for share in shown["encodings"]) == 1
        assert [file["encodings"][0]["chunks"] for file in shown["files"]] == [1, 1]

    def test_names_cannot_steer_a_terminal(self, place, tmp_path):
        name = "evil\x1b[2J\nname"
        data = safetensors_bytes({name: ("U8", (4,), b"abcd")})
        (tmp_path / "evil.safetensors").write_bytes(data)
        run("add", tmp_path / "evil.safetensors", "--ref", "models/evil", "--store", place)
        out, _ = run("show", "models/evil", "--tensors", "--store", place)
        assert "\x1b" not in out
        assert "evil\\x1b[2J\\nname" in out

    def test_stats(self, place, added):
        stats = run_json("stats", "--store", place)
        assert (stats["refs"], stats["models"]) == (1, 1)
        assert stats["bytes_logical"] == added["bytes_total"]
        assert stats["bytes_stored"] == stats["bytes_packs"] + stats["bytes_index"] + stats["bytes_refs"]
        assert {"chunk", "layout", "tree", "manifest"} == {row["kind"] for row in stats["frames"]}
        assert "models\t1" in run("stats", "--store", place)[0].splitlines()

    def test_cat(self, place, added, model):
        result = CliRunner().invoke(app, ["cat", "models/one", "model.safetensors", "--store", str(place)])
        assert result.stdout_bytes == (model / "model.safetensors").read_bytes()
        _, error = run("cat", "models/one", "none.txt", "--store", place, code=1)
        assert "none.txt" in error

    def test_an_unknown_and_an_ambiguous_name(self, place, model):
        _, error = run("show", "models/none", "--store", place, code=1)
        assert error.startswith("casstore: ")
        assert "models/none" in error
        assert "4 digits" in run("show", "abc", "--store", place, code=1)[1]


class TestGet:
    def test_gives_the_files_back(self, place, added, model, tmp_path):
        found = run_json("get", "models/one", tmp_path / "out", "--store", place)
        assert files_below(tmp_path / "out") == files_below(model)
        assert (tmp_path / "out" / "empty").is_dir()
        assert found["model_id"] == added["model_id"]
        assert found["bytes_total"] == added["bytes_total"]

    @pytest.mark.usefixtures("added")
    def test_only_files_that_match_are_written(self, place, tmp_path):
        run("get", "models/one", tmp_path / "out", "--include", "sub/*", "--store", place)
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"sub"}
        run("get", "models/one", tmp_path / "rest", "--exclude", "sub/*", "--store", place)
        assert (tmp_path / "rest").exists()
        assert not (tmp_path / "rest" / "sub").exists()

    def test_a_folder_that_is_not_empty_wants_force(self, place, added, tmp_path):
        dest = tmp_path / "out"
        dest.mkdir()
        (dest / "mine.txt").write_text("keep")
        _, error = run("get", "models/one", dest, "--store", place, code=1)
        assert "--force" in error
        run("get", "models/one", dest, "--force", "--store", place)
        assert (dest / "mine.txt").read_text() == "keep"
        assert (dest / "model.safetensors").exists()


class TestTagAndRm:
    def test_tag(self, place, added):
        found = run_json("tag", "best", added["model_id"], "--store", place)
        assert found == {"ref": "tags/best", "model_id": added["model_id"]}
        assert "tags/best" in run("tag", "tags/best", "one", "--store", place)[0]
        run("tag", "other", "models/none", "--store", place, code=1)

    def test_dry_run_changes_nothing(self, place, added):
        found = run_json("rm", "models/one", "--dry-run", "--store", place)
        assert found == {
            "ref": "models/one", "model_id": added["model_id"], "deleted": False, "other_refs": [],
        }  # fmt: skip
        assert "Would delete models/one" in run("rm", "-n", "models/one", "--store", place)[0]
        assert run("ls", "-q", "--store", place)[0] == "models/one\n"

    def test_rm(self, place, added):
        run("tag", "best", "one", "--store", place)
        assert run_json("rm", "models/one", "--store", place)["other_refs"] == ["tags/best"]
        assert run("ls", "-q", "--store", place)[0] == "tags/best\n"
        _, error = run("rm", "models/one", "--store", place, code=1)
        assert "models/one" in error

    def test_rm_takes_names_and_no_ids(self, place, added):
        assert "Would delete models/one" in run("rm", "-n", "one", "--store", place)[0]
        _, error = run("rm", added["model_id"], "--store", place, code=1)
        assert "is a model id" in error
        _, error = run("rm", added["model_id"][:8], "--store", place, code=1)
        assert f"ls --model {added['model_id'][:8]}" in error
        assert run("ls", "-q", "--store", place)[0] == "models/one\n"


class TestCheck:
    def test_a_sound_store(self, place, added):
        report = run_json("check", "--read-data", "--store", place)
        assert report["ok"] is True
        assert report["problems"] == []
        assert report["bytes_read"] > 0
        assert "nothing is wrong" in run("check", "--store", place)[0]

    def test_problems_end_with_1(self, place, added):
        (pack,) = [path for path in (place / "packs").rglob("*") if path.is_file()]
        pack.chmod(0o600)
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.write_bytes(data)
        report = run_json("check", "--read-data", "--store", place, code=1)
        assert report["ok"] is False
        out, _ = run("check", "--read-data", "--quiet", "--store", place, code=1)
        assert {line.split("/")[0] for line in out.splitlines()} == {"packs", "refs"}


class TestErrors:
    def test_an_unexpected_error_is_one_line(self, place, monkeypatch):
        def fail(*_):
            raise ZeroDivisionError("by\nzero")

        monkeypatch.setattr(Store, "stats", fail)
        _, error = run("stats", "--store", place, code=1)
        assert error == (
            "casstore: unexpected ZeroDivisionError: by zero. Run again with --debug to see where.\n"
        )
        result = CliRunner().invoke(app, ["stats", "--debug", "--store", str(place)])
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert result.stderr.endswith(
            "casstore: unexpected ZeroDivisionError: by\tzero.\n".replace("\t", " ")
        )

    def test_an_os_error_names_its_file(self, place, monkeypatch):
        def fail(*_):
            raise PermissionError(13, "Permission denied", "/some/file")

        monkeypatch.setattr(Store, "stats", fail)
        assert run("stats", "--store", place, code=1)[1] == "casstore: /some/file: Permission denied.\n"

    def test_ctrl_c(self, place, monkeypatch):
        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(Store, "stats", stop)
        assert run("stats", "--store", place, code=SIGNALLED + signal.SIGINT)[1] == "casstore: interrupted.\n"

    def test_a_closed_pipe(self, place, monkeypatch):
        def stop(*_):
            raise BrokenPipeError

        monkeypatch.setattr(Store, "stats", stop)
        assert run("stats", "--store", place, code=BROKEN_PIPE) == ("", "")

    def test_usage(self):
        assert "Usage" in run("nonsense", code=2)[1]
        run("show", code=2)

    def test_version(self):
        assert run("--version")[0] == f"casstore {casstore.__version__} (compiled kernels)\n"


class _Terminal(io.StringIO):
    """Says that somebody watches."""

    def isatty(self):
        return True


class TestTerminal:
    def test_a_table_loses_no_part_of_a_name(self, place, model, monkeypatch):
        name = "models/" + "a-long-name-" * 15
        run("add", model, "--ref", name, "--store", place)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(sys, "stdout", _Terminal())
        with pytest.raises(SystemExit, match="0"):
            app(["ls", "--store", str(place)])
        out = sys.stdout.getvalue()
        assert "model" in out.splitlines()[0]
        column = "".join(line.split(" ")[0] for line in out.splitlines()[1:])
        assert column == name
        assert "\x1b[3" not in out

    def test_columns_without_anything_leave_room_for_the_others(self, place, added, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr(sys, "stdout", _Terminal())
        with pytest.raises(SystemExit, match="0"):
            app(["log", "--store", str(place)])
        heading, row = sys.stdout.getvalue().split("\n")[:2]
        assert heading.split() == ["time", "name", "model", "evaluations"]
        assert row.split()[2:] == ["models/one", added["model_id"][:12], "0"]

    def test_progress_only_where_somebody_watches(self, place, model, monkeypatch):
        seen = []
        original = Store.add

        def spy(self, path, **options):
            seen.append(options["callback"])
            return original(self, path, **options)

        monkeypatch.setattr(Store, "add", spy)
        monkeypatch.setattr(sys, "stderr", _Terminal())
        for options in ([], ["--quiet"], ["--json"]):
            with pytest.raises(SystemExit, match="0"):
                app(["add", str(model), "--store", str(place), *options])
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with pytest.raises(SystemExit, match="0"):
            app(["add", str(model), "--store", str(place)])
        assert [callback is not None for callback in seen] == [True, False, False, False]
