"""Which model of the store a repository and a revision of the Hub mean.

The repository `org/name` is the ref `models/org/name`. Its revision `main` is what the ref names now; a commit is any value
that it has had, as far as the store still knows; a tag of the store is a revision of each repository that has had its model,
and `tags/org/name/x` is the revision `x` of `org/name`.
Clients accept 40 hex digits as a commit and take anything else for the name of a branch, so a commit is the first 40 of the model id.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from casstore.errors import ConfigError, MissingObject
from casstore.format import names
from casstore.integrations.hub.errors import repo_not_found, revision_not_found
from casstore.integrations.hub.targets import MAIN
from casstore.store.times import utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from casstore.api.store import Store
    from casstore.format.record import Record
    from casstore.refs.rows import RefRow
    from casstore.store.reading.model import Model

__all__ = [
    "COMMIT_SIZE",
    "LFS_SIZE",
    "MIRROR",
    "MODELS",
    "TAGS",
    "Commit",
    "Repositories",
    "commit_of",
    "hub_note",
    "is_commit",
]

T = TypeVar("T")

COMMIT_SIZE = 40
MODELS = "models/"
TAGS = "tags/"

LFS_SIZE = 1 << 20
"""Files of this size and more are named by their SHA-256, as if they were kept by Git LFS; others by git's own hash."""

MIRROR = "mirror_of"
"""The field of a record's metadata that says which commit of which other hub the model is: a map, of which `hub_note` knows the rest."""

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PREFIXES = ("refs/heads/", "refs/tags/")
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Commit:
    """One revision of a repository: the record that names its model."""

    repo: str
    record: Record

    @property
    def sha(self) -> str:
        """What clients know it by: 40 hex digits."""
        return commit_of(self.record.target, self.record.metadata)

    @property
    def time(self) -> datetime:
        """When it was written, by the clock of its writer."""
        return utc(self.record.time)

    def is_lfs(self, path: str, size: int) -> bool:
        """Say whether a file goes by its SHA-256: as the hub that it came from said, else by its size."""
        known = hub_note(self.record.metadata).get("lfs")
        said = known.get(path) if isinstance(known, dict) else None
        return said if isinstance(said, bool) else size >= LFS_SIZE


class Repositories:
    """The repositories of one store, as they are now. Safe in threads.

    A ref is assumed unchanged for `ref_seconds`, since asking a store that is a network away takes time.
    """

    def __init__(
        self, store: Store, *, ref_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store = store
        self._ref_seconds = ref_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Any]] = {}

    def commit(self, repo: str, revision: str = MAIN) -> Commit:
        """Return what a revision of a repository means; raise HubError where there is no such one."""
        for prefix in _PREFIXES:
            revision = revision.removeprefix(prefix)
        newest = self.value(MODELS + repo)
        if newest is not None:
            found = self._of(repo, revision or MAIN, newest)
            if found is not None:
                return found
        # A tag below the name of a repository is a revision of that one, whatever else it has been.
        own = self.value(f"{TAGS}{repo}/{revision}")
        if own is not None:
            return Commit(repo, own)
        raise repo_not_found(repo) if newest is None else revision_not_found(repo, revision)

    def _of(self, repo: str, revision: str, newest: Record) -> Commit | None:
        if revision == MAIN:
            return Commit(repo, newest)
        if is_commit(revision):
            found = next((item for item in self._commits(repo, newest) if _is(item, revision)), None)
            if found is not None:
                return found
        tag = self.value(TAGS + revision)
        if tag is not None:
            for item in self._commits(repo, newest):
                if item.record.target == tag.target:
                    return item
        return None

    def history(self, commit: Commit) -> list[Commit]:
        """Return a commit and those before it, the newest first, each once."""
        found: dict[str, Commit] = {}
        newest = self.value(MODELS + commit.repo)
        for item in self._commits(commit.repo, newest or commit.record):
            found.setdefault(item.sha, item)
        shas = list(found)
        return [found[sha] for sha in shas[shas.index(commit.sha) :]] if commit.sha in found else [commit]

    def tags(self, repo: str) -> list[tuple[str, Commit]]:
        """Return the tags that are revisions of a repository, with their commits, by name."""
        newest = self.value(MODELS + repo)
        had = {} if newest is None else {item.record.target: item for item in self._commits(repo, newest)}
        own = f"{TAGS}{repo}/"
        found = {}
        for row in self.rows(TAGS):
            if row.name.startswith(own):
                found[row.name.removeprefix(own)] = self.commit(repo, row.name.removeprefix(own))
            elif row.target in had:
                found[row.name.removeprefix(TAGS)] = had[row.target]
        return sorted(found.items())

    def rows(self, prefix: str = MODELS) -> list[RefRow]:
        """Return the refs whose names start with a prefix and that everybody may read, the one that was written last first."""
        return self._remembered(
            f"rows {prefix}",
            lambda: [row for row in self.store.find(prefix) if not _is_private_row(row)],
        )

    def check_public(self, record: Record) -> None:
        """Raise HubError for a model that another hub gave to somebody in particular, as if it were not there."""
        if _is_private(record.metadata):
            raise repo_not_found(record.name.partition("/")[2])

    def private_names(self) -> frozenset[str]:
        """Return the names of refs that not everybody may read."""
        rows = self._remembered(
            "private",
            lambda: [row.name for row in self.store.find() if _is_private_row(row)],
        )
        return frozenset(rows)

    def model(self, commit: Commit) -> Model:
        """Return what a commit consists of; raises as `check_kept` does, and IntegrityError for damage."""
        try:
            return self.store.model_of(commit.record, elsewhere=True)
        except MissingObject:
            self.check_kept(commit)
            raise  # Invariant 11: the ref still names it, so this is damage.

    def check_kept(self, commit: Commit) -> None:
        """Raise HubError if objects of a commit are missing because gc has freed it: history keeps no bytes (design §8)."""
        target = commit.record.target
        if any(row.target == target for prefix in (MODELS, TAGS) for row in self.store.find(prefix)):
            return
        raise revision_not_found(commit.repo, commit.sha, "The store knows it, but its files are gone.")

    def forget(self) -> None:
        """Read every ref again when it is next needed."""
        with self._lock:
            self._known.clear()

    def _commits(self, repo: str, newest: Record) -> Iterator[Commit]:
        """Yield what a repository has been, the newest first."""
        yield Commit(repo, newest)
        for record in reversed(self._remembered(f"log {repo}", lambda: self.store.history(MODELS + repo))):
            if record.target is not None and record.write_id != newest.write_id:
                yield Commit(repo, record)

    def value(self, name: str) -> Record | None:
        """Return the record of a ref, None if there is none."""
        try:
            names.check_name(name)
        except ConfigError:
            return None  # No ref can have this name, so none has.
        return self._remembered(f"ref {name}", lambda: self.store.record(name))

    def _remembered(self, key: str, read: Callable[[], T]) -> T:
        now = self._clock()
        with self._lock:
            known = self._known.get(key)
            if known is not None and now - known[0] < self._ref_seconds:
                remembered: T = known[1]
                return remembered
        value = read()
        if self._ref_seconds:
            with self._lock:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[key] = (now, value)
        return value


def is_commit(revision: str) -> bool:
    """Say whether a revision is a commit, or a whole model id, rather than a name."""
    return _COMMIT.fullmatch(revision) is not None


def hub_note(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says of the hub that its model came from, nothing if it came from none.

    That is `url` and `commit`, whether it is `private`, and `lfs`, which files go by another hash than their size suggests.
    """
    note = metadata.get(MIRROR)
    is_one = isinstance(note, dict) and all(isinstance(note.get(key), str) for key in ("url", "commit"))
    return note if isinstance(note, dict) and is_one else {}


def _is_private(metadata: dict[str, Any]) -> bool:
    return bool(hub_note(metadata).get("private"))


def _is_private_row(row: RefRow) -> bool:
    # Most rows are decoded no further.
    return MIRROR.encode() in row.packed_metadata and _is_private(row.metadata)


def commit_of(target: bytes | None, metadata: dict[str, Any]) -> str:
    """Return the 40 digits by which clients know a model: those of the hub that it came from, else of its id."""
    known = hub_note(metadata).get("commit")
    if isinstance(known, str) and len(known) == COMMIT_SIZE and _COMMIT.fullmatch(known):
        return known
    return (target or b"").hex()[:COMMIT_SIZE]


def _is(commit: Commit, revision: str) -> bool:
    assert commit.record.target is not None
    return commit.sha == revision or (len(revision) > COMMIT_SIZE and commit.record.target.hex() == revision)
