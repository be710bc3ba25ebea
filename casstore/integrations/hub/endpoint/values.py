"""The JSON values of the API: models, files and folders, commits. No I/O.

Field names are those of https://huggingface.co/docs/hub/api, as huggingface_hub reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore.digest import digest
from casstore.integrations.hub.hashes import git_sha1, lfs_pointer
from casstore.integrations.hub.repositories import COMMIT_SIZE, commit_of
from casstore.store.times import utc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casstore.integrations.hub.endpoint.card import ModelCard
    from casstore.integrations.hub.repositories import Commit
    from casstore.refs.rows import RefRow

__all__ = [
    "branch_value",
    "commit_value",
    "file_value",
    "folder_values",
    "model_value",
    "row_value",
    "time_text",
]


def time_text(nanoseconds: int) -> str:
    """Return nanoseconds since 1970 as clients parse times."""
    return utc(nanoseconds).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def row_value(repo: str, row: RefRow) -> dict[str, Any]:
    """Return a model as lists show it."""
    return _base_value(repo, commit_of(row.target, row.metadata), row.time)


def model_value(commit: Commit, paths: Iterable[str], card: ModelCard) -> dict[str, Any]:
    """Return a model with the names of its files; `card` is what its README.md says."""
    value = _base_value(commit.repo, commit.sha, commit.record.time)
    tags = [*card.words("tags"), *(f"license:{name}" for name in card.words("license"))]
    value |= {"tags": tags, "siblings": [{"rfilename": path} for path in paths]}
    if card.data:
        value["cardData"] = card.data
    for name in ("pipeline_tag", "library_name"):
        if card.word(name):
            value[name] = card.word(name)
    return value


def file_value(path: str, size: int, found: str, *, lfs: bool) -> dict[str, Any]:
    """Return a file of a tree; `found` is its SHA-256 if it counts as one of Git LFS, else git's SHA-1 of it."""
    value: dict[str, Any] = {"type": "file", "oid": found, "size": size, "path": path}
    if lfs:
        pointer = lfs_pointer(found, size)
        value["oid"] = git_sha1(pointer)
        value["lfs"] = {"oid": found, "size": size, "pointerSize": len(pointer)}
    return value


def sibling_value(value: dict[str, Any]) -> dict[str, Any]:
    """Return a file's value as a model's info has it when it is asked for blobs."""
    sibling = {"rfilename": value["path"], "blobId": value["oid"], "size": value["size"]}
    if "lfs" in value:
        lfs = value["lfs"]
        sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return sibling


def folder_values(entries: Iterable[tuple[str, bytes, bool]]) -> dict[str, dict[str, Any]]:
    """Return the folders that hold these entries, at any depth, by path.

    Each entry is a path, bytes that change with its content, and whether it is an empty folder. The `oid` of a folder changes
    with what is in it; it is not the hash that git would give it.
    """
    inside: dict[str, list[bytes]] = {}
    for path, content, is_folder in entries:
        parts = path.split("/")
        said = b"%b %b" % (path.encode(), content)
        for depth in range(1, len(parts) + is_folder):
            inside.setdefault("/".join(parts[:depth]), []).append(said)
    return {
        path: {
            "type": "directory",
            "oid": digest(b"\n".join(said)).hex()[:COMMIT_SIZE],
            "size": 0,
            "path": path,
        }
        for path, said in inside.items()
    }


def commit_value(commit: Commit) -> dict[str, Any]:
    """Return a commit: who wrote the model, and when."""
    record = commit.record
    title = record.metadata.get("message")
    if not isinstance(title, str):
        title = f"Model {(record.target or b'').hex()}"
    return {
        "id": commit.sha,
        "title": title,
        "message": "",
        "authors": [{"user": record.writer}],
        "date": time_text(record.time),
    }


def last_commit_value(commit: Commit) -> dict[str, Any]:
    """Return a commit as files have it: this server does not know which one changed a file last."""
    value = commit_value(commit)
    return {"id": value["id"], "title": value["title"], "date": value["date"]}


def branch_value(name: str, commit: Commit, *, kind: str) -> dict[str, Any]:
    """Return a branch (`kind` is "heads") or a tag ("tags")."""
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit.sha}


def _base_value(repo: str, sha: str, time_ns: int) -> dict[str, Any]:
    return {
        "_id": sha[:24],
        "id": repo,
        "modelId": repo,
        "author": repo.partition("/")[0] if "/" in repo else None,
        "sha": sha,
        "lastModified": time_text(time_ns),
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
    }
