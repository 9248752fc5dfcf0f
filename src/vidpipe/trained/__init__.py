"""A trained model on disk and in hand: `save` and `load` a folder, `Classifier` to use it.

Loaded when they are first used: a program that only reads a card decodes no video.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidpipe.trained.adapter import save
    from vidpipe.trained.classifier import Classifier, Guess, load

__all__ = ["Classifier", "Guess", "load", "save"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "adapter" if name == "save" else "classifier"
    value = globals()[name] = getattr(import_module(f"vidpipe.trained.{home}"), name)
    return value
