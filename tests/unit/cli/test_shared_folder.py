"""A store in a folder that colleagues use: who is let in, whatever the umask, and who is not."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from fakes.machines import Machines, is_hit, run_pass
from fakes.people import can_become_others, run_as
from fakes.stores import assert_clean, model_of, noise, write_model

from casstore import Store
from casstore.cache.shared_cache import SharedCache
from casstore.errors import ConfigError

TEAM = 54320


@pytest.fixture
def umask():
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def place():
    """Yield a folder that every user can reach; pytest's own are private."""
    folder = tempfile.mkdtemp(prefix="casstore-test-")
    os.chmod(folder, 0o755)
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
def people(place):
    """Return Ann and Bob, who are in the team, and Eve, who is not: each with a home, and a file to add."""
    found = {}
    for uid, (name, groups) in enumerate({"ann": [TEAM], "bob": [TEAM], "eve": []}.items(), TEAM + 1):
        home = place / name
        home.mkdir(mode=0o700)
        (home / "model.bin").write_bytes(noise(uid, 200_000))
        if can_become_others():
            for path in (home, home / "model.bin"):
                os.chown(path, uid, uid)
        found[name] = {"uid": uid, "groups": groups, "home": str(home)}
    return found


@pytest.fixture
def team_folder(place, people):
    folder = place / "team"
    folder.mkdir()
    if can_become_others():
        os.chown(folder, people["ann"]["uid"], TEAM)
    os.chmod(folder, 0o2775)
    return folder


def modes(folder):
    """Return the modes of a store's folders, and of its objects."""
    folders, objects = set(), set()
    for place, _, names in os.walk(folder):
        folders.add(stat.S_IMODE(os.stat(place).st_mode))
        if not place.endswith(("gc", ".tmp")):
            objects |= {stat.S_IMODE(os.stat(os.path.join(place, name)).st_mode) for name in names}
    return folders, objects


FOR_THE_GROUP = ({0o2770}, {0o440})
PRIVATE = ({0o700}, {0o400})


def test_colleagues_push_and_pull_and_others_do_not(people, team_folder):
    ann, bob, eve = people["ann"], people["bob"], people["eve"]
    store = team_folder / "store"
    steps = [(ann, ["init", "--shared", "group", "--store", str(store)])]
    for person, name in ((ann, "ann"), (bob, "bob")):
        steps += [
            (person, ["init"]),
            (person, ["add", f"{person['home']}/model.bin", "--ref", f"models/{name}"]),
            (person, ["push", str(store)]),
        ]
    steps += [(person, ["pull", str(store)]) for person in (bob, ann)]
    steps += [(person, ["ls", "-q"]) for person in (bob, ann)]
    # Each can read what the other one wrote, and remove it.
    steps += [
        (ann, ["check", "--read-data", "--store", str(store)]),
        (ann, ["rm", "models/bob", "--store", str(store)]),
        (bob, ["check", "--read-data", "--store", str(store)]),
    ]
    refused = [(eve, ["init"]), (eve, ["pull", str(store)]), (eve, ["push", str(store)])]
    results = run_as(steps + (refused if can_become_others() else []))
    listed = []
    for at, (_, arguments) in enumerate(steps):
        code, out, error = results[at]
        assert code == 0, (arguments, error)
        if arguments[0] == "ls":
            listed.append(out.split())
    assert listed == [["models/ann", "models/bob"]] * 2
    assert modes(store) == FOR_THE_GROUP
    if can_become_others():
        owners = {os.stat(path).st_uid for path in (store / "packs").rglob("*") if path.is_file()}
        assert owners == {ann["uid"], bob["uid"]}
        assert {os.stat(path).st_gid for path in store.rglob("*")} == {TEAM}
    else:
        os.chmod(store, 0)  # as it is to a stranger
        results += run_as(refused)
        os.chmod(store, 0o2770)
    for code, out, error in results[-2:]:
        assert (code, out) == (1, "")
        assert len(error.splitlines()) == 1
        assert "Permission denied" in error
        assert "in that group" in error


def test_a_private_store_stays_private(people, team_folder):
    ann, bob = people["ann"], people["bob"]
    store = team_folder / "store"
    made, tried, _, (code, _, error) = run_as(
        [
            (ann, ["init", "--store", str(store)]),
            (ann, ["init", "--shared", "group", "--store", str(store)]),
            (bob, ["init"]),
            (bob, ["push", str(store)]),
        ]
    )
    assert made[0] == 0
    assert tried[0] == 1
    assert "private" in tried[2]
    assert "chmod" in tried[2]
    folders, objects = modes(store)
    assert ({mode & 0o777 for mode in folders}, objects) == PRIVATE
    if can_become_others():
        assert code == 1
        assert "Permission denied" in error


def test_what_the_refusal_advises_opens_a_private_store(tmp_path, umask):
    with Store(tmp_path / "store", create=True) as store:
        store.add(write_model(model_of(a=noise(1, 100_000)), tmp_path / "one"), ref="models/one")
    with pytest.raises(ConfigError, match="private") as caught:
        Store(tmp_path / "store", shared="group")
    advice = str(caught.value).partition("Its owner can: ")[2]
    assert os.system(advice) == 0
    with Store(tmp_path / "store") as store:
        store.add(write_model(model_of(a=noise(2, 100_000)), tmp_path / "two"), ref="models/two")
        assert_clean(store)
    assert modes(tmp_path / "store") == FOR_THE_GROUP


def test_a_folder_that_was_made_for_it(tmp_path, umask):
    (tmp_path / "store").mkdir(mode=0o755)
    Store(tmp_path / "store", create=True, shared="group").close()
    assert modes(tmp_path / "store") == FOR_THE_GROUP


def test_a_folder_of_somebody_else_is_not_opened_up(tmp_path, monkeypatch):
    (tmp_path / "store").mkdir(mode=0o755)

    def chmod(self, path, mode):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("casstore.backend.local.syscalls.SystemCalls.chmod", chmod)
    with pytest.raises(ConfigError, match="Its owner"):
        Store(tmp_path / "store", create=True, shared="group")


def test_a_shared_cache_in_a_folder(tmp_path, umask):
    with Store(tmp_path / "mine", create=True) as mine:
        mine.add(write_model(model_of(a=noise(1, 100_000)), tmp_path / "one"), ref="models/one")
        mine.add(write_model(model_of(a=noise(2, 100_000)), tmp_path / "two"), ref="models/two")
        folder = tmp_path / "team/shared"
        with contextlib.closing(SharedCache(str(folder), shared="group")) as first:
            first.store(mine, ["models/one"])
        # Who comes later need not say it.
        with contextlib.closing(SharedCache(folder.as_uri())) as second:
            second.store(mine, ["models/two"])
            assert_clean(second.remote)
        assert modes(folder) == FOR_THE_GROUP
        with contextlib.closing(SharedCache(str(tmp_path / "private"))) as private:
            private.store(mine, ["models/one"])
        assert modes(tmp_path / "private") == PRIVATE
    assert modes(tmp_path / "mine") == PRIVATE


def test_pipelines_share_a_folder(tmp_path, umask):
    shared = (tmp_path / "team").as_uri()
    with contextlib.closing(Machines(tmp_path / "one", shared=shared, settings={"shared": "group"})) as one:
        model_id = run_pass(one.open())
    with contextlib.closing(Machines(tmp_path / "two", shared=shared)) as two:
        assert is_hit(two.open(), model_id)
        run_pass(two.open(), seed=1, config={"bits": 4})
        assert modes(two.open().dirs.store)[1] == {0o400}
    assert modes(tmp_path / "team") == FOR_THE_GROUP
