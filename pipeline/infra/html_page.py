"""A static page of tables and pictures: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2

from vidpipe.files import write_text


@dataclass(frozen=True)
class Picture:
    source: str
    """A data URI, so that the page is one file."""
    text: str


@dataclass(frozen=True)
class Section:
    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""
    lines: Sequence[str] = ()
    """Sentences, each a paragraph, after the table."""
    pictures: Sequence[Picture] = field(default=())

    def with_pictures(self, *pictures: Picture) -> Section:
        return replace(self, pictures=pictures)


def picture(path: Path, text: str) -> Picture:
    """The PNG at `path` as a picture of a page; `text` describes it to whoever cannot see it."""
    data = base64.b64encode(path.read_bytes()).decode()
    return Picture(f"data:image/png;base64,{data}", text)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Names are anyone's: a bar or a line break in one ends no cell."""
    return " ".join(str(text).replace("|", "\\|").split())


def markdown_page(title: str, sections: Sequence[Section]) -> str:
    """The sections without their pictures, as Markdown."""
    parts = [f"# {title}"]
    for section in sections:
        texts = [markdown(section.header, section.rows)] if section.rows else []
        texts += [line for line in (*section.lines, section.note) if line]
        if texts:
            parts += [f"## {section.title}", *texts]
    return "\n\n".join(parts) + "\n"


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    # Class and method names come from the user's data: everything is escaped.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template("page.html").render(title=title, sections=sections)
    write_text(path, text)
