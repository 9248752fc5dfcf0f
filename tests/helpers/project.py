"""Where things lie."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[2]
SHARED = PROJECT.parent / "shared"
HELPERS = PROJECT / "tests" / "helpers"
"""Processes that tests start need this folder in PYTHONPATH where they use what lies in it."""
