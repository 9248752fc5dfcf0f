"""What a person sees while a stage runs: a live bar on a terminal, nothing noisy in a log."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Standard error: standard output belongs to results that a script may read.
console = Console(stderr=True, highlight=False, soft_wrap=True)


def progress() -> Progress:
    """A bar with counts, elapsed time and ETA; a task's `info` field is free text."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
        console=console,
        disable=not console.is_terminal,
    )


def output(width: int = 130) -> Console:
    """For results, on standard output. `width` is that of a file or pipe, which has none: eighty
    columns would cut tables."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)
