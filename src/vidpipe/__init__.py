"""A frozen image transformer becomes a video action classifier by training a few adapters.

The functions below are all that most programs need; `import vidpipe` itself imports nothing else, and
each of them is loaded when it is first used.

    model = vidpipe.create_model("st_adapter", "vit_base_patch16_clip_quickgelu_224", num_classes=400,
                                 num_frames=8, weights="clip.safetensors")
    vidpipe.fit(model, train, val, epochs=5)
    vidpipe.save(model, "out", classes=classes)
    vidpipe.load("out").predict("clip.mp4", top=5)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vidpipe.version import __version__ as __version__

if TYPE_CHECKING:
    from vidpipe.backbones.listing import list_backbones
    from vidpipe.errors import VidpipeError
    from vidpipe.methods.base import VideoModel
    from vidpipe.methods.create import create_model, list_methods
    from vidpipe.trained import Classifier, Guess, load, save
    from vidpipe.training.fit import fit
    from vidpipe.training.metrics import EpochMetrics

__all__ = [
    "Classifier",
    "EpochMetrics",
    "Guess",
    "VideoModel",
    "VidpipeError",
    "create_model",
    "fit",
    "list_backbones",
    "list_methods",
    "load",
    "save",
]

_HOMES = {
    "Classifier": "vidpipe.trained",
    "EpochMetrics": "vidpipe.training.metrics",
    "Guess": "vidpipe.trained",
    "VideoModel": "vidpipe.methods.base",
    "VidpipeError": "vidpipe.errors",
    "create_model": "vidpipe.methods.create",
    "fit": "vidpipe.training.fit",
    "list_backbones": "vidpipe.backbones.listing",
    "list_methods": "vidpipe.methods.create",
    "load": "vidpipe.trained",
    "save": "vidpipe.trained",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
