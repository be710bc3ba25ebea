"""The model card: README.md, and the YAML in front of its text. Anyone may have written it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import yaml

__all__ = ["CARD", "LONGEST", "ModelCard", "parse_card"]

CARD = "README.md"
LONGEST = 512 << 10
"""Bytes of a card that are read; the rest is left out."""

_LONGEST_DATA = 64 << 10
_DEEPEST = 20
_MARK = "---"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a card says: `data` is from its YAML, plain values only, `text` is Markdown."""

    data: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    def word(self, key: str) -> str | None:
        """Return a value of `data` that is text."""
        value = self.data.get(key)
        return value if isinstance(value, str) else None

    def words(self, key: str) -> list[str]:
        """Return a value of `data` that is a text or a list of texts, as a list."""
        value = self.data.get(key)
        items = value if isinstance(value, list) else [value]
        return [item for item in items if isinstance(item, str)]


def parse_card(data: bytes) -> ModelCard:
    """Read a card; YAML that makes no sense counts as none. Never raises."""
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != _MARK:
        return ModelCard({}, text)
    end = next((at for at, line in enumerate(lines[1:], 1) if line.rstrip() == _MARK), None)
    if end is None:
        return ModelCard({}, text)
    return ModelCard(_parse_data("".join(lines[1:end])), "".join(lines[end + 1 :]))


class _Loader(yaml.SafeLoader):
    """Plain values without aliases, of which a few can stand for more than fits into memory, and not nested without end."""

    def fetch_flow_collection_start(self, kind: Any) -> None:
        if self.flow_level > _DEEPEST:  # The time that it takes grows with the square.
            raise yaml.YAMLError("lists are nested too deep")
        super().fetch_flow_collection_start(kind)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def _parse_data(text: str) -> dict[str, Any]:
    if len(text) > _LONGEST_DATA:
        return {}
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        # Dates become text, and what JSON cannot hold is refused.
        found = json.loads(json.dumps(value, default=str, allow_nan=False))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
