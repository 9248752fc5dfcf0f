"""Names from strangers (classes, paths, cards) as they are safe to show."""

from __future__ import annotations

import html
import json
import re
from typing import Any

# Control characters (a terminal obeys them), line separators, marks that turn the direction of
# writing, and halves of characters. A newline among them only where text may have one line.
_UNSAFE = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_LINES = re.compile(f"[{_UNSAFE}]")
_LINE = re.compile(f"[\t\n{_UNSAFE}]")
_MARKDOWN = re.compile(r"[\\`*\[\]|~]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""`text` with everything that a terminal would obey as an escape: `"\x1b[2J"` -> `\x1b[2J`.

    Args:
        text: from anywhere.
        lines: whether line breaks and tabs stay.
    """
    pattern = _LINES if lines else _LINE
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_line(value: Any) -> str:
    """`value` as JSON in one line, its letters as they are; what a terminal would obey is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return _LINE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def markdown(text: str) -> str:
    """`text` in one line of Markdown: no HTML, no link, no picture, no cell of a table."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(printable(text), quote=False))
