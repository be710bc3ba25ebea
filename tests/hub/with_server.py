"""Runs commands beside a server of `casstore serve`: `with_server.py STORE SCRIPT`, where SCRIPT is JSON on stdin.

The script is a list of commands, each a list of words; what they print, and how many bytes of files each has got, is printed as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request


def bytes_of_files(url):
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    lines = [line for line in text.splitlines() if line.startswith('casstore_sent_bytes_total{kind="file"')]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


if __name__ == "__main__":
    commands = json.load(sys.stdin)
    serve = [
        sys.executable,
        "-m",
        "casstore",
        "serve",
        "--port",
        "0",
        "--quiet",
        "--json",
        "--store",
        sys.argv[1],
    ]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        try:
            text = ""
            while not text.endswith("}\n"):
                text += server.stdout.readline()
            url = json.loads(text)["url"]
            answers = []
            for command in commands:
                before = bytes_of_files(url)
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
                        "bytes": bytes_of_files(url) - before,
                    }
                )
        finally:
            server.terminate()
    print(json.dumps(answers))  # noqa: T201 - the answer
