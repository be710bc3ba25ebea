"""Work that is interrupted, fails or is killed: what is whole is used again, and nothing else stays."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from fakes.stores import assert_clean, model_of, noise, read_model, small_packs, write_model

import casstore
from casstore import Store
from casstore.backend.local.writer import HELD, TEMPORARY
from casstore.cli import app
from casstore.errors import notes
from casstore.objects.publishing import pack_writer as packs
from casstore.objects.publishing import publication as publish
from casstore.ops.leftovers import find_leftovers
from casstore.store.adding import blocks, ingest
from casstore.store.checkout import staging

COMMAND = (sys.executable, "-m", "casstore")
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
PIECE = 1 << 20
MODEL = random.Random(5).randbytes(24 * PIECE)
WHOLE = model_of(weights=MODEL)


@pytest.fixture(autouse=True)
def _usual_signals():
    """Children get the default actions, even where a shell started the tests in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (*SIGNALS, signal.SIGPIPE)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def model(tmp_path):
    return write_model(WHOLE, tmp_path / "model")


@pytest.fixture
def place(tmp_path):
    Store(tmp_path / "store", create=True, durability="none").close()
    return tmp_path / "store"


@pytest.fixture
def small(monkeypatch):
    """Packs of 4 MiB, so that a small model has several."""
    small_packs(monkeypatch, 4 * PIECE)
    monkeypatch.setattr(publish, "_WORTH_LOOKING", 2 * PIECE)
    monkeypatch.setattr(packs, "_WORTH_FINISHING", 2 * PIECE)


def temporaries(place):
    folder = place / TEMPORARY
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def pack_bytes(place):
    return sum(path.stat().st_size for path in (place / "packs").rglob("*") if path.is_file())


def start(place, *program):
    """Run a program that gets the store's path; return when it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(program), str(place)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline(), process.stderr.read().decode()
    return process


@contextmanager
def killed(process):
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


WRITING = (
    "import sys, time",
    "from casstore.backend.local.backend import LocalBackend",
    "writer = LocalBackend(sys.argv[1]).open_writer()",
    "writer.write([bytes(1000)])",
    "print('writing', flush=True)",
    "time.sleep(60)",
)


class TestTemporaries:
    def test_of_a_killed_writer_go_with_the_next_publish_and_those_of_a_living_one_stay(
        self, place, model, tmp_path
    ):
        dead = start(place, *WRITING)
        dead.kill()
        dead.communicate()
        [left] = temporaries(place)
        with killed(start(place, *WRITING)):
            [alive] = set(temporaries(place)) - {left}
            with Store(place) as store:
                found = find_leftovers(store)
                assert (found.temporaries, found.bytes_temporaries) == (2, 2000)
                store.add(model, ref="models/m")
            assert temporaries(place) == [alive]

    def test_of_writers_elsewhere_stay(self, place, model):
        """A client that writes here by SFTP, say, holds no lock that could be seen."""
        other = place / TEMPORARY / "0123456789abcdef"
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"x")
        with Store(place) as store:
            store.add(model, ref="models/m")
        assert temporaries(place) == [other.name]

    def test_stay_where_locks_tell_nothing(self, place, model, monkeypatch):
        with Store(place) as store:
            monkeypatch.setattr(type(store.backend._directory), "sees_every_lock", False)
            left = place / TEMPORARY / f"0123456789abcdef{HELD}"
            left.parent.mkdir(exist_ok=True)
            left.write_bytes(b"x")
            with store.backend.open_writer() as writer:
                assert not writer.path.endswith(HELD)
            store.add(model, ref="models/m")
        assert temporaries(place) == [left.name]

    def test_a_cleaner_that_is_faster_than_the_lock(self, place):
        """Between making a file and locking it, its writer looks dead: it takes another file."""
        with Store(place) as store:
            backend = store.backend
            calls, flock = backend._calls, backend._calls.flock

            def late(fd, operation):
                del calls.flock
                backend.remove_abandoned()
                flock(fd, operation)

            calls.flock = late
            with backend.open_writer() as writer:
                # Locked in the end, or a collector that goes by age would take it.
                assert writer.path.endswith(HELD)
                assert list(backend.list_abandoned(older_than=0)) == []
                writer.write([b"x"])
                writer.commit("packs/aa/aa")
            assert backend.read("packs/aa/aa") == b"x"
        assert temporaries(place) == []


class Stop(BaseException):
    """Like KeyboardInterrupt."""


def interrupt(monkeypatch, error, *, after):
    """Let an add end by `error` once it has handed over so many blocks."""
    take, left = ingest.Ingest._take_block, [after]

    def stopping(self, *worked):
        take(self, *worked)
        left[0] -= 1
        if left[0] == 0:
            raise error

    monkeypatch.setattr(ingest.Ingest, "_take_block", stopping)
    monkeypatch.setattr(blocks, "BLOCK", PIECE)


@pytest.mark.usefixtures("small")
class TestRetries:
    @pytest.mark.parametrize("error", [Stop(), casstore.ConflictError("It changed."), OSError("odd")])
    def test_use_what_the_attempt_before_wrote(self, place, model, error, monkeypatch):
        with Store(place) as store, monkeypatch.context() as patch:
            interrupt(patch, error, after=14)
            with pytest.raises(type(error)) as failure:
                store.add(model, ref="models/m")
        [note] = notes(failure.value)
        assert "are kept: the next attempt only writes the rest" in note
        kept = pack_bytes(place)
        assert kept > 8 * PIECE
        assert temporaries(place) == []
        with Store(place) as store:
            assert store.refs() == {}
            found = find_leftovers(store)
            assert (found.bytes_packs, found.temporaries, found.complete) == (kept, 0, True)
            result = store.add(model, ref="models/m")
            assert result.bytes_new < len(MODEL) - kept * 0.9
            assert pack_bytes(place) < len(MODEL) * 1.02
            assert not find_leftovers(store)
            assert read_model(store, "models/m") == WHOLE
            assert_clean(store)

    def test_four_of_them(self, place, model, monkeypatch):
        for _ in range(4):
            with Store(place) as store, monkeypatch.context() as patch:
                interrupt(patch, Stop(), after=5)
                with pytest.raises(Stop):
                    store.add(model, ref="models/m", stat_cache=False)
        assert pack_bytes(place) < len(MODEL) * 1.02

    def test_use_packs_of_a_killed_one_and_read_their_footers_once(self, place, model, monkeypatch):
        """Without its segment, a pack is found by a listing, and has one from then on."""
        with Store(place) as store, monkeypatch.context() as patch:
            interrupt(patch, Stop(), after=14)
            patch.setattr(publish.Publication, "_cover", lambda *_: None)
            with pytest.raises(Stop):
                store.add(model, ref="models/m")
            assert list(store.backend.list("index/")) == []
        kept = pack_bytes(place)
        assert kept > 8 * PIECE
        with Store(place) as store:
            assert store.add(model, ref="models/m").bytes_new < len(MODEL) - kept * 0.9
            assert not store.objects._index.read_uncovered()
        with Store(place) as store:
            store.objects._index.refresh()
            assert not store.objects._index.read_uncovered()
            assert_clean(store)

    def test_a_damaged_pack_of_a_killed_one_stops_nothing(self, place, model, tmp_path):
        foreign = place / "packs" / "aa" / ("aa" * 32)
        foreign.parent.mkdir(parents=True)
        foreign.write_bytes(b"half a pack")
        (place / "packs" / "desktop.ini").write_bytes(b"x")
        with Store(place) as store:
            store.add(model, ref="models/m")
            assert read_model(store, "models/m") == WHOLE

    def test_a_small_add_lists_no_packs(self, place, tmp_path, monkeypatch):
        monkeypatch.setattr(
            "casstore.objects.index.index.Index.read_uncovered", lambda _: pytest.fail("listed")
        )
        with Store(place) as store:
            store.add(write_model(model_of(a=noise(1, 1000)), tmp_path / "small"), ref="models/small")

    def test_an_interrupt_between_two_steps_of_the_writer_keeps_no_pack_that_lies(
        self, place, model, monkeypatch
    ):
        """The open pack lists a frame that was not written: it is thrown away, and the finished ones stay."""
        emit, count = packs.PackWriter._emit, [0]

        def stopping(self, target, data, *, then=None):
            count[0] += 1
            if count[0] == 9:
                raise Stop
            emit(self, target, data, then=then)

        monkeypatch.setattr(packs.PackWriter, "_emit", stopping)
        monkeypatch.setattr(blocks, "BLOCK", PIECE)
        with Store(place) as store, pytest.raises(Stop):
            store.add(model, ref="models/m")
        assert temporaries(place) == []
        with Store(place) as store:
            assert store.check(read_data=True).ok
            assert 0 < pack_bytes(place) < 8 * PIECE

    def test_in_a_thread_of_a_program_that_goes_on(self, place, model, monkeypatch):
        """A library's caller gets its own error, no thread hangs, and the store is of use at once."""

        def serial():
            return sum(thread.name.startswith("casstore-serial") for thread in threading.enumerate())

        before, idle = threading.active_count(), serial()
        with Store(place) as store:
            for after in (1, 3, 9):
                with monkeypatch.context() as patch:
                    interrupt(patch, KeyboardInterrupt(), after=after)
                    with pytest.raises(KeyboardInterrupt):
                        store.add(model, ref="models/m", stat_cache=False)
                assert serial() <= max(idle, 2)  # One that hung would not be used again.
            store.add(model, ref="models/m")
            assert read_model(store, "models/m") == WHOLE
        assert threading.active_count() <= before + packs.os.cpu_count() + 2


class TestLeftovers:
    def test_packs_of_deleted_refs(self, place, model):
        with Store(place) as store:
            store.add(model, ref="models/m")
            store.tag("keep", "models/m")
            store.rm("models/m")
            assert not find_leftovers(store)
            store.rm("tags/keep")
            found = find_leftovers(store)
            assert found.packs == 1
            assert found.bytes_packs == pack_bytes(place)
            assert store.check().ok
            assert store.check().leftovers == found

    def test_packs_that_a_record_needs_and_does_not_name(self, place, model, monkeypatch):
        """Records name a few packs only; what else they need is in their layouts."""
        small_packs(monkeypatch, 2 * PIECE)
        monkeypatch.setattr(blocks, "BLOCK", PIECE)
        monkeypatch.setattr("casstore.objects.publishing.dependencies.MAX_HINTS", 1)
        with Store(place) as store:
            store.add(model, ref="models/m")
            [record] = store.refs().values()
            assert len(record.packs) == 1
            assert len(list(store.backend.list("packs/"))) > 3
            assert not find_leftovers(store)

    def test_nothing_is_called_unused_while_something_cannot_be_read(
        self, place, model, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("casstore.objects.publishing.dependencies.MAX_HINTS", 0)
        with Store(place) as store:
            store.add(model, ref="models/m")
            store.add(write_model(model_of(a=noise(1, 1000)), tmp_path / "small"), ref="models/small")
            store.rm("models/small")
        with Store(place) as store:
            largest = max(store.backend.list("packs/"), key=lambda entry: entry.size)
            path = place / largest.key
            path.chmod(0o600)
            with open(path, "r+b") as file:
                file.seek(-30_000, os.SEEK_END)
                file.write(bytes(30_000 - 200))
            found = find_leftovers(store)
            assert (found.complete, found.packs) == (False, 0)

    def test_nothing_is_called_unused_while_a_record_cannot_be_read(self, place, model, monkeypatch):
        """A listing of refs leaves it out, and what it needs is there all the same."""
        with Store(place) as store:
            store.add(model, ref="models/m")
            record = store.record("models/m")
            path = place / record.key
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        monkeypatch.setenv("XDG_CACHE_HOME", str(place.parent / "another machine's"))
        with Store(place) as store:
            found = find_leftovers(store)
            assert (found.complete, found.packs) == (False, 0)
            report = store.check()
            assert (report.ok, report.leftovers) == (False, found)

    def test_commands_tell(self, place, model, monkeypatch):
        with Store(place) as store:
            store.add(model, ref="models/m")
            store.rm("models/m")
        left = place / TEMPORARY / "0123456789abcdef"
        left.write_bytes(bytes(2048))
        for command in ("stats", "check"):
            done = subprocess.run(
                [*COMMAND, command, "--store", place], capture_output=True, check=True, timeout=60, text=True
            )
            assert "1 temporary file (2.0 KiB) and 1 pack that no ref needs (24.0 MiB)" in done.stdout


# ---- checkouts


@pytest.fixture
def added(place, model):
    with Store(place) as store:
        store.add(model, ref="models/m")
    return place


GETTING = (
    "import os, sys, time",
    "from casstore import Store",
    "from casstore.store.checkout import checkout",
    "def slow(*_, **__):",
    "    print('writing', flush=True)",
    "    time.sleep(60)",
    "checkout._decode = slow",
    "Store(sys.argv[1]).get('models/m', 'out', force=True)",
)


class TestCheckouts:
    @pytest.mark.parametrize("exists", [False, True])
    def test_of_killed_processes_go_with_the_next_and_those_of_living_ones_stay(
        self, added, tmp_path, monkeypatch, exists
    ):
        monkeypatch.chdir(tmp_path)
        if exists:
            (tmp_path / "out").mkdir()
        before = {path.name for path in tmp_path.iterdir()}

        def left():
            inside = tmp_path / "out"
            found = {path.name for path in (inside if exists else tmp_path).iterdir()} - before
            return found - {"out", "weights"}

        dead = start(added, *GETTING)
        dead.kill()
        dead.communicate()
        dead_ones = left()
        assert len(dead_ones) == 1
        with killed(start(added, *GETTING)):
            alive = left()
            assert len(alive) == 1
            assert alive != dead_ones
            if exists:
                (tmp_path / "other").write_bytes(b"x")
            with Store(added) as store:
                store.get("models/m", "out", force=True)
            assert left() == alive
        assert (tmp_path / "out" / "weights").read_bytes() == MODEL

    def test_other_names_stay(self, added, tmp_path):
        names = [
            ".other.0123456789ab.casstore",
            ".out.0123456789ab.casstore.bak",
            ".out.0123456789aX.casstore",
        ]
        for name in names:
            (tmp_path / name).mkdir()
        (tmp_path / ".out.000000000000.casstore").symlink_to(tmp_path / names[0])
        with Store(added) as store:
            store.get("models/m", tmp_path / "out")
        assert all((tmp_path / name).is_dir() for name in names)
        assert (tmp_path / ".out.000000000000.casstore").is_symlink()

    def test_stay_where_locks_tell_nothing(self, added, tmp_path, monkeypatch):
        monkeypatch.setattr(staging, "tells_the_dead", lambda _: False)
        left = tmp_path / ".out.0123456789ab.casstore"
        left.mkdir()
        with Store(added) as store:
            store.get("models/m", tmp_path / "out")
        assert left.is_dir()

    def test_a_sweep_that_is_faster_than_the_lock(self, tmp_path, monkeypatch):
        directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        flock = fcntl.flock

        def late(descriptor, operation):
            monkeypatch.setattr(fcntl, "flock", flock)
            staging.sweep_files(directory)
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        name, descriptor = staging.make_file(directory, 0o600, hold=True)
        staging.sweep_files(directory)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        os.close(descriptor)
        staging.sweep_files(directory)
        assert list(tmp_path.iterdir()) == []
        os.close(directory)

    @pytest.mark.parametrize("step", ["open", "flock"])
    def test_a_sweep_that_is_faster_than_the_lock_of_a_folder(self, tmp_path, monkeypatch, step):
        module = {"open": os, "flock": fcntl}[step]
        call = getattr(module, step)

        def late(*arguments, **options):
            monkeypatch.setattr(module, step, call)
            staging.sweep_folders(str(tmp_path), "out")
            return call(*arguments, **options)

        monkeypatch.setattr(module, step, late)
        path, descriptor = staging.make_folder(str(tmp_path), "out")
        staging.sweep_folders(str(tmp_path), "out")
        assert [os.fspath(item) for item in tmp_path.iterdir()] == [path]
        os.close(descriptor)
        staging.sweep_folders(str(tmp_path), "out")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["模" * 80, "m" + "模" * 80], ids=["cut", "whole"])
    def test_a_name_of_many_bytes(self, added, tmp_path, name):
        left = staging.make_folder(str(tmp_path), name)
        os.close(left[1])
        assert os.fsencode(left[0]).decode()  # Some file systems take no part of a character.
        with Store(added) as store:
            store.get("models/m", tmp_path / name)
        assert not os.path.exists(left[0])


# ---- real signals on the command


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """Commands whose packs and checkouts take long, and that say on stderr when they are in the middle."""
    folder = tmp_path / "seam"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'casstore' in sys.orig_argv[1:3]:\n"
        "    from casstore.backend.local.writer import LocalWriter\n"
        "    from casstore.store.checkout import batches, checkout\n"
        "    write, decode, count = LocalWriter.write, checkout._decode, [0]\n"
        "    def slowed(work, *args, **kwargs):\n"
        "        work(*args, **kwargs)\n"
        "        if 'SLOW' not in os.environ:\n"
        "            return\n"
        "        count[0] += 1\n"
        "        if count[0] == 10:\n"
        "            os.write(2, b'#')\n"
        "        if count[0] >= 10:\n"
        "            time.sleep(0.1)\n"
        "    LocalWriter.write = lambda *args: slowed(write, *args)\n"
        "    checkout._decode = lambda *args, **kwargs: slowed(decode, *args, **kwargs)\n"
        "    batches.BLOCK = 1 << 20\n"
        "    from casstore.store.adding import blocks; from casstore.objects.publishing import pack_writer as packs\n"
        "    blocks.BLOCK = 1 << 20\n"
        "    packs.PACK_TARGET = 4 << 20\n"
        "    from casstore.objects.publishing import publication as publish\n"
        "    publish._WORTH_LOOKING = 2 << 20\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def interrupted(tmp_path, arguments, number, *, twice=False, until=lambda: True):
    """Send a signal to a command in the middle of its work; return its exit code and what it said."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "SLOW": "1"},
    )
    with killed(process):
        assert process.stderr.read(1) == b"#", process.stderr.read().decode()
        while not until():
            time.sleep(0.01)
        process.send_signal(number)
        if twice:
            process.send_signal(number)
            time.sleep(0.02)
            process.send_signal(number)
        _, said = process.communicate(timeout=30)
        return process.returncode, said.decode()


def again(tmp_path, arguments):
    """Give the command once more, in this process, which nothing slows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = CliRunner().invoke(app, [str(word) for word in arguments])
    assert done.exit_code == 0, done.output


CASES = [(number, code, False) for number, code in SIGNALS.items()]
CASES += [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, True), (signal.SIGKILL, -9, False)]


@pytest.mark.usefixtures("slow", "small")
@pytest.mark.parametrize("ending", CASES, ids=lambda case: f"{case[0].name}{'-twice' * case[2]}")
class TestSignals:
    def test_add(self, place, model, tmp_path, ending):
        number, code, twice = ending
        arguments = ("add", model, "--ref", "models/m", "--store", place)
        found, said = interrupted(
            tmp_path, arguments, number, twice=twice, until=lambda: pack_bytes(place) > 3 * PIECE
        )
        assert found == code, said
        assert len(said.splitlines()) == (0 if number == signal.SIGKILL else 1)
        assert number == signal.SIGKILL or temporaries(place) == []
        kept = pack_bytes(place)
        assert kept > 3 * PIECE
        again(tmp_path, arguments)
        assert temporaries(place) == []
        assert pack_bytes(place) < len(MODEL) * 1.02
        with Store(place) as store:
            assert not find_leftovers(store)
            assert_clean(store)

    def test_get(self, added, tmp_path, ending):
        number, code, twice = ending
        before = set(tmp_path.iterdir())
        arguments = ("get", "models/m", "out", "--store", added)
        found, said = interrupted(tmp_path, arguments, number, twice=twice)
        assert found == code, said
        assert number == signal.SIGKILL or set(tmp_path.iterdir()) == before
        again(tmp_path, arguments)
        assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}
        assert (tmp_path / "out" / "weights").read_bytes() == MODEL

    def test_push(self, added, tmp_path, ending):
        number, code, twice = ending
        there = tmp_path / "there"
        Store(there, create=True).close()
        arguments = ("push", there, "models/m", "--store", added)
        found, said = interrupted(tmp_path, arguments, number, twice=twice)
        assert found == code, said
        assert number == signal.SIGKILL or temporaries(there) == []
        again(tmp_path, arguments)
        assert temporaries(there) == []
        assert pack_bytes(there) < len(MODEL) * 1.05
        with Store(there) as store:
            assert_clean(store)


class TestEndings:
    @pytest.mark.parametrize(("number", "code"), SIGNALS.items())
    def test_a_pipe_that_nobody_reads(self, added, number, code):
        """What is still buffered for it must not keep the process alive."""
        process = subprocess.Popen(
            [*COMMAND, "cat", "models/m", "weights", "--store", str(added)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with killed(process):
            assert process.stdout.read(1)
            process.send_signal(number)
            process.wait(timeout=30)
            assert process.returncode == code
            assert len(process.stderr.read().splitlines()) == 1

    @pytest.mark.parametrize("number", SIGNALS)
    def test_while_the_command_is_loaded(self, number, tmp_path):
        (tmp_path / "click.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
        done = subprocess.run(
            [*COMMAND, "ls"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            check=False,
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (SIGNALS[number], b"")

    def test_that_meets_code_which_cannot_be_interrupted(self):
        """The end of a lock's block, say: what it raises instead is no failure of the command."""
        program = (
            "import os, signal, time\n"
            "from casstore.cli.support.exits import exit_codes\n"
            "import click\n"
            "try:\n"
            "    with exit_codes(debug=False):\n"
            "        try:\n"
            "            os.kill(os.getpid(), signal.SIGTERM)\n"
            "            time.sleep(5)\n"
            "        finally:\n"
            "            raise RuntimeError('cannot release un-acquired lock')\n"
            "except click.exceptions.Exit as ending:\n"
            "    raise SystemExit(ending.exit_code)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=30)
        assert (done.returncode, done.stderr.decode().strip()) == (143, "casstore: terminated.")

    def test_nohup(self, added):
        """A signal that the parent has ignored stays ignored."""
        program = (
            "import os, signal, sys\n"
            "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'casstore', *sys.argv[1:]])\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, "cat", "models/m", "weights", "--store", str(added)],
            stdout=subprocess.PIPE,
        )
        with killed(process):
            begun = process.stdout.read(1)
            process.send_signal(signal.SIGHUP)
            assert begun + process.stdout.read() == MODEL
            assert process.wait(timeout=30) == 0

    def test_a_later_signal_ends_a_clean_up_that_takes_long(self, tmp_path):
        program = (
            "import sys, time\n"
            "from casstore.cli.support import signals\n"
            "signals._SAME = 0.2\n"
            "with signals.ending_by_signals():\n"
            "    try:\n"
            "        print('working', flush=True)\n"
            "        time.sleep(60)\n"
            "    finally:\n"
            "        print('cleaning', flush=True)\n"
            "        time.sleep(60)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        with killed(process):
            assert process.stdout.readline() == b"working\n"
            process.terminate()
            assert process.stdout.readline() == b"cleaning\n"
            process.terminate()
            time.sleep(0.3)
            assert process.poll() is None
            process.terminate()
            assert process.wait(timeout=30) == -signal.SIGTERM
