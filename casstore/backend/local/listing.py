"""Lists what lies below a prefix of a local store, in the order of whole keys, directory by directory."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

from casstore.backend.base import is_key
from casstore.backend.local.syscalls import EntryKind, Status
from casstore.backend.location import file_url
from casstore.backend.oserrors import from_os_error
from casstore.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casstore.backend.local.directory import StoreDirectory

_Listed = TypeVar("_Listed", Status, EntryKind)
_Files = list[tuple[str, _Listed]]


def walk(
    directory: StoreDirectory, prefix: str, scan: Callable[[str], _Files[_Listed]]
) -> Iterator[tuple[str, _Listed]]:
    """Yield the key of each file below `prefix` and what `scan` says of it, in order."""
    for files in _walk(directory, prefix, scan, top=True):
        yield from files


def _walk(
    directory: StoreDirectory, prefix: str, scan: Callable[[str], _Files[_Listed]], *, top: bool
) -> Iterator[_Files[_Listed]]:
    """Yield the files below `prefix` in order, as many at once as lie side by side."""
    try:
        children = scan(f"{directory.root}/{prefix}")
    except FileNotFoundError as error:
        if not top:
            # Invariant 8: casstore removes no directories, so a part of the listing got lost.
            raise BackendUnavailable(
                f"Cannot list {prefix} in {file_url(directory.root)}: a directory or a link in it disappeared."
            ) from error
        directory.require_reachable(prefix)
        return
    except OSError as error:
        # Invariant 8: an error is an error, never an empty set.
        raise from_os_error(error, f"list {prefix or 'everything'} in {file_url(directory.root)}") from error
    if top and not children:
        directory.require_reachable(prefix)
    # A directory sorts as its name with the slash, so that whole keys come out in order.
    # By name: a directory that changes while it is read may give a name twice.
    named = [(f"{name}/" if found.is_directory else name, found) for name, found in dict(children).items()]
    named.sort(key=itemgetter(0))
    files: _Files[_Listed] = []
    for name, found in named:
        # Hidden names are this backend's own or the file system's (.nfs…); names that are not keys
        # belong to other programs (Thumbs.db).
        if found.is_directory:
            if is_key(name[:-1]):
                yield files
                files = []
                yield from _walk(directory, prefix + name, scan, top=False)
        elif found.is_file and is_key(name):
            files.append((prefix + name, found))
    yield files


def walk_foreign(directory: StoreDirectory, prefix: str = "") -> Iterator[str]:
    """Yield what lies where objects would but cannot be one, as paths below the root; a folder's ends with a slash."""
    try:
        children = directory.calls.scan_kinds(f"{directory.root}/{prefix}")
    except OSError as error:
        # Invariant 8: an error is an error, never an empty set.
        raise from_os_error(error, f"list {prefix or 'everything'} in {file_url(directory.root)}") from error
    for name, found in sorted(children, key=itemgetter(0)):
        if name.startswith("."):
            continue
        if is_key(name) and found.is_directory:
            yield from walk_foreign(directory, f"{prefix}{name}/")
        elif not (is_key(name) and found.is_file):
            yield f"{prefix}{name}/" if found.is_directory else f"{prefix}{name}"
