"""The list of models, and where the bytes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.integrations.hub.repositories import MODELS, TAGS
from casstore.integrations.hub.targets import is_reachable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request

    from casstore.integrations.hub.page.measurements import Measured
    from casstore.integrations.hub.page.site import Site
    from casstore.refs.rows import RefRow

__all__ = ["models", "usage"]

_PAGE = 1000
_FIRST_SECONDS = 0.2
_USAGE_ROWS = 200


@dataclass(frozen=True, slots=True)
class _Row:
    """One model of the list; sizes are None until they are measured."""

    name: str
    model_id: str
    time: int
    size: int | None
    stored: int | None
    freed: int | None
    tags: tuple[str, ...]
    reachable: bool


_SORTS: dict[str, tuple[Callable[[_Row], Any], bool]] = {
    "name": (lambda row: row.name.lower(), False),
    "size": (lambda row: row.size or 0, True),
    "stored": (lambda row: row.stored or 0, True),
    "time": (lambda row: row.time, True),
}
"""How to sort, and whether the largest comes first unless somebody asks otherwise."""


async def models(site: Site, request: Request) -> dict[str, Any]:
    """Return what the list shows."""
    rows = await site.context.run(site.context.repositories.rows)
    tags = await site.context.run(site.context.repositories.rows, TAGS)
    measured = await _measured(site, rows)
    query = request.query_params
    search = query.get("q", "").strip()
    sort = query.get("sort", "name") if query.get("sort") in _SORTS else "name"
    key, largest_first = _SORTS[sort]
    if query.get("order") in ("up", "down"):
        largest_first = query["order"] == "down"
    listed = [row for row in _rows(rows, tags, measured) if _matches(row, search)]
    listed.sort(key=lambda row: row.name)
    listed.sort(key=key, reverse=largest_first)
    page = max(1, int(query["page"])) if query.get("page", "").isdecimal() and len(query["page"]) < 9 else 1
    return {
        "rows": listed[(page - 1) * _PAGE : page * _PAGE],
        "total": len(listed),
        "all": len(rows),
        "page": page,
        "pages": max(1, -(-len(listed) // _PAGE)),
        "search": search,
        "sort": sort,
        "order": "down" if largest_first else "up",
        "measured": measured,
        "endpoint": str(request.base_url).rstrip("/"),
    }


async def usage(site: Site, request: Request) -> dict[str, Any]:
    """Return where the bytes are."""
    rows = await site.context.run(site.context.repositories.rows)
    measured = await _measured(site, rows)
    hidden = await site.context.run(site.context.repositories.private_names)
    listed = [row for row in measured.usage.rows if row.name not in hidden] if measured else []
    return {
        "hidden": hidden,
        "measured": measured,
        "rows": listed[:_USAGE_ROWS],
        "more": len(listed[_USAGE_ROWS:]),
        "place": site.store_place(request),
    }


async def _measured(site: Site, rows: Sequence[RefRow]) -> Measured | None:
    measured = site.measurements.latest(rows)
    if measured is None:
        await site.measurements.wait(_FIRST_SECONDS)
        measured = site.measurements.latest(rows)
    return measured


def _rows(rows: Sequence[RefRow], tags: Sequence[RefRow], measured: Measured | None) -> list[_Row]:
    by_target: dict[bytes, list[str]] = {}
    for tag in tags:
        by_target.setdefault(tag.target, []).append(tag.name.removeprefix(TAGS))
    found = []
    for row in rows:
        name = row.name.removeprefix(MODELS)
        known = measured.by_ref.get(row.name) if measured else None
        found.append(
            _Row(
                name=name,
                model_id=row.target.hex(),
                time=row.time,
                size=known.bytes_logical if known else None,
                stored=known.bytes_stored if known else None,
                freed=known.bytes_freed if known else None,
                tags=tuple(sorted(by_target.get(row.target, ()))),
                reachable=is_reachable(name),
            )
        )
    return found


def _matches(row: _Row, search: str) -> bool:
    wanted = search.lower()
    return (
        wanted in row.name.lower()
        or row.model_id.startswith(wanted)
        or any(wanted in tag.lower() for tag in row.tags)
    )
