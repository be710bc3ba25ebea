"""Processes that add, tag, delete, push, collect and read one store, and are killed at any moment, by SIGKILL.

    python tests/mixed/killed.py local|fsspec|s3|azure|sftp [--kills 200] [--seed 1] [--keep]

The kinds are those of paused.py. After each round all is checked: a ref is absent or whole, and there once acknowledged
(without the publishers' lock, and with next to no grace, one that was not acknowledged may name packs that are gone).
Every round goes on with what the last one left. At the end adding and collecting work, and nothing is left that
no ref needs. Prints what was done; exits with 1 after a complaint, and then leaves everything in place.
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
from mixed.history import History, read_log, summary
from mixed.places import options_at
from mixed.verdict import judge

ROUND = (roles.writer, roles.collector, roles.pusher, roles.writer, roles.collector, roles.reader)
GRACES = (0.0, 0.5)
"""Seconds of the collectors' policy, where the lock does not help."""

LINES = 30
"""Acts that were begun or acknowledged before a round ends, at most: in some rounds nobody has even opened the store."""


def one_round(number, urls, options, folder, *, chance, seed, grace, count):
    """Run `count` processes, kill them; return their logs and the names of those that had failed before."""
    names = [f"{role.__name__}{number}x{at}" for at, role in enumerate(ROUND[:count])]
    logs = [folder / f"{name}.log" for name in names]
    writing = [name for role, name in zip(ROUND, names, strict=False) if role in (roles.writer, roles.pusher)]
    children = Children()
    try:
        for at, (role, name) in enumerate(zip(ROUND, names, strict=False)):
            url = urls[(number + at) % len(urls)]
            task = partial(
                work_at, role, url, options_at(url, options), name=name, seed=seed, folder=folder,
                home=f"machine{at % 3}", grace=grace, writers=writing,
            )  # fmt: skip
            children.start(name, task, folder / f"{name}.err")
        wanted = chance.randrange(LINES)
        until = time.monotonic() + PATIENCE
        while _written(logs) < wanted and time.monotonic() < until and not children.failed:
            time.sleep(0.01)
            children.watch()
        time.sleep(chance.uniform(0, 0.2))
        children.watch()
    finally:
        children.kill()
    return logs, children.failed


def _written(logs):
    """Return how many lines the writers have said: others are so much faster."""
    writing = [log for log in logs if log.name.startswith(("writer", "pusher")) and log.exists()]
    return sum(log.read_bytes().count(b"\n") for log in writing)


def run(urls, options, folder, *, kills, seed):
    """Kill so many processes; return complaints and a summary."""
    chance = random.Random(seed)
    acts, complaints, number, done = [], [], 0, 0
    options_here = options_at(urls[0], options)
    while done < kills and not complaints:
        count = min(len(ROUND), kills - done)
        logs, failed = one_round(
            number, urls, options, folder, chance=chance, seed=seed, grace=chance.choice(GRACES), count=count
        )
        complaints += [told(name, folder) for name in failed]
        fresh = [act for log in logs if log.exists() for act in read_log(log)]
        complaints += History(fresh).complaints(fresh)
        acts += fresh
        history = History(fresh)
        complaints += judge(urls[0], options_here, history, folder, refs=history.refs, collect=False)
        for log in logs:
            log.unlink(missing_ok=True)
        number, done = number + 1, done + count
    history = History(acts)
    complaints += judge(urls[-1], options_at(urls[-1], options), history, folder)
    return complaints, f"{done} kills: {summary(acts)}"


SETTINGS = {
    "kills": (200, "how many processes"),
    "seed": (1, "of all that is done at random"),
}

if __name__ == "__main__":
    sys.exit(command.main(__doc__, SETTINGS, run))
