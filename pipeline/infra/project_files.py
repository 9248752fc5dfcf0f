"""The files of a project, from the templates that come with the package; what is there is never lost."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from vidpipe.errors import VidpipeError
from vidpipe.files import write_text

TEMPLATES = Path(__file__).with_name("templates") / "project"
FILES = {
    "params.yaml": "params.yaml",
    "dvc.yaml": "pipeline.yaml",  # DVC reads every dvc.yaml of a repository
    ".gitignore": "gitignore",
    ".dvcignore": "dvcignore",
    "README.md": "README.md",
    ".github/workflows/vidpipe.yaml": "workflow.yaml",
}
"""File of a project -> its template. Templates have no leading dot, which packaging would leave out."""
ADDED_TO = (".gitignore", ".dvcignore")
"""Files of lines: those that are missing are added to what is there."""
KEPT = ("README.md",)
"""Files that are only written where there are none."""
Ask = Callable[[Path, str], bool]
"""Whether an existing file is to be replaced, after its difference was shown."""


@dataclass(frozen=True)
class Written:
    """What became of one file: new, the same, added to, replaced or kept."""

    name: str
    what: str


def write_project(folder: Path, values: Mapping[str, Any], ask: Ask) -> list[Written]:
    """Write the files of FILES with `values` into `folder`.

    Raises VidpipeError where a folder lies in the place of a file, or the reverse.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # YAML and Markdown; texts go through tojson
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    done = []
    for name, template in FILES.items():
        text = environment.get_template(template).render(values)
        done.append(Written(name, _write(folder / name, name, text, ask)))
    return done


def _write(file: Path, name: str, text: str, ask: Ask) -> str:
    try:
        before = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        write_text(file, text)
        return "new"
    except (OSError, ValueError) as error:
        raise VidpipeError(
            f"{file}: cannot be read ({error}); move it away, and init again"
        ) from None
    if before == text:
        return "the same"
    if name in KEPT:
        return "kept"
    if name in ADDED_TO:
        lines = before.splitlines()
        missing = [line for line in text.splitlines() if line not in lines]
        if not missing:
            return "the same"
        end = "" if before.endswith("\n") or not before else "\n"
        write_text(file, before + end + "\n".join(missing) + "\n")
        return "added to"
    difference = difflib.unified_diff(
        before.splitlines(), text.splitlines(), f"{name} (yours)", f"{name} (new)", lineterm=""
    )
    if not ask(file, "\n".join(difference)):
        return "kept"
    write_text(file, text)
    return "replaced"
