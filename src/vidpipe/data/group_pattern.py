"""`data.group` as a pattern on the path: the {braces} mark the part that names the group.

    */{*}_*             bend/daria_bend.mp4       -> daria
    **_g{??}_c*         a/v_Diving_g08_c01.avi    -> 08
    {*}/**/{*}_take*    lab/x/ann_take2.mp4       -> lab/ann

`*` is any text but a slash, `**` any text, folders too (once a pattern; `**/` also no folder), `?`
one character but a slash, and anything else itself. Each star takes as little as it can, the last one
what is left. The pattern covers the whole path, and several braced parts make up one name.

It is a pattern and no regular expression, as a stranger's recipe may hold it: no path takes longer than
its length times the pattern's, squared with `**`.
"""

from __future__ import annotations

import re
from functools import lru_cache

LONGEST_PATTERN = 200
LONGEST_PATH = 4096
"""Characters; a longer path matches nothing, and no file system has one."""
_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\{|\}|[^*?{}]+")


def is_pattern(text: str) -> bool:
    """Else it is the name of a column."""
    return "{" in text or "}" in text


@lru_cache(maxsize=16)
def compiled(pattern: str) -> re.Pattern[str]:
    """Raises ValueError, which says what is wrong with the pattern."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"expected at most {LONGEST_PATTERN} characters")
    parts: list[tuple[str, str]] = []
    """(wildcard, what follows it up to the next) as regular expressions."""
    wildcard, fixed, depth, braces, anywhere = "", "", 0, 0, 0
    for token in _TOKENS.findall(pattern):
        if token == "{":
            depth, braces = depth + 1, braces + 1
        elif token == "}":
            depth -= 1
        if depth not in (0, 1):
            raise ValueError(f"{pattern!r}: braces stand in pairs, none within another")
        if token in "{}":
            fixed += "()"  # where the group begins and ends
        elif token == "?":
            fixed += "[^/]"
        elif token.startswith("*"):
            anywhere += token.startswith("**")
            parts.append((wildcard, fixed))
            wildcard, fixed = {"*": "[^/]*", "**": ".*", "**/": "(?:.*/)?"}[token], ""
        else:
            fixed += re.escape(token)
    if depth or not braces:
        raise ValueError(
            f"{pattern!r}: expected {{braces}} around what names the group, as */{{*}}_*"
        )
    if anywhere > 1:
        raise ValueError(f"{pattern!r}: expected ** at most once")
    parts.append((wildcard, fixed))
    return re.compile("".join(_part(*part, part is parts[-1]) for part in parts), re.DOTALL)


def _part(wildcard: str, fixed: str, last: bool) -> str:
    """The last part takes what is left. An earlier star ends at the first place that fits, for good: an
    atomic group, as going back would find nothing and cost a power of the length for each star."""
    if last:
        return f"{wildcard}{fixed}\\Z"
    if wildcard == "[^/]*":
        return f"(?>[^/]*?{fixed})"
    lazy = {"": "", ".*": ".*?", "(?:.*/)?": "(?:.*?/)??"}[wildcard]
    return lazy + fixed


def group_in(path: str, pattern: str) -> str:
    """The group of `path`; empty where the pattern does not match it, or finds nothing."""
    if len(path) > LONGEST_PATH or (found := compiled(pattern).match(path)) is None:
        return ""
    marks = [found.start(i) for i in range(1, compiled(pattern).groups + 1)]
    return "/".join(path[a:b] for a, b in zip(marks[::2], marks[1::2], strict=True)).strip("/")
