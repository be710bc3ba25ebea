"""One run of a command: which store, how to print, and what an error becomes."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import click

from casstore.api.store import Store
from casstore.cli.support.exits import ERROR, exit_codes, say
from casstore.cli.support.progress import progress_bar, status_line
from casstore.cli.support.text import printable
from casstore.errors import ConfigError, StoreNotFound
from casstore.format.marks import FORMAT_KEY
from casstore.machine.remotes import Remotes, is_place
from casstore.machine.user_folders import NO_HOME, data_folder, expand_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from casstore.cli.support.progress import ProgressBar
    from casstore.objects import Damage

STORE_VARIABLE = "CASSTORE_STORE"


@dataclass(frozen=True, slots=True)
class Session:
    """What every command is given: where its store is and how it shall print."""

    store_option: str | None
    as_json: bool
    quiet: bool
    damaged: list[Damage] = field(default_factory=list, compare=False)
    """What was left out because it cannot be read: told when the command is done, and then it has failed."""

    def answer_for(self, store: Store) -> Store:
        """Let the command fail in the end if its work on all of a store leaves anything out; return the store."""
        store.on_damage = self.damaged.append
        return store

    @property
    def place(self) -> str:
        """The path or URL of the store: the option, else the environment, else the user's own store."""
        return expand_home(self.store_option or os.environ.get(STORE_VARIABLE) or "") or default_place()

    def open(self, *, read_only: bool = False) -> Store:
        """Open the store; the caller closes it."""
        return self.open_at(self.place, read_only=read_only)

    def open_or_create(self, place: str, *, shared: Literal["group"] | None = None) -> tuple[Store, bool]:
        """Open the store at a place, making it if there is none, for its folder's group or private; say whether it was made."""
        place = expand_home(place)
        try:
            return Store(store_in(place), shared=shared), False
        except StoreNotFound:
            # Invariant 1: making a store refuses a place that holds anything else, so this is safe to try.
            return Store(place, create=True, shared=shared), True

    def open_to_fill(self) -> Store:
        """Open the store; the user's own is made on first use, and a note says so. The caller closes it."""
        if self.store_option or os.environ.get(STORE_VARIABLE):
            return self.open()
        opened, created = self.open_or_create(self.place)
        if created:
            self.note(f"made your own store at {self.place}.")
        return opened

    def open_at(self, place: str, *, read_only: bool = False) -> Store:
        """Open the store at a path or URL, or of the pipeline's cache in that folder; the caller closes it.

        `~` is the home directory: shells leave it alone in `--store=~/x`, and files and variables have no shell.
        """
        return Store(store_in(expand_home(place)), read_only=read_only)

    def open_remote(
        self, remote: str, store: Store, *, read_only: bool = False, create: bool = False
    ) -> Store:
        """Open, or make, the store that `remote`, a name of this store's or a place, means; the caller closes it."""
        place = Remotes(store.store_id).resolve(remote)
        if not create:
            return self.open_at(place, read_only=read_only)
        opened, created = self.open_or_create(place)
        if created:
            self.note(f"made a store at {opened.backend.url}.")
        return opened

    def places(self, remotes: Sequence[str]) -> list[str]:
        """Return the paths or URLs that these mean; the store is opened only if one may be a name."""
        if all(is_place(remote) for remote in remotes):
            return list(remotes)
        known = Remotes(self.store_id())
        return [known.resolve(remote) for remote in remotes]

    def store_id(self) -> str:
        """Return the id of the store, under which its settings are kept."""
        with self.open(read_only=True) as opened:
            return opened.store_id

    def note(self, text: str) -> None:
        """Say something on stderr, unless nobody wants to hear it."""
        if not self.quiet:
            say(text)

    def report(self, value: Any, *sentences: str) -> None:
        """Print what was done: one JSON value, or sentences."""
        if self.as_json:
            self.print_json(value)
        else:
            for sentence in sentences:
                self.summary(sentence)

    def listing(
        self,
        values: Iterable[Any],
        *,
        names: Iterable[str],
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
    ) -> None:
        """Print a list: JSON values, or only names where quiet, or a table."""
        if self.as_json:
            self.print_json(list(values))
        elif self.quiet:
            for name in names:
                self.print_line(name)
        else:
            self.table(columns, rows)

    def print_json(self, value: Any) -> None:
        """Print one JSON value; dataclasses in it become objects, and bytes hex."""
        print(json.dumps(value, indent=2, default=_as_json))  # noqa: T201

    def print_line(self, *cells: str) -> None:
        """Print one line of tab-separated cells."""
        print("\t".join(printable(cell) for cell in cells))  # noqa: T201

    def summary(self, text: str) -> None:
        """Print a sentence about what was done."""
        if not self.quiet:
            print(printable(text))  # noqa: T201

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, label: str = "") -> None:
        """Print rows: a table on a terminal, else tab-separated lines that start with `label`, if any.

        Columns whose name starts with ">" are aligned to the right. On a terminal, one of three or more in which every
        cell is "-" is left out, which leaves room for the others.
        """
        if sys.stdout is None or not sys.stdout.isatty():
            for row in rows:
                self.print_line(*([label] if label else []), *row)
            return
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        # Whatever does not fit is folded, never cut: half a number is a wrong number.
        shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        found = list(rows)
        used = [
            at
            for at in range(len(columns))
            if len(columns) < 3 or not found or any(row[at] != "-" for row in found)
        ]
        for at in used:
            justify: Literal["left", "right"] = "right" if columns[at].startswith(">") else "left"
            shown.add_column(columns[at].removeprefix(">"), justify=justify, overflow="fold")
        for row in found:
            shown.add_row(*(Text(printable(row[at])) for at in used))
        Console(highlight=False).print(shown, "")

    def progress(self, label: str) -> AbstractContextManager[ProgressBar | None]:
        """Show a progress bar where a person watches, and give the callback that moves it."""
        return progress_bar(label) if self._is_watched() else nullcontext()

    def status(self) -> AbstractContextManager[Callable[[str], None]]:
        """Show what is being done where a person watches, and give the function that says it."""
        return status_line() if self._is_watched() else nullcontext(lambda _: None)

    def _is_watched(self) -> bool:
        return not (self.quiet or self.as_json) and sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def session(*, store: str | None, as_json: bool, quiet: bool, debug: bool) -> Iterator[Session]:
    """Run a command's body: errors end as one line on stderr and an exit code."""
    with exit_codes(debug=debug):
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("casstore: %(message)s"))
        handler.setLevel(logging.DEBUG if debug else logging.ERROR if quiet else logging.WARNING)
        log = logging.getLogger("casstore")
        log.addHandler(handler)
        current = Session(store, as_json, quiet)
        try:
            yield current
        except click.exceptions.Exit:
            _tell(current.damaged)
            raise
        else:
            if current.damaged:
                _tell(current.damaged)
                raise click.exceptions.Exit(ERROR)
        finally:
            log.removeHandler(handler)


def _tell(damaged: list[Damage]) -> None:
    """Name on stderr what was left out, behind what was printed."""
    if damaged and sys.stdout is not None:
        sys.stdout.flush()
    for damage in dict.fromkeys(damaged):
        say(str(damage))


def _as_json(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else asdict(value)


class _Printable(logging.Formatter):
    """Formats messages so that names in them cannot steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


def store_in(place: str) -> str:
    """Return where the store is: in `store`, if `place` is the folder of a pipeline's cache and no store itself."""
    inside = os.path.join(place, "store")
    is_cache = os.path.isfile(os.path.join(inside, FORMAT_KEY))
    return inside if is_cache and not os.path.exists(os.path.join(place, FORMAT_KEY)) else place


def default_place() -> str:
    """Return the user's own store."""
    folder = data_folder()
    if folder is None:
        raise ConfigError(
            f"Which store? Give --store PATH_OR_URL or set {STORE_VARIABLE}: {NO_HOME} to have one there."
        )
    return os.path.join(folder, "store")
