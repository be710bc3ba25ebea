"""The table of commands, which `--help` prints without importing any, says what the commands' own help says."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import casstore.cli
from casstore.cli import COMMANDS, app
from casstore.cli.support.command import SHARED_OPTIONS

WITHOUT = {"cat": {"as_json", "quiet"}}
"""Commands to which some shared options would mean nothing."""


def command_of(name):
    return importlib.import_module(f"casstore.cli.{name}").run


def test_every_module_is_in_the_table():
    files = Path(casstore.cli.__file__).parent.glob("[!_]*.py")
    assert {path.stem for path in files} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_of_help_is_that_of_the_module(name):
    assert command_of(name).help.partition("\n")[0] == COMMANDS[name]
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"Usage: root {name} ")
    assert COMMANDS[name] in shown.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_shared_options(name):
    command = command_of(name)
    for each in command.commands.values() if isinstance(command, click.Group) else [command]:
        missing = {option.name for option in SHARED_OPTIONS} - {param.name for param in each.params}
        assert missing == WITHOUT.get(name, set())


def test_help_shows_whole_lines_in_the_order_of_the_table():
    shown = CliRunner().invoke(app, ["--help"]).stdout
    lines = [line.split(None, 1) for line in shown.partition("Commands:\n")[2].splitlines()]
    assert [tuple(line) for line in lines] == list(COMMANDS.items())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("casstore s", {"serve", "show", "sync", "stats"}),
        ("casstore ls --q", {"--quiet"}),
        ("casstore remote re", {"remove"}),
        ("casstore runs --status f", {"failed"}),
    ],
)
def test_a_shell_completes(words, expected):
    done = subprocess.run(
        [sys.executable, "-m", "casstore"],
        env={
            **os.environ,
            "_CASSTORE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected
