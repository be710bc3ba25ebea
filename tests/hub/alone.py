"""Runs a command on a machine that has no network but its own loopback: `alone.py COMMAND…`. Needs root, unshare and ip."""

from __future__ import annotations

import os
import subprocess
import sys

if __name__ == "__main__":
    if os.environ.get("CASSTORE_ALONE"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        os.execvp(sys.argv[1], sys.argv[1:])
    os.environ["CASSTORE_ALONE"] = "1"
    os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, *sys.argv[1:]])
