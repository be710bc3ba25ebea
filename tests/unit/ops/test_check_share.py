"""`check` with a share of the data: the packs take turns, damage is met in the end, and no wrong note hides any."""

from __future__ import annotations

import os
import threading
import time

import pytest
from click.testing import CliRunner
from fakes.predicting import predicting, relative
from fakes.stores import model_of, noise, write_model

from casstore import ConfigError, Store
from casstore.cli import app
from casstore.machine.packs_read import PacksRead
from casstore.objects import stored_packs
from casstore.objects.keys import PACK_PREFIX, pack_id_of
from casstore.objects.reading import whole_pack

PACKS = 6


@pytest.fixture
def root(tmp_path):
    """A store of some packs of about the same size."""
    with Store(tmp_path / "store", create=True, durability="none") as store:
        for number in range(PACKS):
            store.add(
                write_model(model_of(f=noise(number, 60_000)), tmp_path / f"m{number}"), ref=f"m{number}"
            )
        assert len(packs(store)) == PACKS
    return tmp_path / "store"


@pytest.fixture
def read(monkeypatch):
    """The packs that are read whole, in order."""
    found = []
    inner = stored_packs.read_whole

    def read_whole(backend, index, pack, **options):
        found.append(pack)
        return inner(backend, index, pack, **options)

    monkeypatch.setattr(stored_packs, "read_whole", read_whole)
    return found


def packs(store):
    return [pack_id_of(entry.key) for entry in store.backend.list(PACK_PREFIX)]


def flip(root, pack):
    path = next((root / "packs").rglob(pack.hex()))
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_repeated_checks_go_through_the_whole_store(root, read):
    for number in range(1, PACKS + 1):
        with Store(root, read_only=True) as store:
            report = store.check(read_data=0.9 / PACKS)
        assert len(read) == len(set(read)) == number
        assert report.data.packs_unread == PACKS - number
        assert report.bytes_read == report.data.bytes_chosen < report.data.bytes_total
    first, age = read[0], time.time_ns() - report.data.oldest
    assert 0 <= age < 60 * 10**9
    with Store(root) as store:
        store.check(read_data=0.9 / PACKS)
    assert read[-1] == first, "the one that was read longest ago is next"


def test_all_are_read_without_a_share(root, read):
    with Store(root) as store:
        assert store.check(read_data=True).data.packs_unread == 0
        assert store.check().data is None
    assert len(read) == PACKS


def test_damage_is_met_and_not_remembered_as_good(root, read):
    with Store(root) as store:
        bad = packs(store)[2]
        flip(root, bad)
        reports = [store.check(read_data=0.9 / PACKS) for _ in range(PACKS)]
    assert sum(not report.ok for report in reports) >= 1
    assert reports[-1].data.packs_unread == 1
    with Store(root) as store:
        last = PacksRead(store.machine).last()
        assert {pack for pack, read in last.items() if not read.good} == {bad}
    assert set(read) == last.keys(), "damage keeps no other pack from being read"


def test_an_interrupted_check_keeps_what_it_has_read(root, read, monkeypatch):
    lock = threading.Lock()
    inner = stored_packs.read_whole

    def interrupted(*arguments, **options):
        with lock:
            if len(read) == 3:
                raise KeyboardInterrupt
            return inner(*arguments, **options)

    monkeypatch.setattr(stored_packs, "read_whole", interrupted)
    with Store(root) as store, pytest.raises(KeyboardInterrupt):
        store.check(read_data=True)
    monkeypatch.setattr(stored_packs, "read_whole", inner)
    with Store(root) as store:
        done = PacksRead(store.machine).last().keys()
        assert len(done) >= 1
        store.check(read_data=(PACKS - len(done) - 0.1) / PACKS)
        assert set(read[3:]) == set(packs(store)) - done


@pytest.mark.parametrize("window", [whole_pack._WINDOW, 3_000])
def test_every_byte_of_a_pack_is_fetched_once(tmp_path, monkeypatch, window):
    """With windows in which not even a frame lies, some are fetched again, and the answer is the same."""
    monkeypatch.setattr(whole_pack, "_WINDOW", window)
    size = 20_000_000 if window > 1 << 20 else 200_000
    with Store(tmp_path / "store", create=True, durability="none") as store, predicting():
        for number in range(3):
            store.add(write_model(model_of(f=relative(number)), tmp_path / f"d{number}"), ref=f"d{number}")
        store.add(write_model(model_of(f=noise(1, size)), tmp_path / "m"), ref="m")
    with Store(tmp_path / "store") as store:
        inner, fetched = store.backend.read_into, []
        largest = max(store.backend.list(PACK_PREFIX), key=lambda entry: entry.size)

        def read_into(key, buffer, *, start=0):
            if key == largest.key:
                fetched.append(len(buffer))
            return inner(key, buffer, start=start)

        monkeypatch.setattr(store.backend, "read_into", read_into)
        report = store.check(read_data=True)
        assert (report.problems, report.deltas > 0) == ((), True)
        assert sum(fetched) < 1.01 * largest.size or window == 3_000
        flip(tmp_path / "store", pack_id_of(largest.key))
        (problem,) = (item for item in store.check(read_data=True).problems if item.key == largest.key)
        assert "does not have the hash that names it" in problem.message


def test_a_pack_that_is_gone_is_forgotten(root):
    with Store(root) as store:
        store.check(read_data=True)
        gone = packs(store)[0]
        next((root / "packs").rglob(gone.hex())).unlink()
        store.check(read_data=0.1)
        assert gone not in PacksRead(store.machine).last()


def test_a_time_in_the_future_hides_nothing(root, read):
    with Store(root) as store:
        known = PacksRead(store.machine)
        strange = packs(store)[0]
        ahead = [(pack, time.time_ns(), 1) for pack in packs(store)[1:]] + [(strange, 2**62, 1)]
        store.machine.run(
            lambda state: state.executemany("INSERT INTO packs_read VALUES (?, ?, ?)", ahead),
            None,
            writes=True,
        )
        assert strange not in known.last()
        store.check(read_data=0.5 / PACKS)
    assert read == [strange]


def test_without_a_home_every_pack_is_read_in_the_end(root, read, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with Store(root) as store:
        for _ in range(20 * PACKS):
            report = store.check(read_data=0.9 / PACKS)
            assert not report.data.remembered
        assert set(read) == set(packs(store))
    out = CliRunner().invoke(app, ["check", "--read-data=10%", "--store", str(root)])
    assert "keeps no note" in out.output


def test_the_rate_is_kept(root):
    with Store(root) as store:
        started = time.monotonic()
        store.check(read_data=0.9 / PACKS, bandwidth_limit=120_000)
        assert time.monotonic() - started > 0.4


@pytest.mark.parametrize("share", [-0.1, 1.5, 5])
def test_what_is_no_share_is_refused(root, share):
    with Store(root) as store, pytest.raises(ConfigError, match=r"0\.05"):
        store.check(read_data=share)


def test_the_command_says_how_much_was_read_and_how_old_the_oldest_check_is(root):
    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["check", "--store", str(root), *arguments])
        assert result.exit_code == code, result.output
        return result.output

    assert "read" not in run().split(":")[0]
    assert "(16.7%)" in run("--read-data=10%")
    assert f"{PACKS - 2} packs were never read whole" in run("--read-data=10%")
    text = run("--read-data")
    assert "%" not in text
    assert "Every pack was read whole and found good within the last " in text
    for wrong in ("0", "101%", "x"):
        assert "--read-data=5%" in run(f"--read-data={wrong}", code=2)
