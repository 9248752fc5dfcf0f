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
    pictures: Sequence[Picture] = field(default=())

    def with_pictures(self, *pictures: Picture) -> Section:
        return replace(self, pictures=pictures)


def picture(path: Path, text: str) -> Picture:
    """The PNG at `path` as a picture of a page; `text` describes it to whoever cannot see it."""
    data = base64.b64encode(path.read_bytes()).decode()
    return Picture(f"data:image/png;base64,{data}", text)


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    # Class and method names come from the user's data: everything is escaped.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template("page.html").render(title=title, sections=sections)
    write_text(path, text)
