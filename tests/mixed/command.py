"""What the scripts of this folder have in common: their options, a new store, and what they print."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from mixed.places import KINDS, new_store


def main(about, settings, run):
    """Run a script on a new store; return its exit code.

    `settings` are its own options: name → (default, help). `run` takes URLs, the storage's options, a folder, and all settings by name;
    it returns complaints, and a sentence about what was done.
    """
    warnings.simplefilter("error")
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    for name, (default, told) in settings.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{told} ({default})")
    parser.add_argument(
        "--url", help="an empty place, or several names of one, instead of a server of its own"
    )
    parser.add_argument("--options", default="{}", help="the storage's options as JSON")
    parser.add_argument("--keep", action="store_true", help="leave store and logs in place")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="casstore-mixed-"))
    begun = time.monotonic()
    with new_store(chosen.kind, folder, url=chosen.url, options=chosen.options) as (urls, options):
        complaints, done = run(urls, options, folder, **{name: getattr(chosen, name) for name in settings})
    lines = [f"{chosen.kind}, seed {chosen.seed}, {time.monotonic() - begun:.0f} s: {done}", *complaints]
    if complaints or chosen.keep:
        lines.append(f"Logs and store: {folder}")
    else:
        shutil.rmtree(folder)
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if complaints else 0


def run_script(script, kind, request, folder, *options):
    """Run a script from a test, with the session's server; return what it prints, and fail if it complains."""
    command = [sys.executable, "-W", "error", script.__file__, kind, *map(str, options)]
    if kind in ("s3", "azure", "sftp"):
        server = request.getfixturevalue(f"{kind}_server")
        urls = {
            "s3": lambda: f"s3://{server.make_bucket()}/store",
            "azure": lambda: f"az://{server.make_container()}/store",
            "sftp": lambda: f"{server.url(folder / 'store')},{folder / 'store'}",
        }
        command += ["--url", urls[kind](), "--options", json.dumps(server.options)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
