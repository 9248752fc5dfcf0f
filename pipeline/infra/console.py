"""What a person sees while a stage runs: a live bar on a terminal, nothing noisy in a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vidpipe.text import printable


class PlainConsole(Console):
    """A console for names of classes and files, which are anyone's: they are no markup, and of control
    characters none but line breaks reaches the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(printable(text, lines=True), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Also what does not pass `render_str`, such as the columns of a live bar."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(printable(text, lines=True), style)


# Standard error: standard output belongs to results that a script may read.
console = PlainConsole(stderr=True, soft_wrap=True)


def brief() -> bool:
    """Whether VIDPIPE_BRIEF=1 asks for one line a stage, as in a run of many of them."""
    return os.environ.get("VIDPIPE_BRIEF", "") not in ("", "0")


def progress() -> Progress:
    """A bar with counts, elapsed time and ETA; a task's `info` field is free text."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


def output(width: int = 130) -> Console:
    """A console for results, on standard output. In a file or pipe lines are `width` long, since eighty
    columns would cut tables."""
    return PlainConsole(width=None if sys.stdout.isatty() else width)


def print_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], width: int = 130
) -> None:
    """A table of results; the first column is of names, the others of numbers."""
    table = Table(title=title)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    output(width).print(table)
