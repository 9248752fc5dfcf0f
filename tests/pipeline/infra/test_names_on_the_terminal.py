"""Names of classes and files are anyone's: they reach the terminal as text, never as commands."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from pipeline.cli import app
from pipeline.infra import console
from pipeline.tools.prediction_writers import JsonLines, Screen, as_row
from vidpipe.errors import VidpipeError
from vidpipe.inference.stream import Prediction
from vidpipe.text import json_line, markdown, printable

CLEAR = "\x1b[2J\x1b]0;mine\x07 \x9b2J [red]left[/wrong] \x08\r"
SHOWN = r"\x1b[2J\x1b]0;mine\x07 \x9b2J [red]left[/wrong] \x08\r"


def obeyed(text: str) -> set[str]:
    """Control characters but line breaks."""
    return {c for c in text if (ord(c) < 32 or 127 <= ord(c) < 160) and c != "\n"}


def test_lines_and_tables_show_names_as_they_are() -> None:
    file = io.StringIO()
    table = Table(CLEAR, title=CLEAR)
    table.add_row(CLEAR)
    table.add_row(Text(CLEAR))
    console.PlainConsole(file=file, width=200).print(f"classes such as {CLEAR}", table)
    assert not obeyed(file.getvalue())
    assert file.getvalue().count("[red]left[/wrong]") == 5


def test_a_live_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    live = console.PlainConsole(file=file, width=300, force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "console", live)
    with console.progress() as bar:
        bar.add_task(CLEAR, total=3, info=CLEAR)
    written = file.getvalue()
    assert written.count(r"\x1b]0;mine") >= 2
    for own in ("\x1b[2J", "\x1b]0", "\x9b", "\x07"):  # others are rich's: it moves the cursor
        assert own not in written


def test_predictions_show_names_as_they_are() -> None:
    probabilities = torch.tensor([0.9, 0.1])
    found = [
        Prediction(CLEAR, CLEAR, classes=[CLEAR, "b"], probabilities=probabilities),
        Prediction(CLEAR, reason="undecodable", detail=CLEAR),
    ]
    rows = [as_row(prediction, 2) for prediction in found]
    for several in (False, True):
        file = io.StringIO()
        screen = Screen(file, several, windows=False)
        for row in rows:
            screen.add(row)
        screen.close()
        assert not obeyed(file.getvalue())
        assert "[red]left" in file.getvalue()
    file = io.StringIO()
    lines = JsonLines(file)
    for row in rows:
        lines.add(row)
    assert not obeyed(file.getvalue())
    first, second = map(json.loads, file.getvalue().splitlines())
    assert first["labels"] == [CLEAR, "b"]
    assert second["detail"] == CLEAR


def test_an_errors_names_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fails(**options: object) -> None:
        raise VidpipeError(f"{tmp_path}: no class {CLEAR}")

    monkeypatch.setattr(app, "app", fails)
    with pytest.raises(SystemExit):
        app.main()
    said = capsys.readouterr().err
    assert not obeyed(said)
    assert SHOWN in said


@given(st.text())
def test_no_text_gets_through(text: str) -> None:
    for safe in (printable(text), markdown(text), json_line(text)):
        assert not obeyed(safe)
        assert "\n" not in safe
        safe.encode()
    assert json.loads(json_line(text)) == text
    assert printable(printable(text)) == printable(text)
    if text.isprintable():
        assert printable(text) == text
