"""Loading a backbone: architecture by name, weights from a local file or the zoo's hub.

Activation, normalisation and size come with the weights. Weights that do not fit are refused by
name: a model trained from silently random weights is the failure users report most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import SwinTransformer, VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor

import vidpipe.backbones.still  # noqa: F401  (registers the embedded ViT with timm)
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.fit import fit_state
from vidpipe.backbones.swin import ImageModel, blocks_of_stage, stages_of
from vidpipe.errors import VidpipeError
from vidpipe.weights import read_weights, state_sha256


@dataclass(frozen=True)
class Backbone:
    """A frozen image ViT or Swin and what must travel with its weights."""

    vit: ImageModel
    config: BackboneConfig
    sha256: str
    """Hash over the weight tensors as stored (names, types, shapes, bytes)."""
    activation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def card(self) -> dict[str, Any]:
        """What an adapter records of the backbone it was trained on."""
        return {
            **self.config.model_dump(exclude={"weights"}),
            "weights_sha256": self.sha256,
            "activation": self.activation,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def load_backbone(config: BackboneConfig, img_size: int) -> Backbone:
    """The backbone for square `img_size` pixel inputs, frozen, fp32, in eval mode.

    Position grids of another size are resized (bicubic, no antialias, as the weights' authors do);
    a Swin's windows shrink to a smaller grid as timm does it.
    Raises VidpipeError for an unknown name, a missing or unreadable file, or weights that do not fit.
    """
    state: Mapping[str, Tensor]
    vit: ImageModel
    if config.source == "open_clip":
        from vidpipe.backbones.openclip import load_open_clip

        vit, state, mean, std = load_open_clip(config, img_size)
    else:
        vit = _create_timm(config, img_size, config.hub_tag)
        card = cast(dict[str, Any], vit.pretrained_cfg)
        mean, std = tuple(card["mean"]), tuple(card["std"])
        if config.hub_tag is not None:
            state = vit.state_dict()
        else:
            state, header = read_weights(Path(config.weights))
            _refuse_other_model(config, vit, header)
            fit_state(vit, state, config.weights)
    vit.eval().requires_grad_(False)
    return Backbone(vit, config, state_sha256(state), activation_of(vit), mean, std)


def architecture(config: BackboneConfig, img_size: int) -> ImageModel:
    """The untrained model of `config`, whatever its weights."""
    if config.source == "open_clip":
        from vidpipe.backbones.openclip import create_tower, tower_to_timm

        return tower_to_timm(create_tower(config, None).visual, config.name, img_size)[0]
    return _create_timm(config, img_size, None)


def activation_of(vit: ImageModel) -> str:
    if isinstance(vit, SwinTransformer):
        return type(blocks_of_stage(stages_of(vit)[0])[0].mlp.act).__name__.lower()
    return type(cast(Block, vit.blocks[0]).mlp.act).__name__.lower()


def _create_timm(config: BackboneConfig, img_size: int, hub_tag: str | None) -> ImageModel:
    name, _, own_tag = config.name.partition(".")
    if not timm.is_model(name):
        raise VidpipeError(f"backbone.name: timm has no model {name!r}{_nearest(name)}")
    tag = hub_tag or own_tag
    try:
        model = timm.create_model(
            f"{name}.{tag}" if tag else name,
            pretrained=hub_tag is not None,
            num_classes=0,
            img_size=img_size,
        )
    except TypeError:
        # ViTs and Swins take an image size; most families do not.
        raise VidpipeError(f"backbone.name: {name} is not a plain ViT or Swin") from None
    except (AssertionError, ValueError) as error:
        raise VidpipeError(f"backbone: {name} at transform.size {img_size}: {error}") from error
    except Exception as error:  # the hub's client raises many kinds; all mean no weights
        raise VidpipeError(
            f"backbone.weights: {name} could not be downloaded ({type(error).__name__}); "
            "name a local weights file instead"
        ) from error
    if isinstance(model, SwinTransformer):
        patch = cast(tuple[int, int], model.patch_embed.patch_size)[0]
        if img_size % patch:
            raise VidpipeError(f"transform.size: {img_size} is no multiple of {name}'s {patch}")
        return model
    if not isinstance(model, VisionTransformer):
        kind = type(model).__name__
        raise VidpipeError(f"backbone.name: {name} is a {kind}, not a plain ViT or Swin")
    if any(type(block) is not Block for block in model.blocks):
        raise VidpipeError(f"backbone.name: {name} has blocks that no method can adapt yet")
    return model


def _nearest(name: str) -> str:
    near = get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
    return f"; nearest is {near[0]}" if near else ""


def _refuse_other_model(config: BackboneConfig, vit: ImageModel, header: Mapping[str, str]) -> None:
    """Compare what the weights file says of itself (where it does) with what was asked for."""
    name = config.name.partition(".")[0]
    for what, own in (("architecture", name), ("activation", activation_of(vit))):
        if header.get(what, own) != own:
            raise VidpipeError(
                f"backbone.weights: {config.weights} is for {what} {header[what]}, but "
                f"backbone.name {name} has {own}"
            )
