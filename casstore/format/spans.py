"""The tensors of a file, as a layout keeps them: in columns, since a file may have a million."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from casstore.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

__all__ = ["PackedSpans", "Span", "pack_spans", "unpack_spans"]

_COLUMNS = {
    "begins": "<u8",
    "dtype": "<u4",
    "ends": "<u8",
    "name_lengths": "<u4",
    "ranks": "u1",
    "shapes": "<u8",
}
_FIELDS = frozenset({*_COLUMNS, "dtypes", "names"})


@dataclass(frozen=True, slots=True)
class Span:
    """One tensor inside a file: its bytes are [`begin`, `end`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class PackedSpans(Sequence[Span]):
    """A read-only sequence of spans, equal to any other of the same; each Span is made on access."""

    __slots__ = ("_columns", "_dtypes", "_name_ends", "_names", "_shape_ends")

    def __init__(self, columns: dict[str, NDArray[Any]], dtypes: Sequence[str], names: bytes) -> None:
        """Take matching columns, as `pack_spans` and `unpack_spans` make them."""
        self._columns = columns
        self._dtypes = tuple(dtypes)
        self._names = names
        self._name_ends = np.cumsum(columns["name_lengths"], dtype=np.int64)
        self._shape_ends = np.cumsum(columns["ranks"], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._name_ends)

    @overload
    def __getitem__(self, at: int) -> Span: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Span, ...]: ...
    def __getitem__(self, at: int | slice) -> Span | tuple[Span, ...]:
        if isinstance(at, slice):
            return tuple(self[item] for item in range(*at.indices(len(self))))
        at = range(len(self))[at]
        name_end, shape_end = int(self._name_ends[at]), int(self._shape_ends[at])
        columns = self._columns
        return Span(
            self._names[name_end - int(columns["name_lengths"][at]) : name_end].decode(),
            self._dtypes[columns["dtype"][at]],
            tuple(columns["shapes"][shape_end - int(columns["ranks"][at]) : shape_end].tolist()),
            int(columns["begins"][at]),
            int(columns["ends"][at]),
        )

    def __iter__(self) -> Iterator[Span]:
        columns = {name: column.tolist() for name, column in self._columns.items()}
        name_ends, shape_ends = self._name_ends.tolist(), self._shape_ends.tolist()
        rows = zip(
            columns["name_lengths"],
            name_ends,
            columns["dtype"],
            columns["ranks"],
            shape_ends,
            columns["begins"],
            columns["ends"],
            strict=True,
        )
        for length, name_end, dtype, rank, shape_end, begin, end in rows:
            yield Span(
                self._names[name_end - length : name_end].decode(),
                self._dtypes[dtype],
                tuple(columns["shapes"][shape_end - rank : shape_end]),
                begin,
                end,
            )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedSpans):
            return self.fields() == other.fields()
        return isinstance(other, tuple) and tuple(self) == other

    __hash__ = None  # type: ignore[assignment]  # it equals tuples, and nobody keeps it in a set

    def __repr__(self) -> str:
        some = ", ".join(repr(span) for span in self[:3])
        return f"<{len(self)} spans: {some}{', …' if len(self) > 3 else ''}>"

    def find(self, name: str) -> Span | None:
        """Return the span of this name, the first if there are several, None if there is none."""
        wanted = name.encode(errors="surrogatepass")
        at = self._names.find(wanted) if wanted else -1
        while at >= 0:
            position = int(np.searchsorted(self._name_ends, at, side="right"))
            length = int(self._columns["name_lengths"][position])
            if length == len(wanted) and at == int(self._name_ends[position]) - length:
                return self[position]
            at = self._names.find(wanted, at + 1)
        return next((span for span in self if not span.name), None) if not wanted else None

    def check(self, size: int) -> None:
        """Raise FormatError unless a layout of a file of `size` bytes may hold them; for writers and readers."""
        columns, dtypes = self._columns, self._dtypes
        begins, ends, starts = columns["begins"], columns["ends"], self._name_ends - columns["name_lengths"]
        if (begins > ends).any() or (ends > size).any():
            raise _bad()
        if self._name_ends[-1] != len(self._names) or self._shape_ends[-1] != len(columns["shapes"]):
            raise _bad()
        # Canonical form: types are listed once each, in the order of their first use, and none is unused.
        if list(dict.fromkeys(columns["dtype"].tolist())) != list(range(len(dtypes))):
            raise _bad()
        if any(type(item) is not str for item in dtypes) or len(set(dtypes)) != len(dtypes):
            raise _bad()
        _check_names(self._names, starts)

    def fields(self) -> dict[str, Any]:
        """Return the form in which a layout keeps them."""
        columns = {name: self._columns[name].tobytes() for name in _COLUMNS}
        return {**columns, "dtypes": list(self._dtypes), "names": self._names}


def pack_spans(spans: Iterable[Any]) -> PackedSpans | tuple[()]:
    """Pack objects with the attributes of a Span; raise ConfigError for any that a layout cannot keep."""
    items = spans if isinstance(spans, Sequence) else list(spans)
    if isinstance(items, PackedSpans) or not items:
        return items if isinstance(items, PackedSpans) else ()
    try:
        names = [item.name.encode() for item in items]
        dtypes: dict[str, int] = {}
        values = {
            "begins": [item.begin for item in items],
            "dtype": [dtypes.setdefault(item.dtype, len(dtypes)) for item in items],
            "ends": [item.end for item in items],
            "name_lengths": [len(name) for name in names],
            "ranks": [len(item.shape) for item in items],
            "shapes": list(itertools.chain.from_iterable(item.shape for item in items)),
        }
        columns = {name: np.array(column, _COLUMNS[name]) for name, column in values.items()}
    except (OverflowError, UnicodeEncodeError) as error:
        # Invariant 3: a value that cannot be encoded stops the publish before its record.
        raise ConfigError(f"These tensor spans cannot be stored: {error}.") from error
    return PackedSpans(columns, tuple(dtypes), b"".join(names))


def unpack_spans(value: Any, size: int) -> PackedSpans | tuple[()]:
    """Read the field of a layout of a file of `size` bytes; raise FormatError unless every span lies inside."""
    if value is None:
        return ()
    if type(value) is not dict or value.keys() != _FIELDS:
        raise _bad()
    dtypes, names = value["dtypes"], value["names"]
    packed = {name: value[name] for name in _COLUMNS}
    if type(names) is not bytes or type(dtypes) is not list:
        raise _bad()
    columns: dict[str, NDArray[Any]] = {}
    for name, data in packed.items():
        kind = np.dtype(_COLUMNS[name])
        if type(data) is not bytes or len(data) % kind.itemsize:
            raise _bad()
        columns[name] = np.frombuffer(data, kind)
    count = len(columns["begins"])
    if not count or {len(column) for name, column in columns.items() if name != "shapes"} != {count}:
        raise _bad()
    spans = PackedSpans(columns, dtypes, names)
    spans.check(size)
    return spans


def _check_names(names: bytes, starts: NDArray[np.int64]) -> None:
    """Raise FormatError unless each name is UTF-8: all of them together are, and none begins inside a character."""
    if names.isascii():
        return
    try:
        names.decode()
    except UnicodeDecodeError as error:
        raise _bad() from error  # Invariant 4: bytes that are not text are an error.
    data = np.frombuffer(names, np.uint8)
    if (data[starts[starts < len(data)]] & 0xC0 == 0x80).any():
        raise _bad()


def _bad() -> FormatError:
    return FormatError("A layout holds invalid tensor spans.")
