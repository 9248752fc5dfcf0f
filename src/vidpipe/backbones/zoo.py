"""Loading a backbone: architecture by name, weights from a local file or the zoo's hub.

Activation, normalisation and size come with the weights. Weights that do not fit are refused by
name: a model trained from silently random weights is the failure users report most.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import NaFlexVit
from torch import Tensor, nn

from vidpipe.backbones.activation import activation_of
from vidpipe.backbones.config import GIVEN, RANDOM, BackboneConfig, Pool
from vidpipe.backbones.families import FAMILIES, refusal
from vidpipe.backbones.fit import fit_state, refuse_other_model
from vidpipe.backbones.input_card import InputCard, input_card
from vidpipe.backbones.listing import nearest_that_loads, of_other_family, refuse_unknown
from vidpipe.backbones.naflex import plain_vit
from vidpipe.backbones.patches import grid_of, refuse_dropped_pixels, set_size
from vidpipe.backbones.pooling import set_pool
from vidpipe.backbones.positions import read_grid
from vidpipe.backbones.swin import SWINS
from vidpipe.backbones.swin_v2 import swin_refusal
from vidpipe.config.identity import deciding
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size, size_of, words
from vidpipe.weights import read_weights, state_sha256


@dataclass(frozen=True)
class Backbone:
    """A frozen image ViT or Swin and what must travel with its weights."""

    vit: nn.Module
    config: BackboneConfig
    sha256: str
    """Hash over the weight tensors as stored (names, types, shapes, bytes)."""
    activation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def card(self) -> dict[str, Any]:
        """What an adapter records of the backbone it was trained on."""
        return {
            **deciding(self.config),
            "weights_sha256": self.sha256,
            "activation": self.activation,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def load_backbone(config: BackboneConfig, img_size: Size) -> Backbone:
    """The backbone for pictures of `img_size` pixels, frozen, fp32, in eval mode.

    Position grids of another size are resized (bicubic, no antialias, as the weights' authors do), also
    to grids that are not square; a Swin's windows shrink to a smaller grid as timm does it.
    Raises VidpipeError for an unknown name, a missing or unreadable file, or weights that do not fit.
    """
    if config.weights in (RANDOM, GIVEN):
        raise VidpipeError(
            f"backbone {config.name}: its weights were {config.weights}, which no file holds; save its "
            "state_dict as a .safetensors file and name that as the weights"
        )
    state: Mapping[str, Tensor]
    vit: nn.Module
    if config.source == "open_clip":
        from vidpipe.backbones.openclip import load_open_clip

        vit, state = load_open_clip(config, img_size)
    else:
        vit = _create_timm(config, img_size, config.hub_tag)
        if config.hub_tag is not None:
            state = vit.state_dict()
            set_pool(vit, config)
        else:
            state, header = read_weights(Path(config.weights))
            refuse_other_model(config, vit, header)
            set_pool(vit, config)
            fit_state(vit, state, config.weights, read_grid(header, config.weights))
    return _frozen(vit, config, state, input_card(config, vit))


def random_backbone(config: BackboneConfig, img_size: Size) -> Backbone:
    """The backbone without its weights: random ones from torch's generator, which says so in a warning.

    Args:
        config: the name; its `weights` are not looked at.
        img_size: of its input, pixels.

    Raises:
        VidpipeError: for an unknown name.
    """
    own = config.model_copy(update={"weights": RANDOM})
    if config.source == "open_clip":
        from vidpipe.backbones.openclip import load_open_clip

        vit, state = load_open_clip(own, img_size)
        backbone = _frozen(vit, own, state, input_card(own, vit))
    else:
        plain = _create_timm(own, img_size, None)
        set_pool(plain, own)
        backbone = _frozen(plain, own, plain.state_dict(), input_card(own, plain))
    warnings.warn(
        f"{config.name}: no weights were given, so the backbone is random; pass a file or hub",
        stacklevel=3,
    )
    return backbone


def copied_backbone(
    module: nn.Module, img_size: Size | None, pool: Pool = "zoo"
) -> tuple[Backbone, Size, InputCard]:
    """A copy of a timm ViT or Swin of one's own, its input size (None: as it is), and its card.

    The module itself is not touched. Its hash is that of its `state_dict`, so that a file of that is
    known as the same weights. Without `pretrained_cfg`, ImageNet's mean and std are assumed, which a
    warning says.

    Raises:
        VidpipeError: for another kind of module, or where `img_size` does not fit it.
    """
    card = dict(getattr(module, "pretrained_cfg", None) or {})
    name = str(card.get("architecture") or type(module).__name__)
    vit: Any = supported(copy.deepcopy(module), name, None)
    vit.reset_classifier(0)
    said = InputCard.of_model(vit, name)
    made_for = cast(Any, vit.patch_embed).img_size
    own_size = said.size if made_for is None else size_of(*made_for)
    state, size = module.state_dict(), img_size or own_size
    refuse_dropped_pixels(vit, name, size, said.size)
    if size != own_size:
        before = grid_of(vit)
        with _explained(name, size):
            set_size(vit, size)
        # Once more, and with the resizing that all backbones get.
        fit_state(vit.float(), state, name, before)
    if not {"mean", "std"} <= card.keys():
        warnings.warn(
            f"{name}: the module has no pretrained_cfg with mean and std; ImageNet's are assumed",
            stacklevel=3,
        )
    config = BackboneConfig(name=name, weights=GIVEN, pool=pool)
    set_pool(vit, config)
    return _frozen(vit.float(), config, state, said), size, said


def _frozen(
    vit: nn.Module,
    config: BackboneConfig,
    state: Mapping[str, Tensor],
    card: InputCard,
) -> Backbone:
    vit.eval().requires_grad_(False)
    sha256 = state_sha256(state)
    return Backbone(vit, config, sha256, activation_of(vit), card.mean, card.std)


def architecture(config: BackboneConfig, img_size: Size) -> nn.Module:
    """The untrained model of `config`, whatever its weights."""
    if config.source == "open_clip":
        from vidpipe.backbones.openclip import create_tower, tower_to_timm

        vit = tower_to_timm(create_tower(config, None), config.name, img_size)[0]
    else:
        vit = _create_timm(config, img_size, None)
    set_pool(vit, config)
    return vit


def _create_timm(config: BackboneConfig, img_size: Size, hub_tag: str | None) -> nn.Module:
    name, _, own_tag = config.name.partition(".")
    refuse_unknown(name)
    _refuse_other_family(name)
    tag = hub_tag or own_tag
    try:
        with _explained(name, img_size):
            model = timm.create_model(
                f"{name}.{tag}" if tag else name,
                pretrained=hub_tag is not None,
                num_classes=0,
                img_size=img_size,
                **one_size(name),
            )
    except VidpipeError:
        _refuse_by_own_patches(name, img_size)
        raise
    except TypeError:
        # ViTs and Swins take an image size; most families do not.
        raise VidpipeError(
            f"backbone.name: {name} is not one of {FAMILIES}; {nearest_that_loads(name)}"
        ) from None
    except Exception as error:  # the hub's client raises many kinds; all mean no weights
        if hub_tag is None:
            _refuse_by_own_patches(name, img_size)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise VidpipeError(
                f"backbone: {name} at transform.size {words(img_size)}: {reason}"
            ) from error
        raise VidpipeError(
            f"backbone.weights: {name} could not be downloaded ({type(error).__name__}); "
            "name a local weights file instead"
        ) from error
    vit = supported(model, name, img_size)
    refuse_dropped_pixels(vit, name, img_size, InputCard.of_model(vit, name).size)
    return vit


def one_size(name: str) -> dict[str, Any]:
    """The option that has a model compute its positions once: DINOv3's would do so in every forward."""
    eva = timm.model_entrypoint(name).__module__ == "timm.models.eva"
    return {"dynamic_img_size": False} if eva else {}


def _refuse_by_own_patches(name: str, img_size: Size) -> None:
    """For a size at which a model cannot be built, which a convolutional stem may not say why."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    if hasattr(model, "patch_embed"):
        refuse_dropped_pixels(model, name, img_size, None)


@contextmanager
def _explained(name: str, img_size: Size) -> Iterator[None]:
    """Name model and size where timm refuses the size."""
    try:
        yield
    except (AssertionError, ValueError) as error:
        raise VidpipeError(
            f"backbone: {name} at transform.size {words(img_size)}: {error}"
        ) from error


def supported(model: nn.Module, name: str, size: Size | None) -> nn.Module:
    """`model`, where it is of a kind that methods can adapt; a NaFlexViT as the plain ViT that it is at
    one size (None: its card's). Raises VidpipeError otherwise."""
    reason = swin_refusal(model) if isinstance(model, SWINS) else refusal(model)
    if reason is not None:
        raise VidpipeError(f"backbone.name: {name} {reason}; {nearest_that_loads(name)}")
    if isinstance(model, NaFlexVit):
        return plain_vit(model, size or InputCard.of_model(model, name).size)
    return model


def _refuse_other_family(name: str) -> None:
    """Before it is built: some of them are large. Models that others registered are looked at later."""
    if (reason := of_other_family(name)) is not None:
        raise VidpipeError(f"backbone.name: {name} {reason}; {nearest_that_loads(name)}")
