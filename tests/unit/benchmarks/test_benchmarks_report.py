"""Results are read, shown, plotted and compared; what cannot be read is refused, what became worse is told."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks import compare, figures, plots, report
from benchmarks.__main__ import main
from benchmarks.harness import SCHEMA, BenchmarkError, Measurement, Metric
from benchmarks.scenarios import stage_pipeline, stages

SPEED = Metric("throughput", "MB/s", "higher")
SHARE = Metric("stored share", "of plain bytes", "lower")
STORED = Metric("stored", "bytes", "lower")
CPU = Metric("processor", "s/GB", "lower")
PEAK_OF_ADD = Metric("peak RSS of add", "MB", "lower")
CHUNKS = Metric("chunks", "", None)


def _item(scenario, subject, metric, *samples, case="lifecycle"):
    return Measurement(scenario, case, subject, metric, samples)


def _result(*items, peers=("casstore", "hf-xet", "copy"), missing=(), blake3="00"):
    result = {
        "schema": SCHEMA,
        "environment": {
            "date": "2026-01-02T03:04:05+00:00",
            "cpu": "A processor",
            "cores": 2,
            "memory_gb": 8.0,
            "load_average": 0.1,
            "system": "Linux 6.1 x86_64",
            "file_system": "ext4",
            "python": "3.12.1",
            "packages": {"casstore": "0.1.0", "numpy": "2.0"},
            "commit": "c0ffee",
        },
        "options": {"repeats": 5, "warmups": 1, "page_cache": "warm"},
        "peers": {
            **{name: {"version": "1", "setting": "as it comes"} for name in peers},
            **{name: {"missing": f"{name} is not installed"} for name in missing},
        },
        "corpora": [
            {
                "name": "lifecycle",
                "recipe": "1",
                "bytes": 2_000_000,
                "models": [{"name": "base", "files": [{"path": "a", "size": 1, "blake3": blake3}]}],
            }
        ],
        "measurements": [item.as_json() for item in items],
    }
    return json.loads(json.dumps(result))


def _write(folder, name, result):
    path = folder / name
    path.write_text(json.dumps(result))
    return path


def _compared(before, after, metric=SPEED, **options):
    """Compare one measurement, given as samples before and after; return its change."""
    found = compare.compare(
        _result(_item("add", "casstore", metric, *before)),
        _result(_item("add", "casstore", metric, *after)),
        **options,
    )
    (change,) = found.changes
    return change


def test_tables_show_casstore_first_then_peers_and_who_is_missing():
    result = _result(
        _item("add", "copy", SPEED, 1000.0),
        _item("add", "hf-xet", SPEED, 200.0, 150.0, 250.0),
        _item("add", "casstore-cli", SPEED, 390.0),
        _item("add", "casstore", SPEED, 400.0),
        peers=("copy", "hf-xet", "casstore-cli", "casstore"),
        missing=("restic", "borg"),
    )
    text = report.markdown(result)
    assert "**Missing, and not compared: restic, borg.**" in text
    assert "- restic: missing: restic is not installed" in text
    assert (
        "| lifecycle | **casstore** | 400 |\n"
        "|  | casstore-cli | 390 |\n"
        "|  | hf-xet | 200 (150 to 250) |\n"
        "|  | copy | 1,000 |\n"
        "|  | restic | missing |\n"
        "|  | borg | missing |\n"
    ) in text
    assert (
        "| lifecycle | casstore against casstore-cli | 1.03 |\n|  | casstore against hf-xet | 2.00 |" in text
    )
    assert "fastest dedup peer" not in text


def test_the_fastest_dedup_peer_is_the_best_one_of_each_column():
    result = _result(
        _item("add", "casstore", SPEED, 400.0),
        _item("add", "casstore", SHARE, 0.25),
        _item("add", "hf-xet", SPEED, 200.0),
        _item("add", "hf-xet", SHARE, 0.50),
        _item("add", "restic", SPEED, 160.0),
        _item("add", "restic", SHARE, 0.40),
        _item("add", "copy", SPEED, 4000.0),
        _item("add", "copy", SHARE, 1.0),
        peers=("casstore", "hf-xet", "restic", "copy"),
    )
    text = report.markdown(result)
    expected = (
        "| **casstore against the fastest dedup peer** (in each column the best of hf-xet, restic) "
        "| 2.00 (hf-xet) | 1.60 (restic) |"
    )
    assert expected in text
    assert "| casstore against copy | 0.10 | 4.00 |" in text


def test_scenarios_that_compare_no_peers_keep_their_order_and_name_nobody_missing():
    result = _result(
        _item("growth", "casstore", Metric("open", "ms", "lower"), 5.0, case="100000"),
        _item("startup", "import numpy", Metric("time", "ms", "lower"), 90.0, case="fresh process"),
        _item("startup", "casstore --help", Metric("time", "ms", "lower"), 120.0, case="fresh process"),
        _item("size parts", "casstore", Metric("left", "bytes", "lower"), 1_500_000),
        missing=("restic",),
    )
    text = report.markdown(result)
    assert "| 100,000 | **casstore** | 5 |" in text
    assert "| fresh process | import numpy | 90 |\n|  | casstore --help | 120 |\n" in text
    assert "left (MB)" in text
    assert "| 1.5 |" in text
    assert "| missing |" not in text


def test_images_are_shown_where_they_are():
    text = report.markdown(_result(), images=[("Growth", "plots/growth.png")])
    assert text.endswith("### Plots\n\n![Growth](plots/growth.png)\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("not json", "is not JSON"),
        ("[1, 2]", "names no schema"),
        ('{"results": []}', "names no schema"),
        (json.dumps({"schema": SCHEMA + 1}), f"has schema {SCHEMA + 1}, and this version reads {SCHEMA}"),
        (json.dumps({"schema": SCHEMA}), "no whole result: KeyError 'environment'"),
        (json.dumps({**_result(), "peers": 7}), "no whole result"),
        (json.dumps({**_result(), "measurements": [{"scenario": "add"}]}), "no whole result"),
        (
            json.dumps(
                {**_result(), "measurements": [_item("add", "casstore", SPEED, float("nan")).as_json()]}
            ),
            "the samples of add, casstore are not numbers",
        ),
    ],
)
def test_files_that_are_no_results_are_refused_by_report_and_compare(content, message, tmp_path, capsys):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    good = _write(tmp_path, "good.json", _result())
    for arguments in (["report", path], ["compare", path, good], ["compare", good, path]):
        assert main([*map(str, arguments)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert message in shown.err
        assert str(path) in shown.err


def test_a_folder_and_a_measurement_without_samples_are_no_results(tmp_path):
    with pytest.raises(report.NotAResult, match="cannot be read"):
        report.read_result(tmp_path)
    item = {**_item("add", "casstore", SPEED, 1.0).as_json(), "samples": []}
    path = _write(tmp_path, "empty.json", {**_result(), "measurements": [item]})
    with pytest.raises(report.NotAResult, match="not numbers"):
        report.read_result(path)


@pytest.mark.parametrize(
    ("metric", "before", "after", "ratio", "verdict"),
    [
        (SPEED, (100, 101, 102), (80, 81, 82), 81 / 101, "regression"),
        (SPEED, (80, 81, 82), (100, 101, 102), 101 / 81, "improvement"),
        (CPU, (2.0, 2.1, 2.2), (2.5, 2.6, 2.7), 2.1 / 2.6, "regression"),
        (CPU, (2.5, 2.6, 2.7), (2.0, 2.1, 2.2), 2.6 / 2.1, "improvement"),
        # Within the threshold, though the ranges are apart.
        (SPEED, (100, 101, 102), (95, 96, 97), 96 / 101, "same"),
        # Beyond the threshold, but the ranges overlap, and three samples are too few for quartiles.
        (SPEED, (75, 101, 102), (80, 81, 82), 81 / 101, "noise"),
        # One slow sample makes the ranges overlap; the middle halves are narrow, and far apart.
        (SPEED, (100, 101, 102, 103, 60), (68, 69, 70, 71, 72), 70 / 101, "regression"),
        # The same medians, from samples all over the place.
        (SPEED, (60, 80, 101, 110, 120), (50, 60, 70, 95, 105), 70 / 101, "noise"),
        # A speed that was measured once may be anything; bytes and memory are what they are.
        (SPEED, (100,), (50,), 0.5, "once"),
        (SPEED, (100, 101, 102), (50,), 50 / 101, "once"),
        (SHARE, (0.25,), (0.30,), 0.25 / 0.30, "regression"),
        (PEAK_OF_ADD, (90.0,), (150.0,), 0.6, "regression"),
        (STORED, (0,), (0,), 1.0, "same"),
        (STORED, (0,), (5,), 0.0, "regression"),
        (STORED, (5,), (0,), float("inf"), "improvement"),
        (CHUNKS, (10,), (20,), None, "neither"),
    ],
)
def test_verdicts(metric, before, after, ratio, verdict):
    change = _compared(before, after, metric)
    assert change.ratio == (ratio if ratio is None else pytest.approx(ratio))
    assert change.verdict == verdict


def test_the_threshold_is_the_users():
    assert _compared((100, 101), (80, 81), threshold=1.5).verdict == "same"
    assert _compared((100, 101), (97, 98), threshold=1.01).verdict == "regression"


def test_compare_fails_on_a_regression_and_only_then(tmp_path, capsys):
    fast = _write(tmp_path, "fast.json", _result(_item("add", "casstore", SPEED, 500, 501, 502)))
    slow = _write(tmp_path, "slow.json", _result(_item("add", "casstore", SPEED, 400, 401, 402)))
    assert main(["compare", str(fast), str(slow)]) == 1
    text = capsys.readouterr().out
    assert "| lifecycle | casstore | throughput (MB/s) | 501 | 401 | 0.80 | **worse** |" in text
    assert "1 measurements compared; beyond a factor of 1.1 and beyond noise: 1 worse, 0 better." in text
    assert "- worse: add, lifecycle, casstore, throughput: 501 became 401 MB/s" in text
    assert "Warning" not in text

    assert main(["compare", str(slow), str(fast)]) == 0
    assert "| 401 | 501 | 1.25 | better |" in capsys.readouterr().out
    assert main(["compare", str(fast), str(slow), "--threshold", "1.3"]) == 0
    assert "0 worse, 0 better" in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        main(["compare", str(fast), str(slow), "--threshold", "0.9"])
    assert refused.value.code == 2
    assert "0.9 is no factor of 1 and more" in capsys.readouterr().err


def test_a_peer_that_changed_is_a_warning_and_no_regression(tmp_path, capsys):
    def result(factor):
        return _result(
            _item("add", "casstore", SPEED, 400, 401),
            _item("add", "hf-xet", SPEED, 200 * factor, 201 * factor),
            _item("add", "hf-xet", SHARE, 0.5),
            missing=("restic",),
        )

    fast, slow = _write(tmp_path, "fast.json", result(1)), _write(tmp_path, "slow.json", result(0.5))
    assert main(["compare", str(fast), str(slow)]) == 0
    text = capsys.readouterr().out
    assert "Warning: hf-xet, which is not casstore, changed in 1 of 2 measurements." in text
    assert "| 0.50 | other tool or machine |" in text
    assert "0 worse, 0 better" in text


def test_casstore_through_its_command_is_casstore():
    found = compare.compare(
        *(
            _result(_item("add", "casstore-cli", SPEED, speed, speed + 1), peers=("casstore-cli",))
            for speed in (400.0, 200.0)
        )
    )
    assert [change.subject for change in found.regressions] == ["casstore-cli"]


def test_compare_prints_json_that_any_parser_reads(tmp_path, capsys):
    items = [_item("size", "casstore", STORED, 5), _item("add", "casstore", SPEED, 100, 101)]
    first = _write(tmp_path, "first.json", _result(*items, _item("add", "copy", SPEED, 9.0)))
    items = [_item("size", "casstore", STORED, 0), _item("add", "casstore", SPEED, 50, 51)]
    second = _write(tmp_path, "second.json", _result(*items, _item("add", "restic", SPEED, 9.0)))
    assert main(["compare", str(first), str(second), "--json"]) == 1

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["threshold"] == 1.1
    assert found["counts"] == {
        "regression": 1,
        "improvement": 1,
        "control": 0,
        "noise": 0,
        "once": 0,
        "same": 0,
        "neither": 0,
    }
    assert found["changes"][0] == {
        "scenario": "size",
        "case": "lifecycle",
        "subject": "casstore",
        "metric": "stored",
        "unit": "bytes",
        "before": 5,
        "after": 0,
        "ratio": None,
        "verdict": "improvement",
    }
    assert found["only_in_first"] == ["add, lifecycle, copy, throughput"]
    assert found["only_in_second"] == ["add, lifecycle, restic, throughput"]


def test_units_and_cases_must_agree_and_samples_taken_twice_are_joined():
    other_unit = Metric("throughput", "GB/s", "higher")
    found = compare.compare(
        _result(_item("add", "casstore", SPEED, 500), _item("add", "copy", SPEED, 1, case="other")),
        _result(_item("add", "casstore", other_unit, 0.5), _item("add", "copy", SPEED, 1)),
    )
    assert found.changes == ()
    assert found.warnings == ("no measurement is in both results: nothing was compared",)
    assert "Only in the first result:\n\n- add, lifecycle, casstore, throughput" in compare.markdown(found)

    twice = _result(_item("add", "casstore", SPEED, 1, 2), _item("add", "casstore", SPEED, 3))
    (change,) = compare.compare(twice, twice).changes
    assert change.before == 2


def test_what_makes_results_hard_to_compare_is_told():
    first = _result(peers=("casstore", "hf-xet", "copy"), missing=("borg",))
    second = _result(peers=("casstore", "copy", "borg"), missing=("hf-xet",), blake3="11")
    second["environment"].update(cpu="Another", memory_gb=16.0, date="later", commit="beef", load_average=9)
    second["environment"]["packages"] = {"casstore": "0.2.0", "numpy": "2.1", "blake3": "1.0"}
    second["options"]["page_cache"] = "cold"
    second["peers"]["casstore"]["version"] = "0.2.0"
    second["peers"]["copy"]["setting"] = "without fsync"
    found = compare.compare(first, second).warnings
    assert set(found) == {
        "cpu differs: A processor before, Another after",
        "memory gb differs: 8.0 before, 16.0 after",
        "page cache differs: warm before, cold after",
        "numpy differs: 2.0 before, 2.1 after",
        "blake3 differs: none before, 1.0 after",
        "hf-xet is missing in the second result only",
        "borg is missing in the first result only",
        "setting of copy differs: as it comes before, without fsync after",
        "corpus lifecycle is not the same: 1 files differ by their hashes",
        "no measurement is in both results: nothing was compared",
    }


def test_throughput_is_plotted_against_the_share_that_size_measured():
    result = _result(
        _item("add", "copy", SPEED, 1000.0),
        _item("add", "copy", SHARE, 1.0),
        _item("add", "casstore", SPEED, 400.0, 300.0, 500.0),
        _item("add", "casstore", SHARE, 0.30),
        _item("size", "casstore", SHARE, 0.25),
        _item("restore", "casstore", SPEED, 700.0),
        _item("restore", "borg", SPEED, 170.0),
    )
    (plot,) = figures.throughput(result)
    assert plot.name == "throughput-lifecycle"
    add, restore = plot.panels
    assert [line.label for line in add.lines] == ["casstore", "copy"]
    assert add.lines[0].points == (figures.Point(0.25, 400.0, 300.0, 500.0),)
    assert [line.label for line in restore.lines] == ["casstore"], "nobody knows what borg stores"


def test_stored_bytes_are_stacked_up_to_the_plain_bytes():
    def part(name, size):
        return _item("size parts", "casstore", Metric(name, "bytes", None), size)

    parts = {"plain": 1000, "saved by dedup": 400, "saved by zstd": 0, "saved by planes": 300, "left": 300}
    result = _result(
        _item("size", "copy", STORED, 1000),
        _item("size", "casstore", STORED, 310),
        *(part(name, size) for name, size in {**parts, "overhead": 10}.items()),
    )
    (bars,) = figures.stored(result)
    assert bars.plain == 1000
    ours, copy = bars.bars
    assert ours == figures.Bar(
        "casstore", 310, (("left", 300), ("saved by planes", 300), ("saved by dedup", 400))
    )
    assert copy == figures.Bar("copy", 1000, (("stored", 1000),))


def test_growth_curves_are_sorted_by_chunks_and_keep_cold_and_warm_apart():
    names = {"open": "ms", "open, cold": "ms", "find": "ms", "find, cold": "ms", "find none, cold": "ms"}
    names |= {"memory": "MB", "private memory": "MB", "index on disk": "MB", "segments": ""}
    result = _result(
        *(
            _item("growth", "casstore", Metric(name, unit, "lower"), float(chunks), case=str(chunks))
            for chunks in (1_000_000, 100_000)
            for name, unit in names.items()
        )
    )
    (plot,) = figures.growth(result)
    shown = {panel.title: [line.label for line in panel.lines] for panel in plot.panels}
    assert shown == {
        "Open": ["open", "open, cold"],
        "Look up 4,096 ids, page cache warm": ["find"],
        "Look up 4,096 ids, page cache cold": ["find, cold", "find none, cold"],
        "Memory beyond imports": ["memory", "private memory"],
        "Index on disk": ["index on disk"],
    }
    for panel in plot.panels:
        for line in panel.lines:
            assert [point.x for point in line.points] == [100_000, 1_000_000]


def test_memory_is_plotted_by_kind_of_file_and_direction():
    sizes = {"20 GB, opaque": 98.0, "0.5 GB, opaque": 95.0, "0.5 GB, safetensors": 90.0}
    result = _result(
        *(_item("memory", "casstore", PEAK_OF_ADD, peak, case=case) for case, peak in sizes.items())
    )
    opaque, safetensors = figures.memory(result)
    assert (opaque.name, safetensors.name) == ("memory-opaque", "memory-safetensors")
    (panel,) = opaque.panels
    assert [(point.x, point.y) for point in panel.lines[0].points] == [(0.5, 95.0), (20.0, 98.0)]


def test_pushes_are_plotted_against_what_was_new_and_their_bytes_are_added_up():
    time, sent = Metric("time", "s", "lower"), Metric("sent", "MB", "lower")
    new = Metric("was missing, encoded", "MB", None)
    items = []
    for step, seconds, megabytes in (("base", 4.0, 80.0), ("variant", 1.0, 10.0), ("other", 0.5, 2.0)):
        case = f"lifecycle, s3: push {step}"
        items += [
            _item("sync", "casstore", time, seconds, case=case),
            _item("sync", "casstore", sent, megabytes, case=case),
            _item("sync", "casstore", new, megabytes, case=case),
            _item("sync", "rclone", time, 5.0, case=case),
            _item("sync", "rclone", sent, 90.0, case=case),
        ]
    items += [
        _item("sync", "casstore", time, 3.0, case="lifecycle, s3: pull all"),
        _item("sync", "casstore", sent, 92.0, case="lifecycle, s3: pull all"),
        _item("sync", "casstore", time, 1.5, case="s3: push 5 models again"),
        _item("sync", "casstore", sent, 0.1, case="s3: push 5 models again"),
        _item("sync", "casstore", sent, 92.0, case="lifecycle, s3: push all at once"),
    ]
    result = _result(*items)
    result["corpora"][0]["models"] = [{"name": name, "files": []} for name in ("base", "variant", "other")]
    (plot,) = figures.sharing(result)
    (panel,) = plot.panels
    assert (plot.name, panel.title) == ("sharing-lifecycle", "s3")
    assert [(line.label, [(point.x, point.y) for point in line.points]) for line in panel.lines] == [
        ("casstore", [(2, 0.5), (10, 1), (80, 4)]),
        ("rclone", [(2, 5), (10, 5), (80, 5)]),
    ]
    (bars,) = figures.sent(result)
    assert (bars.name, bars.plain) == ("sent-lifecycle-s3", 2_000_000)
    assert [(bar.subject, bar.stored) for bar in bars.bars] == [("casstore", 92e6), ("rclone", 270e6)]


def test_nothing_is_plotted_of_scenarios_that_are_absent():
    result = _result(_item("cuts", "fixed cuts inside tensors", CHUNKS, 10.0))
    plotted = (figures.throughput, figures.stored, figures.growth, figures.memory)
    assert [list(prepare(result)) for prepare in plotted] == [[], [], [], []]


def test_labels_are_moved_apart_and_no_further():
    assert figures.spread([0.9, 0.1, 0.5], 0.1) == [0.9, 0.1, 0.5]
    assert figures.spread([0.50, 0.52, 0.9], 0.1) == pytest.approx([0.46, 0.56, 0.9])
    found = figures.spread([0.50, 0.52, 0.51, 0.58], 0.1)
    assert np.diff(sorted(found)) == pytest.approx([0.1, 0.1, 0.1])
    assert np.mean(found) == pytest.approx(np.mean([0.50, 0.52, 0.51, 0.58]))
    assert figures.spread([], 0.1) == []


def test_plots_without_matplotlib_say_what_to_install(tmp_path, monkeypatch, capsys):
    def import_module(name):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return importlib.import_module(name)

    monkeypatch.setattr(plots.importlib, "import_module", import_module)
    path = _write(tmp_path, "result.json", _result())
    assert main(["report", str(path), "--plots", str(tmp_path / "plots")]) == 1
    assert "Plots need matplotlib, which is not here: pip install '.[bench]'" in capsys.readouterr().err


def test_a_page_shows_plots_by_their_place_beside_it(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pages" / "plots"
    drawn = [("Growth", folder / "growth.png")]
    monkeypatch.setattr(plots, "draw", lambda result, to: drawn if to == folder else None)
    path = _write(tmp_path, "result.json", _result())
    page = tmp_path / "pages" / "page.md"
    page.parent.mkdir()
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    assert main(["report", str(path), "--into", str(page), "--plots", str(folder)]) == 0
    assert "![Growth](plots/growth.png)" in page.read_text()
    assert str(folder / "growth.png") in capsys.readouterr().err

    page.write_text("nothing to replace")
    assert main(["report", str(path), "--into", str(page)]) == 1
    assert "results: begin" in capsys.readouterr().err
    assert page.read_text() == "nothing to replace"


@pytest.fixture
def model(tmp_path):
    """A model with a tensor that repeats one of its chunks, and a text."""
    folder = tmp_path / "model"
    folder.mkdir()
    rng = np.random.default_rng(7)
    chunk = rng.standard_normal(1 << 17, np.float32)
    np.save(folder / "weights.npy", np.concatenate([chunk, rng.standard_normal(1 << 17, np.float32), chunk]))
    (folder / "notes.txt").write_text("words " * 2000)
    return folder


def _added(model, work):
    work.mkdir()
    adding = stage_pipeline.Adding(work)
    adding.take(str(model))
    adding.close_pack()
    return adding


def test_every_stage_sees_the_bytes_that_reach_it(model, tmp_path):
    adding = _added(model, tmp_path / "work")
    size = sum(path.stat().st_size for path in model.iterdir())
    repeated = 4 << 17
    for name in (
        stage_pipeline.READ,
        stage_pipeline.FILE_HASH,
        stage_pipeline.CUT,
        stage_pipeline.CHUNK_HASH,
    ):
        assert adding.stages[name].plain == size
    for name in stage_pipeline.ADD[4:]:
        assert adding.stages[name].plain == size - repeated
        assert adding.stages[name].seconds > 0
    assert (
        sum(path.stat().st_size for path in adding.packs) == adding.stages[stage_pipeline.WRITE_PACK].touched
    )

    restoring = stage_pipeline.Restoring(adding)
    for file in adding.files:
        restoring.take(file)
    restoring.close()
    assert {name: stage.plain for name, stage in restoring.stages.items()} == dict.fromkeys(
        stage_pipeline.RESTORE, size
    )


def test_stages_that_do_not_give_the_bytes_back_are_refused(model, tmp_path):
    adding = _added(model, tmp_path / "work")
    weights = max(adding.files, key=lambda file: sum(file.lengths))
    one, _, other, *_ = (
        chunk for chunk, length in zip(weights.ids, weights.lengths, strict=True) if length == 512 << 10
    )
    assert one == other, "the model repeats a chunk"
    other = next(chunk for chunk in weights.ids[1:] if chunk != one)
    places = dict(adding.places)
    restoring = stage_pipeline.Restoring(adding)

    adding.places[one], adding.places[other] = places[other], places[one]
    with pytest.raises(BenchmarkError, match="A restored file is not what was added: nothing is reported"):
        restoring.take(weights)

    restoring.close()


def test_shares_of_time_add_up_and_limits_count_what_is_touched():
    stage = stage_pipeline.Stage
    answer = {
        "add": {
            stage_pipeline.READ: asdict(stage(0.1, 2_000_000, 2_000_000)),
            stage_pipeline.CUT: asdict(stage(0.1, 2_000_000, 10)),
            stage_pipeline.WRITE_PACK: asdict(stage(0.2, 1_000_000, 500_000)),
        },
        "restore": {stage_pipeline.DECODE: asdict(stage(0.5, 2_000_000, 2_000_000))},
        "limits": {stages.COPY: 9000.0, stages.SCAN: 2000.0, stages.DISK: 1000.0},
    }
    metrics = (stages.SPEED, stages.SHARE, stages.PASSES, stages.LIMIT)
    found = {
        (item.case, item.subject, item.metric): item.samples
        for item in stages.measured("tiny", 2_000_000, [answer, answer])
    }
    write = {metric: found["tiny, add", stage_pipeline.WRITE_PACK, metric] for metric in metrics}
    assert write[stages.SPEED] == pytest.approx((5, 5))
    assert write[stages.SHARE] == pytest.approx((50, 50))
    assert write[stages.PASSES] == pytest.approx((50, 50))
    assert write[stages.LIMIT] == pytest.approx((2000, 2000))
    assert ("tiny, add", stage_pipeline.CUT, stages.LIMIT) not in found
    assert found["tiny, add", stages.ALL, stages.SPEED] == pytest.approx((5, 5))
    assert found["tiny, restore", stages.ALL, stages.SPEED] == pytest.approx((4, 4))
    assert found["tiny, this machine at best", stages.COPY, stages.LIMIT] == (9000.0, 9000.0)
