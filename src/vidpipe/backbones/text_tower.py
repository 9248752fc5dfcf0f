"""Class names as points of the space that open_clip's images and texts share.

A class's embedding is the mean of the normalised features of its prompts, normalised again (CLIP, arXiv
2103.00020, section 3.1.4). What a head needs of a model is that, the image tower's projection, and the
scale of the logits; SigLIP's bias, the same for every class, changes no softmax and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidpipe.backbones.config import GIVEN, RANDOM, BackboneConfig
from vidpipe.backbones.openclip import create_whole, projection_of, refuse_unknown
from vidpipe.device import choose_device
from vidpipe.errors import VidpipeError
from vidpipe.weights import read_weights, refuse_mismatch, refuse_not_finite

BATCH = 256
"""Prompts at a time: their tokens are 77, and a text tower is small."""
PROJECTION = ("visual.proj", "visual.head.", "visual.trunk.head.")
"""What an image tower's projection is called in a saved model."""


@dataclass(frozen=True)
class ClassTexts:
    """C classes in a space of E channels, and the way of an image feature of D channels into it."""

    embeddings: Tensor
    """(C, E), of length 1."""
    projection: Tensor
    """(E, D)"""
    bias: Tensor
    """(E,), of the projection; zeros where it has none."""
    scale: float
    """Of the logits: the exponential of the model's `logit_scale`."""


def class_texts(
    config: BackboneConfig, names: Sequence[str], prompts: Sequence[str], asked: str
) -> ClassTexts:
    """The texts of `names` by the text tower of an open_clip model, in the file or tag of its weights.

    Args:
        config: the backbone.
        names: of the classes, as a person would say them.
        prompts: in each of which `{}` is a name.
        asked: what needs it, such as `methods.aim.head_init: text`, for the error.

    Raises:
        VidpipeError: for a backbone without a text tower, or with one whose tokenizer is at a hub, or a
            file without the text half.
    """
    refuse_without_text(config, asked)
    file = Path(config.weights)
    changed = file.stat().st_mtime_ns if config.hub_tag is None and file.is_file() else 0
    return _class_texts(config, tuple(names), tuple(prompts), asked, changed)


def refuse_without_text(config: BackboneConfig, asked: str) -> None:
    """Raises VidpipeError, naming what was asked for and the model, where it has no text tower that
    works without a hub."""
    such = "choose an open_clip model with CLIP's own tokenizer, such as ViT-B-16"
    if config.source != "open_clip":
        raise VidpipeError(
            f"{asked} needs a text tower, and backbone.name {config.name} of {config.source} has none; "
            f"{such}"
        )
    refuse_unknown(config.name)
    import open_clip

    card: Any = open_clip.get_model_config(config.name)
    tokenizer = card["text_cfg"].get("hf_tokenizer_name")
    if tokenizer or "siglip" in config.name.lower():
        raise VidpipeError(
            f"{asked} needs a tokenizer that works offline, and that of open_clip {config.name} "
            f"({tokenizer or 'SigLIP'}) is at a hub; {such}"
        )
    if card["vision_cfg"].get("timm_proj") == "mlp":
        raise VidpipeError(
            f"{asked} needs a linear projection, and that of open_clip {config.name} is an MLP; {such}"
        )
    if config.pool != "zoo":
        raise VidpipeError(
            f"{asked} needs the feature that open_clip {config.name} projects, and backbone.pool is "
            f"{config.pool}; set it to zoo"
        )
    if config.weights in (RANDOM, GIVEN):
        raise VidpipeError(
            f"{asked} needs trained weights of open_clip {config.name}, and they are "
            f"{config.weights}; name a file of both halves, or hub:TAG"
        )


@lru_cache(maxsize=4)
def _class_texts(
    config: BackboneConfig,
    names: tuple[str, ...],
    prompts: tuple[str, ...],
    asked: str,
    changed: int,
) -> ClassTexts:
    import open_clip

    with torch.device("cpu"):
        model = create_whole(config.name, config.hub_tag).eval()
        if config.hub_tag is None:
            _load_text_half(model, Path(config.weights), asked)
    weight, bias = projection_of(model.visual)
    tokens = open_clip.get_tokenizer(config.name)(
        [prompt.replace("{}", name) for name in names for prompt in prompts]
    )
    device = choose_device("auto")
    model.to(device)
    with torch.no_grad():
        features = torch.cat(
            [
                model.encode_text(part.to(device), normalize=True).cpu()
                for part in tokens.split(BATCH)
            ]
        )
        means = features.unflatten(0, (len(names), len(prompts))).mean(1)
        scale = float(model.logit_scale.exp())
    return ClassTexts(F.normalize(means, dim=-1), weight.detach(), bias.detach(), scale)


def _load_text_half(model: nn.Module, file: Path, asked: str) -> None:
    """Load what is not image tower, and the image tower's projection."""
    from open_clip.model import CLIP, convert_to_custom_text_state_dict

    given = {name.removeprefix("module."): t for name, t in read_weights(file)[0].items()}
    if not isinstance(model, CLIP):
        given = convert_to_custom_text_state_dict(given)

    def needed(name: str) -> bool:
        return not name.startswith("visual.") or name.startswith(PROJECTION)

    expected = {name: t for name, t in model.state_dict().items() if needed(name)}
    if not any("token_embedding" in name for name in given):
        raise VidpipeError(
            f"{asked} needs the text half of the model, and {file} holds none; name a file of the whole "
            "open_clip model, as `vidpipe fetch-weights` writes it, or hub:TAG"
        )
    state = {name: t.float() for name, t in given.items() if needed(name)}
    state |= {
        name: t.reshape(expected[name].shape) for name, t in state.items() if name[:6] == "logit_"
    }
    refuse_mismatch(str(file), expected, state)
    refuse_not_finite(str(file), state)
    model.load_state_dict(state, strict=False)
