"""Progress bars that follow fsspec's `Callback`, without importing fsspec."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from casstore.cli.support.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, TaskID


class ProgressBar:
    """The part of fsspec's `Callback` that the store calls: it moves one task of rich."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def set_size(self, size: int) -> None:
        """Say how many bytes there are."""
        self._progress.update(self._task, total=size)

    def relative_update(self, inc: int = 1) -> None:
        """Say that `inc` more bytes are done."""
        self._progress.advance(self._task, inc)


@contextmanager
def progress_bar(label: str) -> Iterator[ProgressBar]:
    """Show a bar on stderr, which disappears when it is done."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield ProgressBar(progress, progress.add_task(label, total=None))


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Show one line on stderr that says what is being done, and disappears with it."""
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(stderr=True)
    # The usual one turns in characters that few encodings have.
    spinner = "dots" if console.encoding.startswith("utf") else "line"
    with console.status("", spinner=spinner) as status:
        yield lambda text: status.update(Text(printable(text)))
