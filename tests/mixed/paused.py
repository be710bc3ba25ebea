"""Writers, collectors and readers on one store, each a process that is stopped and continued at random.

    python tests/mixed/paused.py local|fsspec|s3|azure|sftp [--seconds 1800] [--seed 1] [--keep]

`fsspec` and `sftp` are folders that half of the processes reach without the publishers' lock, and the others as a path.
Servers are started unless --url and --options (JSON) name a place. While it runs and at the end, every
acknowledged ref has exactly the bytes that were added; no add fails; no reader fails on a ref that nobody changes.
Prints what was done; exits with 1 after a complaint, and then leaves everything in place.
"""

from __future__ import annotations

import random
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mixed import command, roles
from mixed.children import PATIENCE, Children, told, work_at
from mixed.history import History, has_ended_acts, read_log, summary
from mixed.places import options_at
from mixed.verdict import judge

LONGEST_PAUSE = 4.0


def disturb(children, chance, seconds, *, enough):
    """Stop and continue processes at random for so long and until it is `enough`, or one has failed."""
    until = time.monotonic() + seconds
    at_last = until + PATIENCE
    while (time.monotonic() < until or not enough()) and time.monotonic() < at_last and not children.failed:
        time.sleep(chance.uniform(0.005, 0.05))
        children.watch()
        running = children.running
        if len(running) > children.count / 2:
            pause = min(chance.expovariate(2), LONGEST_PAUSE, seconds / 4)
            children.stop(chance.choice(running), pause)


def run(urls, options, folder, *, seconds, seed, writers, collectors, readers, grace):
    """Run everybody; return complaints and a summary."""
    names = [f"w{number}" for number in range(writers)]
    places = [
        *((roles.writer, name, {}) for name in names),
        *((roles.collector, f"c{number}", {"grace": grace}) for number in range(collectors)),
        *((roles.reader, f"r{number}", {"writers": names}) for number in range(readers)),
    ]
    logs = [folder / f"{name}.log" for _, name, _ in places]
    children = Children()
    try:
        for number, (role, name, settings) in enumerate(places):
            url = urls[number % len(urls)]
            task = partial(
                work_at, role, url, options_at(url, options),
                name=name, seed=seed, folder=folder, home=f"machine{number % 3}", **settings,
            )  # fmt: skip
            children.start(name, task, folder / f"{name}.err")
        disturb(
            children, random.Random(seed), seconds, enough=lambda: all(has_ended_acts(log) for log in logs)
        )
        (folder / "stop").touch()
        # On a machine that is busy with other things, one check may take minutes; a long run waits for it.
        failed = children.finish(patience=max(PATIENCE, seconds / 3))
    finally:
        children.kill()
    acts = [act for log in logs if log.exists() for act in read_log(log)]
    history = History(acts)
    complaints = [told(name, folder) for name in failed] + history.complaints(acts)
    complaints += judge(urls[0], options_at(urls[0], options), history, folder)
    return complaints, summary(acts)


SETTINGS = {
    "seconds": (10.0, "how long"),
    "seed": (1, "of all that is done at random"),
    "writers": (8, "processes that add, tag and delete"),
    "collectors": (2, "processes that collect"),
    "readers": (4, "processes that read"),
    "grace": (2.0, "seconds of the collectors' policy, where the lock does not help"),
}

if __name__ == "__main__":
    sys.exit(command.main(__doc__, SETTINGS, run))
