"""Sketches of the tensors in a store, kept on this machine: by which layout they lie in, and for finding like ones.

store/adding/bases/tensors/sketch.py says what a sketch is. All of it can be made again from the store.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from casstore.machine.state import MachineState

_NEWEST = 16
"""Sketches of one signature that are looked at, at most, however many models a store has."""

UNSOUGHT = -1
"""The signature of what is not to be found by likeness: a tensor that follows from another one, which is found instead."""

_WHOLE_MODEL = -1
"""The number of the span that says of a whole model, in the place of a layout, that its sketches are kept."""


Asked = tuple[int, int]
"""How many elements a tensor has, and its signature."""


class Sketch(NamedTuple):
    """The sketch `data` of span number `span` of a layout: of a tensor of so many `elements`, with this `signature`."""

    layout: bytes
    span: int
    elements: int
    signature: int
    data: bytes


class Sketches:
    """The table of one machine state; where there is none, nothing is kept. Safe in threads.

    What it says is a hint (invariant 13): a wrong sketch costs a delta that is not smaller, and is not kept.
    """

    def __init__(self, machine: MachineState) -> None:
        self._machine = machine

    def unmarked(self, models: Sequence[bytes]) -> list[bytes]:
        """Return those of these models whose sketches were never kept: another machine added them, or this one has forgotten."""

        def look_up(state: sqlite3.Connection) -> list[bytes]:
            sql = "SELECT 1 FROM sketches WHERE layout = ? AND span = ?"
            return [model for model in models if state.execute(sql, (model, _WHOLE_MODEL)).fetchone() is None]

        return self._machine.run(look_up, [])

    def of_layout(self, layout: bytes) -> dict[int, bytes]:
        """Return the sketches of the tensors of a layout, by the number of the span, as far as they are known."""

        def look_up(state: sqlite3.Connection) -> dict[int, bytes]:
            sql = "SELECT span, data FROM sketches WHERE layout = ? AND span >= 0"
            return dict(state.execute(sql, (layout,)).fetchall())

        return self._machine.run(look_up, {})

    def stored(self, wanted: Sequence[Asked]) -> dict[Asked, list[Sketch]]:
        """Return the newest sketches that are kept for each of these pairs of elements and signature."""
        sql = (
            "SELECT layout, span, elements, signature, data FROM sketches "
            "WHERE elements = ? AND signature = ? ORDER BY rowid DESC LIMIT ?"
        )

        def look_up(state: sqlite3.Connection) -> dict[Asked, list[Sketch]]:
            return {
                pair: [Sketch(*row) for row in state.execute(sql, (*pair, _NEWEST)).fetchall()]
                for pair in wanted
            }

        return self._machine.run(look_up, {pair: [] for pair in wanted}) if wanted else {}

    def counts(self, wanted: Iterable[int]) -> set[int]:
        """Return those of these numbers of elements that kept sketches have."""

        def look_up(state: sqlite3.Connection) -> set[int]:
            sql = "SELECT 1 FROM sketches WHERE elements = ? LIMIT 1"
            return {count for count in wanted if state.execute(sql, (count,)).fetchone() is not None}

        return self._machine.run(look_up, set())

    def keep(self, sketches: Iterable[Sketch]) -> None:
        """Keep sketches, in the place of those of the same tensors."""
        rows = list(sketches)
        if rows:
            self._machine.run(
                lambda state: state.executemany(
                    "INSERT OR REPLACE INTO sketches VALUES (?, ?, ?, ?, ?)", rows
                ),
                None,
                writes=True,
            )

    def forget(self, layout: bytes) -> None:
        """Drop the sketches of a layout that the store has no more."""
        self._machine.run(
            lambda state: state.execute("DELETE FROM sketches WHERE layout = ?", (layout,)), None, writes=True
        )


class SketchesOfAdd(Sketches):
    """The table as one add sees it: what is `held` counts, too, and is kept when the add is done. Safe in threads."""

    def __init__(self, machine: MachineState) -> None:
        super().__init__(machine)
        self._lock = threading.Lock()
        self._held: list[Sketch] = []
        self._by_signature: dict[Asked, list[Sketch]] = {}
        self._counts: dict[int, bool] = {}

    def hold(self, sketches: Iterable[Sketch]) -> None:
        """Know sketches from now on, which are not to be kept before the add is done."""
        with self._lock:
            for sketch in sketches:
                self._held.append(sketch)
                self._by_signature.setdefault((sketch.elements, sketch.signature), []).append(sketch)
                self._counts[sketch.elements] = True

    def held(self, wanted: Asked) -> list[Sketch]:
        """Return the newest sketches that are held for these elements and this signature."""
        with self._lock:
            return self._by_signature.get(wanted, [])[: -_NEWEST - 1 : -1]

    def look_up_counts(self, wanted: Iterable[int]) -> None:
        """Find out for which numbers of elements there are sketches: of most of another model's, there are none."""
        unknown = set(wanted) - self._counts.keys()
        if unknown:
            there = self.counts(unknown)
            with self._lock:
                for count in unknown:
                    self._counts.setdefault(count, count in there)

    def may_have(self, count: int) -> bool:
        """Say whether there may be sketches of so many elements: as far as this add has looked that up."""
        return self._counts.get(count, True)

    def keep_held(self, model: bytes) -> None:
        """Keep what is held, and note that nothing more is to be kept of this model."""
        with self._lock:
            held, self._held = self._held, []
        if held or self.unmarked([model]):
            self.keep([*held, Sketch(model, _WHOLE_MODEL, 0, UNSOUGHT, b"")])
