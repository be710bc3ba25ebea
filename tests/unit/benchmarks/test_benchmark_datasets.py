"""Corpora are built once from versioned recipes, know who was made from whom, and are refused when broken."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import datasets
from benchmarks.datasets import checkpoints, docstrings, ladder, lifecycle, merges, packages, releases, unseen
from benchmarks.datasets.corpus import CorpusError, Recipe
from benchmarks.datasets.weights import Tensor

TOKENS = ["[UNK]", "[CLS]", "[SEP]", "open", "##ing", "file", ".", "a"]
VOCABULARY = {token: number for number, token in enumerate(TOKENS)}


def _register(monkeypatch, *, version, content, parents=None):
    """Make `tiny` a corpus of models with one file each; return the list that every build is noted in."""
    parents = parents or {"base": ()}
    builds = []

    def build(folder, cache):
        builds.append(version)
        for name in parents:
            (folder / name).mkdir()
            (folder / name / "weights.bin").write_bytes(content)
        return parents

    monkeypatch.setitem(datasets.CORPORA, "tiny", lambda _: Recipe(version, build, ("numpy",)))
    return builds


def test_unknown_names_are_refused_with_those_that_exist(tmp_path):
    with pytest.raises(CorpusError, match=r"no corpus 'lifecycles'.*lifecycle, releases.*synthetic\[:MB\]"):
        datasets.load("lifecycles", cache=tmp_path)
    for name in ("fused:4", "lifecycle:4"):
        with pytest.raises(CorpusError, match=f"no corpus '{name}'"):
            datasets.load(name, cache=tmp_path)
    for name in ("synthetic:0", "synthetic:big", "synthetic:-4"):
        with pytest.raises(CorpusError, match="synthetic:64 is 64 MB"):
            datasets.load(name, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "lineage",
    [
        lifecycle.LINEAGE,
        releases.lineage(releases.RELEASES),
        ladder.lineage(),
        merges.LINEAGE,
        checkpoints.lineage(),
    ],
    ids=["lifecycle", "releases", "ladder", "merges", "checkpoints"],
)
def test_every_model_comes_after_the_models_that_it_was_made_from(lineage):
    made = set()
    for name, parents in lineage.items():
        assert made.issuperset(parents), name
        assert len(parents) <= 2, name
        made.add(name)


def test_lifecycle_has_one_root_and_its_checkpoints_follow_each_other():
    assert [name for name, parents in lifecycle.LINEAGE.items() if not parents] == ["base"]
    checkpoints = [f"step-{step}" for step in lifecycle.CHECKPOINTS]
    assert [lifecycle.LINEAGE[name] for name in checkpoints] == [("base",), ("step-30",), ("step-60",)]
    assert lifecycle.LINEAGE["average"] == ("base", checkpoints[-1])


def test_releases_follow_the_version_before_and_are_pinned():
    lineage = releases.lineage(releases.RELEASES)
    assert lineage["silero-vad-5.1"] == ()
    assert lineage["silero-vad-6.0.0"] == ("silero-vad-5.1.2",)
    families = {}
    for release in releases.RELEASES:
        families.setdefault(release.package, []).append(tuple(map(int, release.version.split("."))))
    assert len(families) >= 3
    assert all(
        2 <= len(versions) <= 4 and versions == sorted(set(versions)) for versions in families.values()
    )
    hashes = {release.sha256 for release in releases.RELEASES}
    assert len(hashes) == len(releases.RELEASES)
    assert all(len(bytes.fromhex(item)) == hashlib.sha256().digest_size for item in hashes)


def test_a_corpus_is_built_once_and_describes_what_was_built(tmp_path, monkeypatch):
    parents = {"base": (), "tuned": ("base",), "average": ("base", "tuned")}
    builds = _register(monkeypatch, version="1", content=b"weights", parents=parents)
    first = datasets.load("tiny", cache=tmp_path)
    again = datasets.load("tiny", cache=tmp_path)
    assert builds == ["1"]
    assert first == again
    assert [(model.name, model.base, model.second_parent) for model in again.models] == [
        ("base", None, None),
        ("tuned", "base", None),
        ("average", "base", "tuned"),
    ]
    assert again.size == 21
    assert [path.read_bytes() for path in again.paths()] == [b"weights"] * 3
    assert again.made_with == {"numpy": np.__version__}
    assert json.loads(json.dumps(again.summary())) == json.loads((again.root / "manifest.json").read_text())


def test_another_version_of_a_recipe_builds_again(tmp_path, monkeypatch):
    _register(monkeypatch, version="1", content=b"first")
    datasets.load("tiny", cache=tmp_path)
    builds = _register(monkeypatch, version="2", content=b"second")
    corpus = datasets.load("tiny", cache=tmp_path)
    assert builds == ["2"]
    assert corpus.recipe == "2"
    assert [path.read_bytes() for path in corpus.paths()] == [b"second"]
    assert os.listdir(tmp_path / "corpora") == ["tiny"]


def test_a_manifest_without_second_parents_and_tools_is_read(tmp_path, monkeypatch):
    builds = _register(monkeypatch, version="1", content=b"weights")
    path = datasets.load("tiny", cache=tmp_path).root / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["made_with"]
    for model in manifest["models"]:
        del model["second_parent"]
    path.write_text(json.dumps(manifest))
    assert datasets.load("tiny", cache=tmp_path).models[0].second_parent is None
    assert builds == ["1"]


def _missing(folder):
    (folder / "models/base/weights.bin").unlink()


def _longer(folder):
    (folder / "models/base/weights.bin").write_bytes(b"weights and more")


def _changed(folder):
    (folder / "models/base/weights.bin").write_bytes(b"weIghts")


def _added(folder):
    (folder / "models/base/weights.tmp").write_bytes(b"")


def _torn_manifest(folder):
    (folder / "manifest.json").write_text('{"name": "ti')


def _foreign_manifest(folder):
    (folder / "manifest.json").write_text('{"models": [1]}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, r"weights\.bin is missing"),
        (_longer, r"weights\.bin is not what the manifest says"),
        (_changed, r"weights\.bin is not what the manifest says"),
        (_added, r"weights\.tmp is not in the manifest"),
        (_torn_manifest, r"manifest\.json is not a manifest"),
        (_foreign_manifest, r"manifest\.json is not a manifest"),
    ],
)
def test_a_broken_corpus_is_refused_and_says_what_to_delete(tmp_path, monkeypatch, damage, message):
    builds = _register(monkeypatch, version="1", content=b"weights")
    root = datasets.load("tiny", cache=tmp_path).root
    damage(root)
    with pytest.raises(CorpusError, match=f"{message}.*delete {root}, and the corpus is built again"):
        datasets.load("tiny", cache=tmp_path)
    assert builds == ["1"]


def test_a_failed_build_leaves_nothing_behind(tmp_path, monkeypatch):
    def build(folder, cache):
        (folder / "base").mkdir()
        raise CorpusError("No luck.")

    monkeypatch.setitem(datasets.CORPORA, "tiny", lambda _: Recipe("1", build))
    with pytest.raises(CorpusError, match="No luck"):
        datasets.load("tiny", cache=tmp_path)
    assert os.listdir(tmp_path / "corpora") == []


def _wheel(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return releases.Release("pack", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def test_unseen_packages_are_pinned_and_none_of_those_that_were_tuned_on():
    assert len({release.package for release in unseen.RELEASES}) == len(unseen.RELEASES) >= 10
    assert {release.package for release in unseen.RELEASES}.isdisjoint(
        release.package for release in releases.RELEASES
    )


def test_releases_keep_the_weights_of_a_wheel_and_nothing_else(tmp_path):
    wheel = tmp_path / "pack-1.0-py3-none-any.whl"
    files = {
        "pack/__init__.py": b"",
        "pack/data/model.onnx": b"onnx",
        "pack/model.pt": b"pt",
        "pack/x.txt": b"",
    }
    release = _wheel(wheel, files)
    releases.extract_weights(wheel, release, tmp_path / "model")
    found = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*.*")}
    assert found == {"pack/data/model.onnx", "pack/model.pt"}
    assert (tmp_path / "model/pack/data/model.onnx").read_bytes() == b"onnx"


def test_another_wheel_and_one_without_weights_are_refused(tmp_path):
    wheel = tmp_path / "pack-1.0-py3-none-any.whl"
    release = _wheel(wheel, {"pack/model.onnx": b"released"})
    _wheel(wheel, {"pack/model.onnx": b"replaced"})
    with pytest.raises(CorpusError, match=r"any\.whl is not the wheel that these benchmarks"):
        releases.extract_weights(wheel, release, tmp_path / "model")
    empty = _wheel(wheel, {"pack/__init__.py": b""})
    with pytest.raises(CorpusError, match="ships no weights"):
        releases.extract_weights(wheel, empty, tmp_path / "model")


def test_releases_builds_every_release_from_its_own_wheel(tmp_path, monkeypatch):
    pinned = []
    for version in ("1.0", "1.1"):
        path = tmp_path / f"pack-{version}-py3-none-any.whl"
        sha256 = _wheel(path, {"pack/model.onnx": version.encode()}).sha256
        pinned.append(releases.Release("pack", version, sha256))

    def download(requirement, folder):
        return tmp_path / f"{requirement.replace('==', '-')}-py3-none-any.whl"

    monkeypatch.setattr(releases, "RELEASES", tuple(pinned))
    monkeypatch.setattr(releases, "download_wheel", download)
    corpus = datasets.load("releases", cache=tmp_path / "cache")
    assert [(model.name, model.base) for model in corpus.models] == [
        ("pack-1.0", None),
        ("pack-1.1", "pack-1.0"),
    ]
    assert [path.read_text() for path in corpus.paths()] == ["1.0", "1.1"]


def test_a_failed_download_says_what_was_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(CorpusError, match="casstore-no-such-package==1 cannot be downloaded from PyPI"):
        packages.download_wheel("casstore-no-such-package==1", tmp_path)


def test_what_building_needs_is_named_with_how_to_install_it():
    packages.require("lifecycle", "numpy", "blake3")
    with pytest.raises(CorpusError, match=r"corpus lifecycle needs no_torch, no_onnx: python -m pip .*bench"):
        packages.require("lifecycle", "numpy", "no_torch", "no_onnx")


def test_calls_in_a_new_process_return_and_raise_here():
    assert packages.call_in_new_process("os", "getpid") != os.getpid()
    assert packages.call_in_new_process("benchmarks.datasets.docstrings", "words", "Öffne it") == [
        "offne",
        "it",
    ]
    with pytest.raises(CorpusError, match="no_torch"):
        packages.call_in_new_process("benchmarks.datasets.packages", "require", "lifecycle", "no_torch")


def test_training_text_is_names_with_their_docstrings(tmp_path):
    (tmp_path / "tests").mkdir()
    code = 'def {}():\n    "Return the path of a file that is known to exist."\n'
    (tmp_path / "a.py").write_text(code.format("find_HTTPFile2") + 'class Short:\n    "Too short."\n')
    (tmp_path / "b.py").write_text(code.format("repeated"))
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "tests" / "c.py").write_text(code.replace("file", "test").format("of_a_test"))
    assert docstrings.pairs(tmp_path) == [
        ("find http file 2", "Return the path of a file that is known to exist.")
    ]
    real = dict(docstrings.pairs(Path(json.__file__).parent))
    assert real["load"].startswith("Deserialize")


def test_tokens_are_the_longest_known_pieces():
    assert docstrings.encode("Opening a file.", VOCABULARY, longest=20) == [1, 3, 4, 7, 5, 6, 2]
    assert docstrings.encode("Opening a file.", VOCABULARY, longest=5) == [1, 3, 4, 7, 2]
    assert docstrings.encode("closing " + "a" * 101, VOCABULARY, longest=5) == [1, 0, 0, 2]


def test_added_words_are_those_that_were_split_and_start_as_the_mean_of_their_pieces():
    words = lifecycle.new_words(["Opening opening file", "closing a file"], VOCABULARY, count=1)
    assert words == ["opening"]
    embedding = Tensor("F32", np.arange(16, dtype=np.float32).reshape(8, 2))
    extended = lifecycle.with_words(embedding, words, VOCABULARY)
    assert extended.array[:8].tobytes() == embedding.array.tobytes()
    assert extended.array[8:].tolist() == [[7.0, 8.0]]


def test_average_and_adapter_are_what_they_say():
    rng = np.random.default_rng(26)
    name = "encoder.layer.0.attention.self.query.weight"
    before = rng.standard_normal((12, 12)).astype(np.float32)
    change = np.outer(rng.standard_normal(12), rng.standard_normal(12)).astype(np.float32)
    base = {name: Tensor("F32", before), "ids": Tensor("I64", np.arange(3))}
    tuned = {name: Tensor("F32", before + change), "ids": Tensor("I64", np.arange(3))}
    mean = lifecycle.average(base, tuned)
    assert mean[name].array.dtype == np.float32
    np.testing.assert_allclose(mean[name].array, before + change / 2, atol=1e-6)
    assert mean["ids"] is base["ids"]
    adapter = lifecycle.low_rank_difference(base, tuned, rank=1)
    prefix = "base_model.model.encoder.layer.0.attention.self.query"
    down, up = (adapter[f"{prefix}.lora_{part}.weight"].array for part in "AB")
    assert (down.shape, up.shape) == ((1, 12), (12, 1))
    np.testing.assert_allclose(up @ down, change, atol=1e-5)
    assert len(adapter) == 2
