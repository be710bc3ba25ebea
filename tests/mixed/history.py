"""What processes did to one store and saw in it, by one clock, and whether what they saw was there.

Each ref has one writer. A read may see what the last act acknowledged before it began, or any act that went on
meanwhile. It may fail only while its ref is being replaced or deleted.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter


@dataclass(frozen=True)
class Act:
    """`value` is the seed of a model, or None: deleted or not there. `end` is inf for an act that never ended."""

    what: str
    ref: str
    value: int | None
    begin: int
    end: float
    error: str = ""


class Log:
    """Writes one line when an act begins and one when it is acknowledged; each by one call, so that no kill tears it."""

    def __init__(self, path):
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def begin(self, what, ref="-", value=None):
        self._say("?", what, ref, value)

    def end(self, what, ref="-", value=None, error=""):
        self._say("=", what, ref, value, error)

    def _say(self, mark, what, ref, value, error=""):
        text = " ".join(error.split())
        line = f"{mark} {time.monotonic_ns()} {what} {ref} {'-' if value is None else value} {text}\n"
        os.write(self._fd, line.encode())


def read_log(path):
    """Return the acts of one process in order."""
    acts, begun = [], None
    for line in path.read_text().splitlines():
        mark, moment, what, ref, shown, *error = line.split(" ", 5)
        value = None if shown == "-" else int(shown)
        if mark == "?":
            begun = (what, ref, value, int(moment))
        else:
            what, ref, _, begin = begun
            acts.append(Act(what, ref, value, begin, int(moment), *error))
            begun = None
    if begun is not None:
        what, ref, value, begin = begun
        acts.append(Act(what, ref, value, begin, float("inf")))
    return acts


def has_ended_acts(path):
    """Say whether a process has finished anything, by its log."""
    return path.exists() and b"\n= " in path.read_bytes()


class History:
    """The acts of all writers by ref."""

    def __init__(self, acts):
        ordered = sorted(
            (act for act in acts if act.what in ("add", "tag", "delete")), key=attrgetter("ref", "begin")
        )
        self._acts = {ref: list(group) for ref, group in groupby(ordered, key=attrgetter("ref"))}

    @property
    def refs(self):
        return list(self._acts)

    def possible(self, ref, begin=None, end=None):
        """Return the values that `ref` may have in this time, which is the end of the history by default."""
        acts = self._acts.get(ref, [])
        # One writer for each ref: its acts follow one another, so both their begins and their ends ascend.
        first = len(acts) if begin is None else bisect_right(acts, begin, key=attrgetter("end"))
        last = len(acts) if end is None else bisect_left(acts, end, key=attrgetter("begin"))
        before = {acts[first - 1].value} if first else {None}
        unfinished = {act.value for act in acts[-1:] if act.end == float("inf")}
        if begin is None and unfinished:
            return unfinished | ({acts[-2].value} if len(acts) > 1 else {None})
        return before | {act.value for act in acts[first:last]}

    def changes(self, ref, begin, end):
        """Say whether anything was done to `ref` in this time."""
        return any(act.begin < end and act.end > begin for act in self._acts.get(ref, []))

    def complaints(self, acts):
        """Return what readers saw, and must not have, as sentences."""
        wrong = [f"check: {act.error}" for act in acts if act.what == "check" and act.error]
        for act in acts:
            if act.what != "read" or act.end == float("inf"):
                continue
            allowed = self.possible(act.ref, act.begin, act.end)
            if act.error:
                if not self.changes(act.ref, act.begin, act.end):
                    wrong.append(f"{act.ref} could not be read, and is one of {allowed}: {act.error}")
            elif act.value not in allowed:
                wrong.append(f"{act.ref} was read as {act.value}, and is one of {allowed}")
        return wrong


def summary(acts):
    """Return how many acts of each kind ended, and how many of them with an error."""
    done = Counter(act.what for act in acts if act.end != float("inf"))
    failed = Counter(act.what for act in acts if act.error)
    packs = sum(act.value or 0 for act in acts if act.what == "gc")
    counts = ", ".join(
        f"{count} {what}" + (f" ({failed[what]} failed)" if failed[what] else "")
        for what, count in sorted(done.items())
    )
    return f"{counts}; {packs} packs deleted"
