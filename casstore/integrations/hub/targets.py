"""What a URL of the Hub's API means: which model, which revision, which file. No I/O.

A revision may hold slashes, which arrive percent-encoded, so the path is split before it is decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

__all__ = ["ApiTarget", "FileTarget", "Target", "is_reachable", "parse_target"]

MAIN = "main"

ACTIONS = frozenset({"revision", "tree", "paths-info", "refs", "commits", "auth-check", "discussions"})
"""What follows the name of a model in a path of the API."""

_KINDS = frozenset({"models", "datasets", "spaces", "kernels"})
_NAMES = 2
_OTHER_KINDS = _KINDS - {"models"}
_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_REPO = re.compile(rf"(?:{_NAME}/)?{_NAME}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileTarget:
    """`/REPO/resolve/REVISION/PATH`; `kind` is "models", or what else the URL says."""

    kind: str
    repo: str
    revision: str
    path: str


@dataclass(frozen=True, slots=True)
class ApiTarget:
    """`/api/KIND[/REPO[/ACTION[/REVISION[/REST]]]]`; what is absent is empty."""

    kind: str
    repo: str = ""
    action: str = ""
    revision: str = ""
    rest: str = ""


Target = FileTarget | ApiTarget


def parse_target(raw_path: bytes) -> Target | None:
    """Return what a percent-encoded path means to the API, None for a path that is none of its.

    Raises UnicodeDecodeError for what is not UTF-8.
    """
    parts = [unquote_to_bytes(part).decode() for part in raw_path.split(b"/")[1:]]
    if parts[0] == "api":
        return _api_target(parts[1:])
    kind = "models"
    if len(parts) > _NAMES and parts[0] in _OTHER_KINDS:
        kind, parts = parts[0], parts[1:]
    for names in (1, _NAMES):
        if len(parts) > names + 2 and parts[names] == "resolve" and all(parts[:names]):
            return FileTarget(kind, "/".join(parts[:names]), parts[names + 1], "/".join(parts[names + 2 :]))
    return None


def _api_target(parts: list[str]) -> ApiTarget | None:
    if not parts or parts[0] not in _KINDS:
        return ApiTarget("/".join(parts)) if parts == ["whoami-v2"] else None
    kind, rest = parts[0], parts[1:]
    if not rest or rest == [""]:
        return ApiTarget(kind)
    names = next((at for at in (1, _NAMES) if len(rest) > at and rest[at] in ACTIONS), min(len(rest), _NAMES))
    action, revision, *path = [*rest[names:], "", ""]
    return ApiTarget(kind, "/".join(rest[:names]), action, revision, "/".join(path).strip("/"))


def is_reachable(repo: str) -> bool:
    """Say whether clients can ask for a model of this name: they refuse deeper names and some characters.

    Names that would read as another part of a path are not reachable either.
    Source: `validate_repo_id` in huggingface_hub/utils/_validators.py.
    """
    parts = repo.split("/")
    return (
        _REPO.fullmatch(repo) is not None
        and "--" not in repo
        and ".." not in repo
        and not repo.endswith(".git")
        and parts[0] not in _OTHER_KINDS | {"api"}
        and (len(parts) == 1 or parts[1] not in ACTIONS | {"resolve"})
    )
