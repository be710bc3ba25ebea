"""A process that pushes all of a store to a shared one when it is told to.

    python pusher.py SRC DST OPTIONS_AS_JSON

It makes its plan, prints "ready", waits for a line, pushes, and prints what the report counts, as JSON.
"""

from __future__ import annotations

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from casstore.api.store import Store
from casstore.ops.sync import execute, plan_sync


def main(src, dst, options):
    with Store(src) as one, Store(dst, **json.loads(options)) as other:
        plan = plan_sync(one, other)
        os.write(1, b"ready\n")
        sys.stdin.readline()
        report = execute(plan)
    told = {
        "refs": report.refs,
        "missing": report.bytes_missing,
        "written": report.bytes_written,
        "seconds": report.seconds,
        "conflicts": [found.name for found in report.conflicts],
    }
    os.write(1, json.dumps(told).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
