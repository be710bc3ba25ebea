"""The Hub's own client, unchanged, reads models from the server. Nothing of it is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from fakes.hub_server import hub_server
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from casstore.integrations.hub.access import read_tokens

REPO = "org/minilm"
FILES = ["1_Pooling/config.json", "README.md", "config.json", "empty.txt", "model.safetensors"]


@pytest.fixture
def api(served):
    return HfApi(endpoint=served.url, token=False)


@pytest.fixture
def commit(store):
    return store.resolve("models/org/minilm").model_id[:40]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def test_a_snapshot_is_the_model(served, folder, tmp_path, commit):
    place = snapshot_download(REPO, endpoint=served.url, cache_dir=tmp_path, token=False)
    assert Path(place).name == commit
    assert contents(place) == contents(folder)
    # Another model, by a tag with a slash, shares the files that are the same.
    older = snapshot_download(
        REPO, revision="release/1.0", endpoint=served.url, cache_dir=tmp_path, token=False
    )
    assert older != place
    assert os.path.realpath(f"{older}/README.md") == os.path.realpath(f"{place}/README.md")


def test_a_second_download_asks_for_no_file(served, tmp_path, commit):
    def files_asked():
        return sum(
            sample.value
            for metric in served.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "casstore_requests_total" and sample.labels["kind"] == "file"
        )

    snapshot_download(REPO, endpoint=served.url, cache_dir=tmp_path, token=False)
    asked = files_asked()
    snapshot_download(REPO, endpoint=served.url, cache_dir=tmp_path, token=False)
    snapshot_download(REPO, revision=commit, endpoint=served.url, cache_dir=tmp_path, token=False)
    hf_hub_download(
        REPO, "config.json", revision=commit, endpoint=served.url, cache_dir=tmp_path, token=False
    )
    assert files_asked() == asked


def test_a_local_folder(served, folder, tmp_path):
    snapshot_download(REPO, endpoint=served.url, local_dir=tmp_path / "local", token=False)
    assert sorted(name for name in contents(tmp_path / "local") if not name.startswith(".cache")) == FILES
    path = hf_hub_download(REPO, "config.json", endpoint=served.url, local_dir=tmp_path / "one", token=False)
    assert Path(path).read_bytes() == (folder / "config.json").read_bytes()


def test_an_empty_file_and_one_that_was_cut(served, folder, tmp_path):
    path = hf_hub_download(REPO, "empty.txt", endpoint=served.url, cache_dir=tmp_path, token=False)
    assert Path(path).read_bytes() == b""


def test_what_is_not_there(served, tmp_path, api):
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/none")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("org/minilm")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="none")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "none.json", endpoint=served.url, cache_dir=tmp_path, token=False)
    # The client remembers that this commit has no such file.
    assert list(tmp_path.rglob(".no_exist/*/none.json"))
    assert not api.file_exists(REPO, "none.json")
    assert api.file_exists(REPO, "config.json")
    assert api.repo_exists(REPO)
    assert not api.repo_exists("org/none")
    assert api.revision_exists(REPO, "v1")
    assert not api.revision_exists(REPO, "v2")
    with pytest.raises(HfHubHTTPError, match="read-only"):
        api.create_repo("org/new", token="hf_something_long")
    with pytest.raises(HfHubHTTPError, match="404"):
        list(api.get_repo_discussions(REPO))


def test_what_the_client_reads_of_a_model(api, folder, commit, store):
    info = api.model_info(REPO, files_metadata=True)
    assert (info.sha, info.pipeline_tag, info.card_data["license"]) == (
        commit,
        "feature-extraction",
        "apache-2.0",
    )
    assert [item.rfilename for item in info.siblings] == FILES
    assert info.last_modified == store.ls("models/org/minilm")[0].time.replace(
        microsecond=info.last_modified.microsecond
    )
    assert sorted(item.path for item in api.list_repo_tree(REPO, recursive=True)) == sorted(
        [*FILES, "1_Pooling"]
    )
    assert sorted(api.list_repo_files(REPO)) == FILES
    [weights, pooling] = api.get_paths_info(REPO, ["model.safetensors", "1_Pooling", "none"], expand=True)
    assert weights.lfs.size == weights.size == (folder / "model.safetensors").stat().st_size
    assert pooling.path == "1_Pooling"
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert {item.name: item.target_commit for item in refs.branches} == {"main": commit}
    assert [item.name for item in refs.tags] == ["release/1.0", "v1"]
    commits = api.list_repo_commits(REPO)
    assert [item.commit_id for item in commits] == [commit, refs.tags[0].target_commit]
    assert [item.commit_id for item in api.list_repo_commits(REPO, revision="v1")] == [commits[1].commit_id]
    assert [item.id for item in api.list_models(search="minilm", author="org")] == [REPO]
    assert [item.id for item in api.list_models(limit=1)] == ["minilm"]
    api.auth_check(REPO)


def test_safetensors_metadata(api):
    found = api.get_safetensors_metadata(REPO)
    assert found.parameter_count == {"F32": 700 * 512, "F16": 512}
    assert found.files_metadata["model.safetensors"].tensors["weight"].shape == [700, 512]


def test_the_file_system(served, folder):
    fs = HfFileSystem(endpoint=served.url, token=False, skip_instance_cache=True)
    assert sorted(fs.find(REPO)) == [f"{REPO}/{name}" for name in FILES]
    assert fs.cat(f"{REPO}/config.json") == (folder / "config.json").read_bytes()
    assert fs.cat(f"{REPO}@release%2F1.0/config.json") != (folder / "config.json").read_bytes()
    with fs.open(f"{REPO}/model.safetensors") as file:
        file.seek(-100, os.SEEK_END)
        assert file.read() == (folder / "model.safetensors").read_bytes()[-100:]
    assert fs.info(f"{REPO}/1_Pooling")["type"] == "directory"
    assert fs.info(f"{REPO}/config.json", expand_info=True)["last_commit"] is not None
    assert not fs.exists(f"{REPO}/none")


def test_the_command_line_of_the_client(served, folder, tmp_path):
    """`hf download` and `hf cache verify` by HF_ENDPOINT alone."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": served.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def hf(*arguments):
        done = subprocess.run(
            [Path(sys.executable).with_name("hf"), *arguments],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    hf("download", REPO, "--local-dir", str(tmp_path / "local"))
    assert (tmp_path / "local" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    hf("cache", "verify", REPO, "--local-dir", str(tmp_path / "local"))
    # One that differs is found, so what the server says is what the files are.
    (tmp_path / "local" / "config.json").write_text("{}")
    with pytest.raises(AssertionError, match=r"config\.json"):
        hf("cache", "verify", REPO, "--local-dir", str(tmp_path / "local"))


def test_with_a_token(store, tmp_path):
    (tmp_path / "tokens").write_text("# who may read\ncorrect-horse-battery\nanother-token-of-a-reader\n")
    with hub_server(store, tokens=read_tokens(tmp_path / "tokens")) as app:
        api = HfApi(endpoint=app.url)
        for token in ("correct-horse-battery", "another-token-of-a-reader"):
            assert api.model_info(REPO, token=token).id == REPO
            assert api.whoami(token=token)["name"] == "reader"
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(REPO, token=False)
        with pytest.raises(HfHubHTTPError, match="Invalid"):
            api.model_info(REPO, token="correct-horse-batterx")


def test_the_version_is_the_pinned_one():
    assert huggingface_hub.__version__ == "2.4.0"
