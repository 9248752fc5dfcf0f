"""Class names as a person would say them, in sentences that a text tower has read."""

from __future__ import annotations

import re
from collections.abc import Sequence

ACTION_PROMPTS = (
    "a photo of {}.",
    "a photo of a person {}.",
    "a photo of a person doing {}.",
    "a photo of a person during {}.",
    "a photo of a person performing {}.",
    "a video of {}.",
    "a video of a person {}.",
    "a video of a person doing {}.",
    "a video of a person performing {}.",
    "a demonstration of a person {}.",
)
"""Ten of CLIP's own prompts for Kinetics-700 and UCF101 (github.com/openai/CLIP, data/prompts.md)."""

MOVEMENTS = frozenset(
    [
        *(
            "move",
            "moving",
            "turn",
            "turning",
            "rotate",
            "rotating",
            "rotation",
            "spin",
            "spinning",
        ),
        *(
            "go",
            "going",
            "come",
            "coming",
            "slide",
            "sliding",
            "swipe",
            "swiping",
            "shift",
            "shifting",
        ),
        *("grow", "growing", "shrink", "shrinking", "scale", "scaling", "zoom", "zooming"),
        *("left", "right", "up", "down", "upward", "upwards", "downward", "downwards", "forward"),
        *(
            "forwards",
            "backward",
            "backwards",
            "in",
            "out",
            "inward",
            "outward",
            "toward",
            "towards",
        ),
        *("away", "closer", "farther", "clockwise", "counterclockwise", "anticlockwise"),
        *("horizontal", "vertical", "horizontally", "vertically", "to", "from", "the", "and"),
    ]
)
"""Words of motion and direction: of these alone no caption of a picture is made."""


def spoken(name: str) -> str:
    """A class name in words: underscores and hyphens are spaces, and `ApplyEyeMakeup` is three words."""
    words = re.sub(r"[_\-]+", " ", name)
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words)
    return " ".join(words.split())


def unsayable(names: Sequence[str]) -> list[str]:
    """The names that nobody would say of a picture, so that no text tower knows them: those that hold a
    digit or no word of three letters (`class_3`, `Back+15som`, `c`), and those of motion and direction
    alone (`move_left`, `turn_clockwise`), whose frames look the same as their reverse's."""
    return [name for name in names if not _sayable(spoken(name))]


def _sayable(words: str) -> bool:
    found = re.findall(r"[^\W\d_]{3,}", words.lower())
    return bool(found) and not re.search(r"\d", words) and not set(found) <= MOVEMENTS
