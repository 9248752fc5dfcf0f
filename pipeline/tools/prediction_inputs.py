"""The arguments of `vidpipe predict` as paths and URLs, one at a time."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vidpipe.data.layouts.common import walk
from vidpipe.errors import VidpipeError
from vidpipe.inference.fetch import is_url


def sources(arguments: Sequence[str]) -> Iterator[str]:
    """Files, folders (all videos below, sorted), globs, URLs; `list.txt` or `@list`: a file of
    paths and URLs, one a line; `-`: such lines from standard input.

    A file that does not exist is passed on, to be reported. Raises VidpipeError for a folder without
    videos, a glob that matches nothing, and a list that cannot be read.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == "-":
            yield from _lines(sys.stdin)
        elif is_url(argument):
            yield argument
        elif argument.startswith("@") or path.suffix.lower() == ".txt":
            yield from _listed(Path(argument.removeprefix("@")))
        elif path.is_dir():
            found = sorted(walk(path))
            if not found:
                raise VidpipeError(f"{argument}: no videos in this folder")
            yield from (str(path / name) for name in found)
        elif not path.exists() and glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (absolute ones, too)
            files = [match for match in matches if Path(match).is_file()]
            if not files:
                raise VidpipeError(f"{argument}: no file matches this pattern")
            yield from files
        else:
            yield argument


def _listed(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            yield from _lines(lines)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise VidpipeError(f"{file}: expected a list of paths, one a line: {reason}") from None


def _lines(lines: Iterable[str]) -> Iterator[str]:
    """Lines without blanks and # comments. Paths are relative to the current folder."""
    for line in lines:
        text = line.strip()
        if text and not text.startswith("#"):
            yield text
