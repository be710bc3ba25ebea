"""A server that dies at any moment of a push, a pull or a collection, and comes back: nothing is lost."""

from __future__ import annotations

import logging
import random
import threading
import time
from contextlib import ExitStack
from functools import partial

import pytest
from fakes.counts import SERVER_KILLS as KILLS
from fakes.stores import assert_clean, model_of, noise, read_folder, read_model, write_model
from fakes.sync_stores import shown
from servers.cable import cable
from servers.processes import free_port, running
from servers.sftp import SftpServer, prepare

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.errors import BackendError
from casstore.objects.publishing import pack_writer
from casstore.ops.sync import execute, execution, plan_sync

_log = logging.getLogger(__name__)

AWAY = 0.2  # seconds between a server's death and its return


class KilledServer:
    """An SFTP server that gets SIGKILL; its files are this machine's."""

    def __init__(self, stack, tmp_path):
        self._stack, self._folder = stack, tmp_path / "server"
        self._folder.mkdir()
        self._port = free_port()
        self._command = prepare(self._folder, self._port)
        server = SftpServer(self._port, self._folder)
        self.url, self.options = server.url(tmp_path / "shared"), server.options
        self._start()

    def _start(self):
        self._server = self._stack.enter_context(running(self._command, port=self._port, folder=self._folder))

    def die(self):
        self._server.kill()

    def come_back(self):
        self._start()


class LostServer:
    """A server that is out of reach for a while: one that keeps objects in memory must live on."""

    def __init__(self, stack, server, url):
        self._cable = stack.enter_context(cable(server.port))
        self.url = url
        self.options = server.options_at(self._cable.port)

    def die(self):
        self._cable.down = True
        self._cable.cut()

    def come_back(self):
        self._cable.down = False


@pytest.fixture(params=["sftp", "s3", "azure"])
def server(request, tmp_path):
    with ExitStack() as stack:
        if request.param == "sftp":
            yield KilledServer(stack, tmp_path)
        elif request.param == "s3":
            far = request.getfixturevalue("s3_server")
            yield LostServer(stack, far, f"s3://{far.make_bucket()}/shared")
        else:
            far = request.getfixturevalue("azure_server")
            yield LostServer(stack, far, f"az://{far.make_container()}/shared")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(pack_writer, "REMOTE_PACK_TARGET", 128 << 10)
    monkeypatch.setattr(pack_writer, "PACK_TARGET", 128 << 10)
    monkeypatch.setattr(execution, "GROUP_BYTES", 400 << 10)


def fill(store, work, number):
    """Add models that share chunks with each other and with those of other rounds, and a run."""
    for at in range(2):
        content = model_of(common=noise(at, 100_000), own=noise(1000 * number + at, 300_000))
        store.add(write_model(content, work / f"{number}-{at}"), ref=f"models/{number}/{at}")
    store.put_manifest(f"runs/{number}", b"run %d" % number)


def sync_all(src, dst):
    execute(plan_sync(src, dst))


def beside(server, delay, work):
    """Do something while the server dies after `delay` seconds; say how it went, and how long it took."""
    started = time.perf_counter()

    def fate():
        time.sleep(delay)
        server.die()
        time.sleep(AWAY)
        server.come_back()

    killer = threading.Thread(target=fate)
    killer.start()
    try:
        work()
        outcome = "went on"
    except BackendError as error:
        # Allowed, as long as it says so and what arrived is whole.
        outcome = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    killer.join()
    return outcome, seconds


@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_server_that_dies_and_comes_back(server, way, tmp_path):
    chance = random.Random(KILLS)
    Store(server.url, create=True, **server.options).close()
    outcomes, undisturbed = [], None
    with Store(tmp_path / "here", create=True, durability="none") as here:
        for number in range(KILLS + 1):
            with Store(server.url, **server.options) as there:
                if way == "push":
                    src, dst = here, there
                    fill(here, tmp_path / "work", number)
                else:
                    src, dst = there, here
                    with Store(tmp_path / "origin", create=True, durability="none") as origin:
                        fill(origin, tmp_path / "work", number)
                        execute(plan_sync(origin, there))
                if undisturbed is None:
                    started = time.perf_counter()
                    execute(plan_sync(src, dst))
                    undisturbed = time.perf_counter() - started
                    continue
                sync = partial(sync_all, src, dst)
                outcome, seconds = beside(server, chance.uniform(0, undisturbed), sync)
                outcomes.append((outcome, round(seconds, 2)))
            # Who comes next finds both whole, and needs one more run at most.
            with Store(server.url, **server.options) as there:
                src, dst = (here, there) if way == "push" else (there, here)
                assert_clean(dst, read_data=KILLS > 2)
                execute(plan_sync(src, dst))
                assert plan_sync(src, dst).empty
        with Store(server.url, **server.options) as there:
            assert shown(there) == shown(here)
            assert_clean(there)
            assert_clean(here)
    _log.info("%s %s: undisturbed %.2f s; %s", way, server.url.split(":")[0], undisturbed, outcomes)
    went_on = [outcome for outcome, _ in outcomes if outcome == "went on"]
    assert len(went_on) >= len(outcomes) / 2, outcomes


EVERYTHING = GcPolicy(grace=0, superseded=0, orphans_now=True, repack=0.9)


def collect(store):
    execute_gc(store, plan_gc(store, EVERYTHING))


def test_a_server_that_dies_while_it_is_collected(server, tmp_path):
    """What refs need is there whatever happens; the next collection removes what this one has left."""
    chance = random.Random(KILLS)
    outcomes, undisturbed = [], None
    Store(server.url, create=True, **server.options).close()
    for number in range(KILLS + 1):
        with Store(server.url, **server.options) as store:
            for at in range(3):
                # The pack of each model has a half that the next one shares.
                content = model_of(
                    common=noise(10 * number + at, 60_000), own=noise(10 * number + at + 1, 60_000)
                )
                store.add(write_model(content, tmp_path / f"{number}-{at}"), ref=f"models/{number}/{at}")
            store.rm(f"models/{number}/0")
            started = time.perf_counter()
            if undisturbed is None:
                collect(store)
                undisturbed = time.perf_counter() - started
            else:
                outcome, seconds = beside(server, chance.uniform(0, undisturbed), partial(collect, store))
                outcomes.append((outcome, round(seconds, 2)))
        with Store(server.url, **server.options) as store:
            assert_clean(store)
            collect(store)
            assert plan_gc(store, EVERYTHING).items == ()
            assert_clean(store)
            for at in (1, 2):
                assert read_model(store, f"models/{number}/{at}") == read_folder(tmp_path / f"{number}-{at}")
    _log.info("gc %s: undisturbed %.2f s; %s", server.url.split(":")[0], undisturbed, outcomes)
