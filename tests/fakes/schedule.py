"""Threads that run one at a time, and change places where they are told to: interleavings that can be repeated."""

from __future__ import annotations

import threading

from casstore.backend import BackendWrapper
from casstore.backend.base import BlobWriter


class Schedule:
    """Runs actors by turns: one goes on until its next `pause`, then `change(step)` says whether another does.

    `choose(others)` picks which.
    """

    def __init__(self, change, choose):
        self._change = change
        self._choose = choose
        self._threads = []
        self._current = threading.local()
        self._running = []  # a lock for each actor, held while it is not its turn
        self._ended = threading.Lock()
        self.errors = []
        self.steps = 0
        self.choices = 0  # steps at which the actor could go on, and another one could take its turn

    @classmethod
    def by_chance(cls, random):
        """Change places at any pause in some schedules, at a few in most: races take long undisturbed runs."""
        chance = random.choice((0.5, 0.1, 0.0))
        length = random.choice((15, 25, 50))
        places = {random.randrange(length) for _ in range(random.randint(2, 4))}
        return cls(lambda step: step in places or random.random() < chance, random.choice)

    @classmethod
    def changing_at(cls, places):
        """Change places exactly there; with two actors this says everything."""
        return cls(lambda step: step in places, lambda others: others[0])

    def add(self, work):
        turn = threading.Lock()
        turn.acquire()

        def body():
            turn.acquire()
            self._current.turn = turn
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # handed to the test
                self.errors.append(error)
            self._running.remove(turn)
            (self._following(turn) if self._running else self._ended).release()

        self._threads.append(threading.Thread(target=body, daemon=True))
        self._running.append(turn)

    def pause(self):
        """Let another actor go on; in a thread that is no actor, do nothing."""
        turn = getattr(self._current, "turn", None)
        if turn is None:
            return
        following = self._following(turn)
        if following is not turn:
            following.release()
            turn.acquire()

    def _following(self, last):
        """Return whose turn is next: decided by the actor whose turn ends, so that going on costs nothing."""
        others = [turn for turn in self._running if turn is not last]
        goes_on = last in self._running
        self.choices += bool(others) and goes_on
        changes = others and (self._change(self.steps) or not goes_on)
        self.steps += 1
        return self._choose(others) if changes else last

    def run(self):
        self._ended.acquire()
        for thread in self._threads:
            thread.start()
        self._following(self._running[0]).release()
        self._ended.acquire()
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]


class ScheduledBackend(BackendWrapper):
    """Pauses its actor before every call that changes something or that `decisive(operation, key)` names."""

    def __init__(self, inner, schedule, *, decisive=lambda operation, key: True):
        super().__init__(inner)
        self._pause = schedule.pause
        self._decisive = decisive

    def _look(self, operation, key):
        if self._decisive(operation, key):
            self._pause()

    def read(self, key, *, start=0, length=None):
        self._look("read", key)
        return self.inner.read(key, start=start, length=length)

    def read_into(self, key, buffer, *, start=0):
        self._look("read", key)
        return self.inner.read_into(key, buffer, start=start)

    def stat(self, key):
        self._look("stat", key)
        return self.inner.stat(key)

    def list(self, prefix):
        self._look("list", prefix)
        return iter([*self.inner.list(prefix)])

    def list_keys(self, prefix):
        return (entry.key for entry in self.list(prefix))

    def put(self, key, parts):
        self._pause()
        self.inner.put(key, parts)

    def create(self, key, parts):
        self._pause()
        self.inner.create(key, parts)

    def delete(self, key):
        self._pause()
        self.inner.delete(key)

    def open_writer(self):
        return _ScheduledWriter(self._pause, self.inner.open_writer())


class _ScheduledWriter(BlobWriter):
    def __init__(self, pause, inner):
        self._pause, self._inner = pause, inner

    def write(self, parts):
        self._inner.write(parts)

    def commit(self, key):
        self._pause()
        self._inner.commit(key)

    def discard(self):
        self._inner.discard()
