"""Names for stores elsewhere."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from casstore.errors import BackendError, ConfigError
from casstore.machine.remotes import Remotes


def test_are_kept_for_each_store(own_home):
    one, other = Remotes("aa"), Remotes("bb")
    assert one.list() == {}
    one.add("hub", "s3://bucket/models")
    other.add("hub", "memory://x")
    assert Remotes("aa").list() == {"hub": "s3://bucket/models"}
    assert Remotes("bb").list() == {"hub": "memory://x"}
    assert one.remove("hub") == "s3://bucket/models"
    assert (one.list(), other.list()) == ({}, {"hub": "memory://x"})
    path = own_home / "config" / "casstore" / "remotes.json"
    assert json.loads(path.read_text()) == {"bb": {"hub": "memory://x"}}
    assert sorted(os.listdir(path.parent)) == ["remotes.json", "remotes.json.lock"]


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remotes = Remotes("aa")
    assert remotes.add("near", "./shared") == f"{tmp_path}/shared"
    assert remotes.add("here", "relative") == f"{tmp_path}/relative"


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:password@bucket/x",
        "sftp://someone@host/x",
        "https://host/x?sig=abcdef",
        "abfs://key:word@account/x",
        "",
    ],
)
def test_secrets_are_refused_and_not_written(own_home, url):
    with pytest.raises(ConfigError) as caught:
        Remotes("aa").add("hub", url)
    assert "password" not in str(caught.value)
    assert "abcdef" not in str(caught.value)
    assert not (own_home / "config" / "casstore" / "remotes.json").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-x", "x" * 65, "s3://x", "ä"])
def test_names_that_could_be_something_else_are_refused(name):
    with pytest.raises(ConfigError, match="cannot name a remote"):
        Remotes("aa").add(name, "memory://x")


def test_a_name_means_one_place():
    remotes = Remotes("aa")
    remotes.add("hub", "memory://x")
    remotes.add("hub", "memory://x")
    with pytest.raises(ConfigError, match=r"memory://x\. Remove it first"):
        remotes.add("hub", "memory://y")
    with pytest.raises(ConfigError, match="Known remotes: hub"):
        remotes.remove("hup")


def test_what_people_type_is_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    remotes = Remotes("aa")
    remotes.add("hub", "memory://x")
    assert remotes.resolve("hub") == "memory://x"
    for place in ("s3://bucket", "/abs", "./rel", "a/b", "folder"):
        assert remotes.resolve(place) == place
    with pytest.raises(ConfigError, match=r"No remote named 'other'\. Known remotes: hub"):
        remotes.resolve("other")
    with pytest.raises(ConfigError, match="There are no remotes yet"):
        Remotes("bb").resolve("other")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"aa": []}', '{"aa": {"x": 1}}', "\xff"])
def test_a_damaged_file_is_named_and_left_alone(own_home, text):
    path = own_home / "config" / "casstore" / "remotes.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    for act in (lambda: Remotes("aa").list(), lambda: Remotes("aa").add("hub", "memory://x")):
        with pytest.raises(ConfigError, match=r"remotes\.json"):
            act()
    assert path.read_bytes() == text.encode("latin-1")


def test_a_place_that_cannot_be_written_is_an_error_of_ours(own_home):
    (own_home / "config").mkdir()
    (own_home / "config" / "casstore").write_text("in the way")
    with pytest.raises(BackendError, match=r"remotes\.json"):
        Remotes("aa").add("hub", "memory://x")


def test_a_pipe_in_its_place_stops_nobody(own_home):
    folder = own_home / "config" / "casstore"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "remotes.json")
    with pytest.raises(ConfigError, match=r"remotes\.json.* is not in casstore's format"):
        Remotes("aa").resolve("hub")


def add(number):
    Remotes("aa").add(f"r{number}", f"memory://{number}")


def test_processes_do_not_lose_each_others(own_home):
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        list(pool.map(add, range(24)))
    assert len(Remotes("aa").list()) == 24
