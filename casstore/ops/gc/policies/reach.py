"""Which objects records reach, and what each of those takes, for a collection that must free space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.format import names
from casstore.format.rows import ROW
from casstore.objects import id_keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from casstore.format.record import Record
    from casstore.ops.gc.survey import Survey

    Positions = NDArray[np.int64]


class Reach:
    """What records reach, by the numbers that objects have in the survey's table until packs are listed again.

    `sizes` are the bytes that each object takes in a pack, its row in the pack's directory included.
    """

    def __init__(self, survey: Survey) -> None:
        self._mark = survey.mark
        self._table = survey.packs.table
        table = self._table
        every = np.ones(len(table.live), np.bool_)
        rows = table.rows_of(every, among=table.decodes(survey.readable()))
        self._rows = np.full(len(table.live), -1, np.int64)
        self._rows[table.objects[rows]] = rows
        self.sizes = np.zeros(len(table.live), np.int64)
        self.sizes[table.objects[rows]] = table.sizes[rows].astype(np.int64) + ROW.itemsize

    def of(self, records: Iterable[Record]) -> Positions:
        """Return the objects that these records reach, bases included, each once."""
        parts: list[Positions] = []
        direct: list[bytes] = []
        for record in records:
            if record.manifest is None:
                continue
            direct.append(record.manifest)
            if names.names_model(record.name):
                layouts = self._mark.layouts_of(record.manifest)
                direct += [*([record.target] if record.target is not None else []), *layouts]
                parts += [self._mark.held[layout] for layout in layouts if layout in self._mark.held]
        parts.append(self._table.find(id_keys(b"".join(direct))))
        found = np.unique(np.concatenate(parts))
        return self._table.with_bases(found[found >= 0], self._rows)

    def mask(self, records: Iterable[Record]) -> NDArray[np.bool_]:
        """Return a mask over all objects that is true for those that these records reach."""
        needed = np.zeros(len(self.sizes), np.bool_)
        for record in records:
            if record.manifest is not None:
                needed[self.of([record])] = True
        return needed
