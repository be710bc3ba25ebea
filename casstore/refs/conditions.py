"""A query's conditions as SQL; where SQLite compares unlike Python, Python checks the rows again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from casstore.format import names

if TYPE_CHECKING:
    from casstore.refs.rows import RefQuery

MAX_INTEGER = (1 << 63) - 1
"""The largest integer that SQLite holds."""

_EXACT_INTEGER = 1 << 53


def key_range(prefix: str) -> tuple[str, str]:
    """Return the first text that begins with `prefix`, which ends with '/', and the first one beyond."""
    return prefix, f"{prefix[:-1]}0"


def conditions(query: RefQuery, *, by: Literal["key", "name"]) -> tuple[str, list[Any]]:
    """Return the conditions on names and ids, which hold for every row alike.

    A namespace is a range of keys as well as of names; which of them an index has decides what is fast.
    """
    space = query.folder if by == "key" else query.folder.removeprefix(names.PREFIX)
    sql = [f"{by} >= ?", f"{by} < ?"] if space else ["1"]
    values: list[Any] = [*key_range(space)] if space else []
    if query.prefix:
        sql.append("substr(name, 1, ?) = ?")
        values += [len(query.prefix), query.prefix]
    for column, value in (("target", query.target), ("base", query.base)):
        if value is not None:
            sql.append(f"{column} = ?")
            values.append(value)
    return " AND ".join(sql), values


def metadata_conditions(query: RefQuery) -> tuple[list[str], list[Any], bool]:
    """Return conditions on times and metadata, and whether they are exact; if not, the rows must be checked again.

    They never leave out a row that Python's `==` accepts.
    """
    sql: list[str] = []
    values: list[Any] = []
    exact = True
    for column, bound in (("time >= ?", query.since), ("time < ?", query.until)):
        if bound is not None and abs(bound) <= MAX_INTEGER:
            sql.append(column)
            values.append(bound)
        elif bound is not None:
            exact = False
    for field, value in query.where:
        path = _json_path(field)
        if path is not None and value is None:
            sql.append("json_extract(metadata, ?) IS NULL")
            values.append(path)
        elif path is not None and type(value) is str and is_plain(value):
            # json_extract gives text for an array, too.
            sql.append("json_extract(metadata, ?) = ? AND json_type(metadata, ?) = 'text'")
            values += [path, value, path]
        elif path is not None and type(value) in (int, bool) and abs(value) < _EXACT_INTEGER:
            # SQLite may read a fraction inexactly: it finds every equal number, and maybe others.
            sql.append("json_extract(metadata, ?) = ?")
            values += [path, int(value)]
            exact = False
        else:
            exact = False
    return sql, values, exact


def _json_path(field: str) -> str | None:
    """Return SQLite's path to a field, None if SQLite cannot spell it."""
    parts = field.split(".")
    if not all(
        part.isascii() and part.isprintable() and part and not set(part) & {'"', "\\"} for part in parts
    ):
        return None
    return "$" + "".join(f'."{part}"' for part in parts)


def is_plain(text: str) -> bool:
    """Say whether SQLite compares this text as Python does: it has no NUL and can be encoded as UTF-8."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
