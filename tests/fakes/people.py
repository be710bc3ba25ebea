"""Runs commands of casstore as several users of one machine, one after the other.

    python people.py < [[{"uid": …, "groups": […], "home": …}, ["push", …]], …]  >  [[code, stdout, stderr], …]

Everything is imported before a child becomes somebody else, who may not be able to read the sources, Python's
own included. Without the right to become anybody, all of them are whoever runs this.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from click.testing import CliRunner

from casstore.cli import app

FOLDERS = {"HOME": "", "XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config"}


def can_become_others():
    return os.geteuid() == 0


def run_as(steps):
    """Run (person, arguments) one after the other in a process of its own; return what each led to."""
    done = subprocess.run(
        [sys.executable, "-W", "error", os.path.abspath(__file__)],
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout)]


def _become(person):
    os.umask(0o077)
    os.environ.update({name: os.path.join(person["home"], folder) for name, folder in FOLDERS.items()})
    if can_become_others():
        os.setgroups(person["groups"])
        os.setresgid(person["uid"], person["uid"], person["uid"])
        os.setresuid(person["uid"], person["uid"], person["uid"])


def _in_a_child(work):
    """Return what `work` returns in a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(writer, "w") as answer:
                json.dump(work(), answer)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader) as answer:
        told = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return json.loads(told)


def _step(person, arguments):
    _become(person)
    result = CliRunner().invoke(app, arguments)
    unhandled = result.exception if not isinstance(result.exception, SystemExit) else None
    return result.exit_code, result.stdout, result.stderr + (repr(unhandled) if unhandled else "")


def _modules_that_commands_use(commands):
    """Try commands in a folder of their own, and return what they imported."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({name: os.path.join(folder, inside) for name, inside in FOLDERS.items()})
        (shared, model) = (os.path.join(folder, name) for name in ("shared", "model"))
        with open(model, "wb") as file:
            file.write(os.urandom(100_000))
        for store in ((), ("--store", shared)):
            CliRunner().invoke(app, ["init", *store])
        CliRunner().invoke(app, ["add", model, "--ref", "models/x"])
        for command in commands:
            place = [shared] if command in ("push", "pull") else ["models/x"] if command == "rm" else []
            CliRunner().invoke(app, [command, *place, "-q"])
            CliRunner().invoke(app, [command, *(["/nowhere"] if place else ["--store", "/nowhere"])])
    return sorted(sys.modules)


def main():
    steps = json.load(sys.stdin)
    for name in _in_a_child(lambda: _modules_that_commands_use(sorted({step[1][0] for step in steps}))):
        with suppress(ImportError):  # some names are aliases
            importlib.import_module(name)
    json.dump([_in_a_child(lambda step=step: _step(*step)) for step in steps], sys.stdout)


if __name__ == "__main__":
    main()
