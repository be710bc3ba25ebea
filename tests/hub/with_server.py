"""Runs commands beside a server of `casstore serve`: `with_server.py STORE SCRIPT`, where SCRIPT is JSON on stdin.

The script is a list of commands, each a list of words; what they print, and how many bytes of files each has got, is printed as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks.serving import casstore_server, sent_bytes

if __name__ == "__main__":
    commands = json.load(sys.stdin)
    answers = []
    with casstore_server(sys.argv[1]) as (url, _):
        for command in commands:
            before = sent_bytes(url)
            done = subprocess.run(
                command,
                env={**os.environ, "HF_ENDPOINT": url},
                capture_output=True, text=True, check=False, timeout=280,
            )  # fmt: skip
            answers.append(
                {
                    "code": done.returncode,
                    "out": done.stdout,
                    "err": done.stderr[-4000:],
                    "bytes": sent_bytes(url) - before,
                }
            )
    print(json.dumps(answers))  # noqa: T201 - the answer
