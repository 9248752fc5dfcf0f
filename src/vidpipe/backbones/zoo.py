"""Loading a backbone: architecture by name, weights from a local file or the zoo's hub.

Activation, normalisation and size come with the weights. Weights that do not fit are refused by
name: a model trained from silently random weights is the failure users report most.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import SwinTransformer
from torch import Tensor, nn

import vidpipe.backbones.still  # noqa: F401  (registers the embedded ViT with timm)
from vidpipe.backbones.activation import activation_of
from vidpipe.backbones.config import GIVEN, RANDOM, BackboneConfig
from vidpipe.backbones.families import FAMILIES, refusal
from vidpipe.backbones.fit import fit_state, refuse_other_model
from vidpipe.backbones.listing import TIMM_FILES, nearest_that_loads
from vidpipe.config.identity import deciding
from vidpipe.errors import VidpipeError
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


def load_backbone(config: BackboneConfig, img_size: int) -> Backbone:
    """The backbone for square `img_size` pixel inputs, frozen, fp32, in eval mode.

    Position grids of another size are resized (bicubic, no antialias, as the weights' authors do);
    a Swin's windows shrink to a smaller grid as timm does it.
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

        vit, state, mean, std = load_open_clip(config, img_size)
    else:
        vit = _create_timm(config, img_size, config.hub_tag)
        card = cast(dict[str, Any], vit.pretrained_cfg)
        mean, std = tuple(card["mean"]), tuple(card["std"])
        if config.hub_tag is not None:
            state = vit.state_dict()
        else:
            state, header = read_weights(Path(config.weights))
            refuse_other_model(config, vit, header)
            fit_state(vit, state, config.weights)
    return _frozen(vit, config, state, mean, std)


def random_backbone(config: BackboneConfig, img_size: int) -> Backbone:
    """The backbone without its weights: random ones from torch's generator, which says so in a warning.

    Args:
        config: the name; its `weights` are not looked at.
        img_size: square input, pixels.

    Raises:
        VidpipeError: for an unknown name.
    """
    own = config.model_copy(update={"weights": RANDOM})
    if config.source == "open_clip":
        from vidpipe.backbones.openclip import load_open_clip

        vit, state, mean, std = load_open_clip(own, img_size)
        backbone = _frozen(vit, own, state, mean, std)
    else:
        plain = _create_timm(own, img_size, None)
        card = cast(dict[str, Any], plain.pretrained_cfg)
        backbone = _frozen(plain, own, plain.state_dict(), card["mean"], card["std"])
    warnings.warn(
        f"{config.name}: no weights were given, so the backbone is random; pass a file or hub",
        stacklevel=3,
    )
    return backbone


def copied_backbone(module: nn.Module, img_size: int | None) -> tuple[Backbone, int]:
    """A copy of a timm ViT or Swin of one's own, and its input size (None: as it is).

    The module itself is not touched. Its hash is that of its `state_dict`, so that a file of that is
    known as the same weights. Without `pretrained_cfg`, ImageNet's mean and std are assumed, which a
    warning says.

    Raises:
        VidpipeError: for another kind of module, or where `img_size` does not fit it.
    """
    card = dict(getattr(module, "pretrained_cfg", None) or {})
    name = str(card.get("architecture") or type(module).__name__)
    vit: Any = _supported(copy.deepcopy(module), name)
    vit.reset_classifier(0)
    grid = cast(Any, vit.patch_embed).img_size
    own_size = int(grid[0]) if grid is not None else int(card.get("input_size", (3, 224))[-1])
    state, size = module.state_dict(), img_size or own_size
    if size != own_size:
        with _explained(name, size):
            cast(Any, vit).set_input_size(img_size=(size, size))
        # Once more, and with the resizing that all backbones get.
        fit_state(vit.float(), state, name)
    if not {"mean", "std"} <= card.keys():
        warnings.warn(
            f"{name}: the module has no pretrained_cfg with mean and std; ImageNet's are assumed",
            stacklevel=3,
        )
    mean = card.get("mean", IMAGENET_DEFAULT_MEAN)
    std = card.get("std", IMAGENET_DEFAULT_STD)
    config = BackboneConfig(name=name, weights=GIVEN)
    return _frozen(vit.float(), config, state, mean, std), size


def default_size(config: BackboneConfig) -> int:
    """Pixels a side that the zoo made this model for. Raises VidpipeError for an unknown name."""
    if config.source == "open_clip":
        from vidpipe.backbones.openclip import image_size

        return image_size(config)
    _refuse_unknown(config.name.partition(".")[0])
    card = timm.get_pretrained_cfg(config.name)
    return int(card.input_size[-1]) if card is not None else 224


def _frozen(
    vit: nn.Module,
    config: BackboneConfig,
    state: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
) -> Backbone:
    vit.eval().requires_grad_(False)
    sha256 = state_sha256(state)
    return Backbone(vit, config, sha256, activation_of(vit), tuple(mean), tuple(std))


def architecture(config: BackboneConfig, img_size: int) -> nn.Module:
    """The untrained model of `config`, whatever its weights."""
    if config.source == "open_clip":
        from vidpipe.backbones.openclip import create_tower, tower_to_timm

        return tower_to_timm(create_tower(config, None), config.name, img_size)[0]
    return _create_timm(config, img_size, None)


def _create_timm(config: BackboneConfig, img_size: int, hub_tag: str | None) -> nn.Module:
    name, _, own_tag = config.name.partition(".")
    _refuse_unknown(name)
    _refuse_other_family(name)
    tag = hub_tag or own_tag
    try:
        with _explained(name, img_size):
            model = timm.create_model(
                f"{name}.{tag}" if tag else name,
                pretrained=hub_tag is not None,
                num_classes=0,
                img_size=img_size,
                **_one_size(name),
            )
    except VidpipeError:
        raise
    except TypeError:
        # ViTs and Swins take an image size; most families do not.
        raise VidpipeError(
            f"backbone.name: {name} is not one of {FAMILIES}; {nearest_that_loads(name)}"
        ) from None
    except Exception as error:  # the hub's client raises many kinds; all mean no weights
        if hub_tag is None:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise VidpipeError(
                f"backbone: {name} at transform.size {img_size}: {reason}"
            ) from error
        raise VidpipeError(
            f"backbone.weights: {name} could not be downloaded ({type(error).__name__}); "
            "name a local weights file instead"
        ) from error
    if isinstance(model, SwinTransformer):
        patch = cast(tuple[int, int], model.patch_embed.patch_size)[0]
        if img_size % patch:
            raise VidpipeError(f"transform.size: {img_size} is no multiple of {name}'s {patch}")
    vit = _supported(model, name)
    grid = getattr(vit.patch_embed, "grid_size", None)
    if grid is not None and not all(grid):
        raise VidpipeError(f"transform.size: {img_size} is less than one patch of {name}")
    return vit


def _one_size(name: str) -> dict[str, Any]:
    """The option that has a model compute its positions once: DINOv3's would do so in every forward."""
    eva = timm.model_entrypoint(name).__module__ == "timm.models.eva"
    return {"dynamic_img_size": False} if eva else {}


@contextmanager
def _explained(name: str, img_size: int) -> Iterator[None]:
    """Name model and size where timm refuses the size."""
    try:
        yield
    except (AssertionError, ValueError) as error:
        raise VidpipeError(f"backbone: {name} at transform.size {img_size}: {error}") from error


def _supported(model: nn.Module, name: str) -> nn.Module:
    """`model`, where it is of a kind that methods can adapt. Raises VidpipeError otherwise."""
    if isinstance(model, SwinTransformer):
        return model
    if (reason := refusal(model)) is not None:
        raise VidpipeError(f"backbone.name: {name} {reason}; {nearest_that_loads(name)}")
    return model


def _refuse_unknown(name: str) -> None:
    if not timm.is_model(name):
        raise VidpipeError(f"backbone.name: timm has no model {name!r}{_nearest(name)}")


def _refuse_other_family(name: str) -> None:
    """Before it is built: some of them are large. Models that others registered are looked at later."""
    module = timm.model_entrypoint(name).__module__
    package, _, family = module.rpartition(".")
    if package == "timm.models" and family not in TIMM_FILES:
        raise VidpipeError(
            f"backbone.name: {name} is not a ViT, Eva or Swin but of timm's {family} models; "
            f"{nearest_that_loads(name)}"
        )


def _nearest(name: str) -> str:
    near = get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
    return f"; nearest is {near[0]}" if near else ""
