"""Processes that are forked, so that many start at once; they can be stopped, continued and killed."""

from __future__ import annotations

import math
import os
import random
import signal
import time
import traceback
from functools import partial

from mixed.history import Log

from casstore import Store

PATIENCE = 120
"""Seconds in which everybody must finish what he is at, once nobody is stopped any more."""


class Children:
    """Processes that were forked before this one had any thread; none outlives it.

    `failed` are the names of those that ended with an error.
    """

    def __init__(self):
        self._names = {}
        self._stopped = {}
        self.failed = []

    def start(self, name, work, errors):
        """Fork; the child does `work`, and writes the traceback of what that raises to `errors`."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException:  # noqa: BLE001  # a child must never return into its parent's code
                errors.write_text(traceback.format_exc())
            finally:
                os._exit(code)
        self._names[pid] = name

    @property
    def count(self):
        """How many have not ended."""
        return len(self._names)

    @property
    def running(self):
        """Those that are not stopped."""
        return [pid for pid in self._names if pid not in self._stopped]

    def stop(self, pid, seconds):
        """Stop a process for so long, as far as `watch` is called."""
        self._stopped[pid] = time.monotonic() + seconds
        os.kill(pid, signal.SIGSTOP)

    def watch(self):
        """Continue those that were stopped for long enough, and see which ones have ended."""
        for pid, end in list(self._stopped.items()):
            if time.monotonic() >= end:
                self._continue(pid)
        for pid in list(self._names):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                name = self._names.pop(pid)
                self._stopped.pop(pid, None)
                if status:
                    self.failed.append(name)

    def finish(self, *, patience=PATIENCE):
        """Let everybody end; return the names of those that failed or did not end in time."""
        for pid in list(self._stopped):
            self._continue(pid)
        until = time.monotonic() + patience
        while self._names and time.monotonic() < until:
            self.watch()
            time.sleep(0.01)
        late = [f"{name}, which did not end" for name in self._names.values()]
        self.kill()
        return self.failed + late

    def kill(self):
        """Kill everybody who is left with SIGKILL, one shortly after the other."""
        for pid in self._names:
            os.kill(pid, signal.SIGKILL)
        for pid in self._names:
            os.waitpid(pid, 0)
        self._names, self._stopped = {}, {}

    def _continue(self, pid):
        del self._stopped[pid]
        os.kill(pid, signal.SIGCONT)


def alone(work, errors):
    """Do something in a process of its own, so that this one has no threads when it forks again."""
    children = Children()
    children.start("alone", work, errors)
    if children.finish(patience=math.inf):
        raise SystemExit(errors.read_text())


def work_at(role, url, options, *, name, seed, folder, home, **settings):
    """Open the store as the machine `home` in a child, and do what the role is until the file `stop` appears."""
    os.environ["XDG_CACHE_HOME"] = str(folder / home)
    going = partial(_is_going, folder / "stop")
    chance = random.Random(f"{seed} {name}")
    # Without fsync there are more acts in a second.
    durability = chance.choice(["none", "none", "full"])
    with Store(url, durability=durability, **options) as store:
        log = Log(folder / f"{name}.log")
        role(store, log, chance, name=name, work=str(folder), going=going, **settings)


def told(name, folder):
    """Return what a child that failed has to say."""
    errors = folder / f"{name}.err"
    return f"{name} failed: {errors.read_text()}" if errors.exists() else f"{name} failed"


def _is_going(stop):
    return not stop.exists()
