"""The benchmarks still run, from corpus to report, and refuse what they must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PEER_SCENARIOS = {"size", "add", "add-again", "one-more", "restore", "gc", "memory"}
OTHER_SCENARIOS = {"read-tensor", "concurrent", "serve", "sync", "refs", "growth", "cuts", "deltas"}
DETAILS = {"size parts", "size overhead", "deltas parts"}


def _benchmarks(*arguments, expected=0):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expected, done.stderr
    return done


def test_smoke_run_measures_every_scenario_and_reports(smoke, tmp_path):
    result = smoke.result
    measured = {(item["scenario"], item["subject"]) for item in result["measurements"]}
    assert {scenario for scenario, _ in measured} == PEER_SCENARIOS | OTHER_SCENARIOS | DETAILS
    assert {(scenario, peer) for scenario in PEER_SCENARIOS for peer in ("casstore", "copy")} <= measured
    assert all(item["samples"] and min(item["samples"]) >= 0 for item in result["measurements"])
    pushed = {
        (item["case"], item["subject"])
        for item in result["measurements"]
        if item["scenario"] == "sync" and item["metric"]["name"] == "time"
    }
    assert ("synthetic:4, folder: push base", "casstore") in pushed
    # Elsewhere than in CI, somebody may not be allowed to make a network.
    if os.environ.get("CI") or "missing" not in result["companions"]["network"]:
        for carrier in ("casstore", "whole-files"):
            assert ("synthetic:4, s3: pull all", carrier) in pushed
    shares = {
        item["subject"]: item["median"]
        for item in result["measurements"]
        if item["metric"]["name"] == "stored share"
    }
    assert shares["copy"] == 1
    assert 0.3 < shares["casstore"] < 0.9
    # Trials of these two scenarios share their stores, which go with the run.
    left = [name for name in smoke.left if not name.startswith(("again-", "restore-"))]
    assert left == ["user-cache"], "a scenario left files behind"
    assert list((smoke.cache / "work").iterdir()) == []

    report = _benchmarks("report", smoke.out)
    assert report.stdout == smoke.printed
    assert "casstore against copy" in report.stdout

    page = tmp_path / "page.md"
    page.write_text("above\n<!-- results: begin -->\nlast year\n<!-- results: end -->\nbelow\n")
    _benchmarks("report", smoke.out, "--into", page)
    text = page.read_text()
    assert text.startswith("above\n<!-- results: begin -->\n")
    assert text.endswith("<!-- results: end -->\nbelow\n")
    assert report.stdout.strip() in text
    assert "last year" not in text


def test_stages_are_measured_and_reported(benchmark_cache, tmp_path):
    out, work = tmp_path / "stages.json", tmp_path / "work"
    run = _benchmarks("stages", "--smoke", "--cache", benchmark_cache, "--work", work, "--out", out)
    measurements = json.loads(out.read_text())["measurements"]
    shares = {}
    for item in measurements:
        if item["metric"]["name"] == "share of time":
            shares.setdefault(item["case"], {})[item["subject"]] = item["median"]
    assert set(shares) == {"synthetic:4, add", "synthetic:4, restore"}
    for found in shares.values():
        assert abs(found.pop("all, one after another") - sum(found.values())) < 1e-6
        assert min(found.values()) > 0
    assert {"encode", "decode and compare", "write and fsync"} <= set(shares["synthetic:4, add"])
    assert "| synthetic:4, add | read from the page cache |" in run.stdout
    assert list(work.iterdir()) == []


def test_upkeep_of_a_large_store_is_measured(benchmark_cache, tmp_path):
    out, work = tmp_path / "scale.json", tmp_path / "work"
    run = _benchmarks("scale", "--smoke", "--cache", benchmark_cache, "--work", work, "--out", out)
    measured = {
        item["metric"]["name"]: item["median"] for item in json.loads(out.read_text())["measurements"]
    }
    assert {"ls", "du", "stats", "plan", "gc, nothing to do", "gc", "memory of plan"} <= measured.keys()
    assert measured["packs deleted"] >= 1
    assert "2,000 chunks, 20 packs, 10 refs" in run.stdout
    assert list(work.iterdir()) == []


def test_a_peer_that_is_missing_is_reported_as_missing(tmp_path):
    shadow = tmp_path / "shadow" / "hf_xet"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ImportError('not here')\n")
    program = (
        "import sys; from pathlib import Path; from benchmarks import harness, report; "
        "options = harness.Options(peers=('hf-xet',), cache=Path(sys.argv[1])); "
        "made = harness.Harness(options, variables={'PYTHONPATH': sys.argv[2]}); "
        "print(report.markdown(made.result([]))); made.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "cache"), str(shadow.parent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "hf-xet: missing: hf_xet is not installed" in done.stdout
