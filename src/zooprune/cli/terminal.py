"""What the command line writes on a terminal: results on standard output, all else on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from zooprune.batching import Progress

_out, _err = Console(), Console(stderr=True)
_SECONDS_BETWEEN_LINES = 30


def text(value: object, *, lines: bool = True) -> Text:
    """Return text that is shown unchanged: brackets are not markup, and control characters are escaped."""
    shown = (
        letter if letter.isprintable() or (lines and letter == "\n") else letter.encode("unicode_escape").decode()
        for letter in str(value)
    )
    return Text("".join(shown))


def show(result: RenderableType, *, style: str | None = None) -> None:
    """Print a table or another result."""
    _out.print(result, style=style)


def say(what: str, *, soft_wrap: bool = False) -> None:
    """Print a sentence beside the result."""
    _out.print(text(what), highlight=False, soft_wrap=soft_wrap)


def warn(what: Warning | str) -> None:
    """Print a warning on standard error."""
    _err.print(text(f"warning: {what}"), style="yellow", highlight=False, soft_wrap=True)


def refuse(error: Exception) -> None:
    """Print on one line of standard error why a command cannot do what was asked."""
    _err.print(text(f"error: {error}", lines=False), style="red", highlight=False, soft_wrap=True)


def waiting(what: str, *, quiet: bool) -> Any:
    """Show a message with a spinner on standard error, if it is a terminal."""
    return Console(stderr=True, quiet=quiet or not sys.stderr.isatty()).status(text(f"{what} ..."))


def progress_bar(*, quiet: bool = False) -> Any:
    """Show progress and the time that is left on standard error, if it is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet or not sys.stderr.isatty())


@contextmanager
def following() -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows the progress of a batch job: a bar in a terminal, else a line now and then."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    if not sys.stderr.isatty():
        said = time.monotonic()

        def tell(progress: Progress) -> None:
            nonlocal said
            if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                _err.print(text(_how_far(progress)), highlight=False, soft_wrap=True)

        yield tell
        return
    with Bar(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda progress: bar.update(
            task, total=progress.total, completed=progress.done, description=_how_far(progress)
        )


def _how_far(progress: Progress) -> str:
    told = f"{progress.done:,} of {progress.total:,} rows, {progress.failed:,} failed"
    if progress.rate is not None and progress.left is not None:
        told += f", {progress.rate:.2f} rows/s, {timedelta(seconds=round(progress.left))} left"
    return told


def quiet_libraries() -> None:
    """Keep the messages and progress bars of transformers from the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
