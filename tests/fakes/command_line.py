"""The command line in this process."""

from __future__ import annotations

import json

from click.testing import CliRunner

from casstore.cli import app


def run(*arguments, code=0):
    """Run the command line; return what it printed to stdout and stderr."""
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def run_json(*arguments, code=0):
    """Run it with --json; return the value that it printed."""
    return json.loads(run(*arguments, "--json", code=code)[0])
