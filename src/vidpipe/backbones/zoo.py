"""Loading a backbone: architecture by name, weights from a local file or the zoo's hub.

Activation, normalisation and size come with the weights. Weights that do not fit are refused by
name: a model trained from silently random weights is the failure users report most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
from pydantic import BaseModel, ConfigDict, Field
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block, checkpoint_filter_fn
from torch import Tensor

import vidpipe.backbones.still  # noqa: F401  (registers the embedded ViT with timm)
from vidpipe.errors import VidpipeError
from vidpipe.weights import read_weights, refuse_mismatch, state_sha256


class BackboneConfig(BaseModel):
    """`backbone` in params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["timm", "open_clip"] = "timm"
    name: str = Field(description="model name in that zoo, such as vit_small_patch14_dinov2")
    weights: str = Field(
        description="a local .safetensors, .pt or .pth file; `hub` or `hub:<tag>` downloads"
    )

    @property
    def hub_tag(self) -> str | None:
        """None for a local file, "" for the hub's default weights, else the tag to download."""
        if self.weights != "hub" and not self.weights.startswith("hub:"):
            return None
        return self.weights.removeprefix("hub").removeprefix(":")


@dataclass(frozen=True)
class Backbone:
    """A frozen image ViT and what must travel with its weights."""

    vit: VisionTransformer
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

    Position grids of another size are resized (bicubic, no antialias, as the weights' authors do).
    Raises VidpipeError for an unknown name, a missing or unreadable file, or weights that do not fit.
    """
    if config.source == "open_clip":
        from vidpipe.backbones.openclip import load_open_clip

        vit, state, activation, mean, std = load_open_clip(config, img_size)
    else:
        vit, state, activation, mean, std = _load_timm(config, img_size)
    if any(type(block) is not Block for block in vit.blocks):
        raise VidpipeError(f"backbone.name: {config.name} has blocks that no method can adapt yet")
    return Backbone(
        vit.eval().requires_grad_(False), config, state_sha256(state), activation, mean, std
    )


def activation_of(vit: VisionTransformer) -> str:
    return type(cast(Block, vit.blocks[0]).mlp.act).__name__.lower()


def _load_timm(
    config: BackboneConfig, img_size: int
) -> tuple[VisionTransformer, Mapping[str, Tensor], str, tuple[float, ...], tuple[float, ...]]:
    name = config.name
    base = name.split(".")[0]
    if not timm.is_model(base):
        from difflib import get_close_matches

        near = get_close_matches(base, timm.list_models(), n=1, cutoff=0.5)
        hint = f"; nearest is {near[0]}" if near else ""
        raise VidpipeError(f"backbone.name: timm has no model {name!r}{hint}")
    tag = config.hub_tag
    try:
        model = timm.create_model(
            f"{base}.{tag}" if tag else name,
            pretrained=tag is not None,
            num_classes=0,
            img_size=img_size,
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise VidpipeError(f"backbone: {name} at transform.size {img_size}: {error}") from error
    except Exception as error:  # the hub's client raises many kinds; all mean no weights
        raise VidpipeError(
            f"backbone.weights: {name} could not be downloaded ({type(error).__name__}); "
            "name a local weights file instead"
        ) from error
    if not isinstance(model, VisionTransformer):
        raise VidpipeError(f"backbone.name: {name} is a {type(model).__name__}, not a plain ViT")
    activation = activation_of(model)
    if tag is not None:
        state: Mapping[str, Tensor] = model.state_dict()
    else:
        state, header = read_weights(Path(config.weights))
        made_for = header.get("architecture", base)
        if made_for != base:
            raise VidpipeError(
                f"{config.weights}: these weights are for {made_for}, but backbone.name is {name}"
            )
        if header.get("activation", activation) != activation:
            raise VidpipeError(
                f"{config.weights}: these weights need activation {header['activation']}, "
                f"but {name} has {activation}"
            )
        fit_state(model, state, config.weights)
    pretrained_cfg = model.pretrained_cfg
    return model, state, activation, tuple(pretrained_cfg["mean"]), tuple(pretrained_cfg["std"])


def fit_state(vit: VisionTransformer, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `vit`, resizing the position grid; refuse anything missing or left over."""
    fitted = checkpoint_filter_fn(
        {k: v.float() for k, v in state.items()}, vit, interpolation="bicubic", antialias=False
    )
    # A classifier or projection on top of the features is not part of the frozen backbone.
    fitted = {k: v for k, v in fitted.items() if not k.startswith(("head.", "head_dist."))}
    if "mask_token" in fitted and not hasattr(vit, "mask_token"):
        fitted.pop("mask_token")  # DINOv2's training token; never used at inference
    refuse_mismatch(source, vit.state_dict(), fitted)
    vit.load_state_dict(fitted)


