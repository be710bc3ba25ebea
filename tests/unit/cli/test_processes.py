"""The command line as a process: exit codes, pipes, signals, what is imported."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import signal
import subprocess
import sys

import pytest

import casstore
from casstore._build import kernels_name

COMMAND = (sys.executable, "-m", "casstore")


def run(*arguments, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, check=False, timeout=60, **options
    )


@pytest.fixture
def place(tmp_path):
    """A store with one model of 8 MB that does not compress."""
    (tmp_path / "big.bin").write_bytes(os.urandom(8 << 20))
    with casstore.Store(tmp_path / "store", create=True) as store:
        store.add(tmp_path / "big.bin", ref="models/big")
    return tmp_path / "store"


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout.decode()) == (
        0,
        f"casstore {casstore.__version__} ({kernels_name} kernels)\n",
    )


def test_a_command_named_like_a_module_of_python_ends_well(place):
    done = run("--store", str(place), "gc", "--dry-run")
    assert (done.returncode, done.stderr) == (0, b"")


def test_compiled_kernels_of_an_older_build_are_left_alone():
    """In a checkout that was installed as editable, they are only built anew by another installation."""
    program = (
        "import sys, types\n"
        "sys.modules['casstore._kernels'] = types.ModuleType('casstore._kernels')\n"
        "from casstore.cli import app\n"
        "app(['--version'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    assert done.stdout.decode() == f"casstore {casstore.__version__} (numpy kernels)\n"


def test_help_loads_neither_the_store_nor_rich():
    program = (
        "import sys\n"
        "from casstore.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'rich', 'fsspec', 'zstandard', 'numpy', 'casstore.store.model_store', 'typer', 'pydantic'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    assert done.stdout.decode().splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments", [["ls"], ["show", "models/big"], ["tag", "best", "big"], ["rm", "models/big"]]
)
def test_commands_that_neither_add_nor_check_out_load_nothing_for_that(place, arguments):
    heavy = {"rich", "fsspec", "pathspec", "pyfastcdc", "numpy.ma"}
    ours = {"casstore.tensors", "casstore.ops.gc", "casstore.codecs.delta"}
    assert loaded_by([*arguments, "--store", str(place)], heavy | ours) == "[]"


def test_an_add_without_patterns_does_not_load_what_reads_them(place, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.bin").write_bytes(b"weights")
    command = ["add", str(tmp_path / "model"), "--store", str(place)]
    assert loaded_by(command, {"pathspec"}) == "[]"
    assert loaded_by([*command, "--exclude", "*.log"], {"pathspec"}) == "['pathspec']"


def loaded_by(arguments, modules):
    """Return which of these modules a command has loaded in its process, as text."""
    program = (
        "import sys\n"
        "from casstore.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print(sorted({modules!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    return done.stdout.decode().splitlines()[-1]


def test_a_round_trip_by_the_installed_command(tmp_path):
    command = os.path.join(os.path.dirname(sys.executable), "casstore")
    (tmp_path / "model.bin").write_bytes(b"weights" * 1000)
    environment = {**os.environ, "CASSTORE_STORE": str(tmp_path / "store")}
    for arguments in (["init"], ["add", "model.bin", "--ref", "models/m"], ["get", "models/m", "out"]):
        subprocess.run(
            [command, *arguments], env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=60
        )
    assert (tmp_path / "out" / "model.bin").read_bytes() == b"weights" * 1000


def test_piped_output_is_plain_and_json_parses(place):
    done = run("ls", "--store", place, env={**os.environ, "COLUMNS": "20"})
    assert done.stderr == b""
    assert done.stdout.startswith(b"models/big\t")
    assert b"\x1b" not in done.stdout
    assert json.loads(run("show", "models/big", "--json", "--store", place).stdout)["ref"] == "models/big"


def test_errors_are_one_line_and_exit_codes_hold(place, tmp_path):
    missing = run("show", "models/none", "--store", place)
    assert missing.returncode == 1
    assert len(missing.stderr.splitlines()) == 1
    assert run("show", "--no-such-option").returncode == 2
    debug = run("show", "models/none", "--store", place, "--debug")
    assert debug.returncode == 1
    assert b"Traceback" in debug.stderr
    assert b"casstore init" in run("ls", "--store", tmp_path / "none").stderr


@pytest.mark.parametrize("command", [["cat", "models/big", "big.bin"], ["ls"]])
def test_a_reader_that_goes_away(place, command):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*COMMAND, *command, "--store", str(place)],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_head_of_a_large_file(place, tmp_path):
    line = f'"{sys.executable}" -m casstore cat models/big big.bin --store "{place}" | head -c 100000'
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=60)
    assert done.stdout == (tmp_path / "big.bin").read_bytes()[:100000]
    assert done.stderr == b""


@pytest.fixture
def interruptible():
    """Children that SIGINT reaches, even where a shell started the tests in the background and has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt(place, tmp_path):
    fifo_reader = subprocess.Popen(
        [*COMMAND, "cat", "models/big", "big.bin", "--store", str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert fifo_reader.stdout.read(1)  # it is writing now, and soon blocked by the full pipe
    fifo_reader.send_signal(signal.SIGINT)
    _, error = fifo_reader.communicate(timeout=60)
    assert (fifo_reader.returncode, error) == (130, b"casstore: interrupted.\n")


def test_a_name_that_the_encoding_lacks(place, tmp_path):
    (tmp_path / "größe.bin").write_bytes(b"x")
    with casstore.Store(place) as store:
        store.add(tmp_path / "größe.bin", ref="models/größe")
    done = run("ls", "--store", place, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert b"models/gr\\xf6\\xdfe" in done.stdout


def on_a_terminal(*arguments, **environment):
    """Run a command on a terminal of its own; return its exit code and what the terminal got."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **environment},
    )
    os.close(theirs)
    pieces = []
    # A terminal whose other end is closed answers EIO on Linux.
    with contextlib.suppress(OSError):
        while piece := os.read(ours, 1 << 16):
            pieces.append(piece)
    os.close(ours)
    return process.wait(timeout=60), b"".join(pieces)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict", "utf-8"])
def test_a_terminal_that_cannot_show_a_name(place, tmp_path, encoding):
    (tmp_path / "模型.bin").write_bytes(b"x")
    with casstore.Store(place) as store:
        store.add(tmp_path / "模型.bin", ref="models/größe", metadata={"note": "\x1b[31mred\nmodels/fake\t0"})
    there = tmp_path / "there"
    casstore.Store(there, create=True).close()
    shown = "模型".encode() if encoding == "utf-8" else b"\\u6a21\\u578b"
    for command in (["show", "models/größe"], ["push", there, "models/größe"]):
        code, output = on_a_terminal(*command, "--store", place, PYTHONIOENCODING=encoding)
        assert code == 0, output
        assert b"\x1b[31mred" not in output
        assert b"\nmodels/fake" not in output
        assert b"\\u28" not in output  # a spinner's characters as escapes
        if command[0] == "show":
            assert shown in output
            assert b"\\x1b[31mred\\nmodels/fake\\t0" in output


def test_json_keeps_what_a_terminal_is_not_shown(place, tmp_path):
    with casstore.Store(place) as store:
        store.add(tmp_path / "big.bin", ref="models/größe", metadata={"note": "\x1b[31mred\nmodels/fake\t0"})
    [fact] = json.loads(run("show", "models/größe", "--json", "--store", place).stdout)["metadata"].values()
    assert fact == "\x1b[31mred\nmodels/fake\t0"


def test_messages_cannot_steer_a_terminal(place):
    program = (
        "import logging, sys\n"
        "from casstore.cli.support.session import session\n"
        "with session(store=None, as_json=False, quiet=False, debug=True) as out:\n"
        "    logging.getLogger('casstore').warning('%s is damaged', 'models/\\x1b[31mred')\n"
        "    raise ValueError('\\x1b]0;title\\x07')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert b"casstore: models/\\x1b[31mred is damaged" in done.stderr
    assert b"Traceback" in done.stderr
    assert b"\x1b" not in done.stderr


def test_paths_that_are_not_utf8(place, tmp_path):
    store, out = os.fsencode(tmp_path) + b"/st\xff", os.fsencode(tmp_path) + b"/out\xff"
    for arguments in (
        ["init", "--store", store],
        ["add", tmp_path / "big.bin", "--ref", "models/m", "--store", store],
        ["get", "models/m", out, "--store", store],
        ["stats", "--store", store],
        ["push", store, "models/big", "--store", place],
    ):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
    with open(out + b"/big.bin", "rb") as file:
        assert file.read() == (tmp_path / "big.bin").read_bytes()


@pytest.mark.parametrize("command", [["cat", "models/big", "big.bin"], ["ls"]])
def test_an_output_that_is_full(place, command):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *command, "--store", place],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, b"casstore: No space left on device.\n")


def test_a_closed_output(place):
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m casstore ls --store "{place}" >&-'],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def in_shell(line):
    """Run a line of shell in which $C is the command; return its exit code, output and errors."""
    done = subprocess.run(
        ["sh", "-c", line],
        env={**os.environ, "C": f"{sys.executable} -m casstore"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_an_error_of_a_closed_error_output_is_not_in_the_bytes(place):
    assert in_shell(f'$C cat models/none big.bin --store "{place}" 2>&-') == (1, b"", b"")
    assert in_shell("$C no-such-command 2>&-") == (2, b"", b"")


def test_cat_to_a_closed_output(place):
    code, _, error = in_shell(f'$C cat models/big big.bin --store "{place}" >&-')
    assert (code, error) == (1, b"casstore: There is nowhere to write to: the standard output is closed.\n")


def test_files_never_get_the_numbers_of_closed_streams(place, tmp_path):
    """What a library prints to a number that a pack has would be in the pack."""
    program = (
        "import os, sys\n"
        "from casstore.backend.local import writer as local_writer\n"
        "from casstore.__main__ import main\n"
        "write = local_writer.LocalWriter.write\n"
        "def printing(self, parts):\n"
        "    for number in (1, 2):\n"
        "        os.write(number, b'a message of a library')\n"
        "    write(self, parts)\n"
        "local_writer.LocalWriter.write = printing\n"
        f"sys.argv = ['casstore', 'add', {str(tmp_path / 'new.bin')!r}, '--ref', 'models/n', '--store', {str(place)!r}]\n"
        "main()\n"
    )
    (tmp_path / "new.bin").write_bytes(os.urandom(100_000))
    (tmp_path / "program.py").write_text(program)
    line = f"{sys.executable} '{tmp_path / 'program.py'}' <&- >&- 2>&-"
    assert in_shell(line) == (0, b"", b"")
    assert run("check", "--read-data", "--store", place).returncode == 0


def test_no_cycles_are_looked_for_at_the_end(place):
    """They take a tenth of the time of a short command."""
    program = (
        "import atexit, gc, sys\n"
        "from casstore.__main__ import main\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 10_000 > len(gc.get_objects())))\n"
        "sys.argv = ['casstore', 'ls', '--quiet', '--store', sys.argv[1]]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, place], capture_output=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == b"True"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_for_an_output_that_is_full(option):
    assert in_shell(f"$C {option} >/dev/full") == (1, b"", b"casstore: No space left on device.\n")


def test_a_checkout_where_few_descriptors_are_allowed(place, tmp_path):
    for number in range(200):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
        (tmp_path / "many" / str(number) / "file").write_bytes(b"%d" % number)
    with casstore.Store(place) as store:
        store.add(tmp_path / "many", ref="models/many")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = run(
        *("get", "models/many", tmp_path / "out", "--store", place),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out" / "199" / "file").read_bytes() == b"199"
