"""Where things lie."""

from __future__ import annotations

from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SHARED = PROJECT.parent / "shared"
HELPERS = PROJECT / "tests" / "helpers"
"""Processes that tests start need this folder in PYTHONPATH where they use what lies in it."""


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """`vidpipe WORDS` in this process; its exit code."""
    from pipeline.cli.app import main

    monkeypatch.setattr("sys.argv", ["vidpipe", *words])
    try:
        main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0
