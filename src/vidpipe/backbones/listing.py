"""Names of the image models that load, told from the zoos' registries: nothing is built."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, Literal

import timm

from vidpipe.backbones.still import WEIGHTS_OF
from vidpipe.errors import VidpipeError

TIMM_FILES = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "deit",
    "eva",
    "beit",
    "naflexvit",
    "swin_transformer",
    "swin_transformer_v2",
)
"""timm's modules of ViTs, Evas, BEiTs and Swins."""
OTHER_FILES = {
    "cait": "with talking heads, and blocks of the class token's own",
    "coat": "with convolutions between tokens, and tokens of several scales",
    "convit": "whose attention is gated between content and position",
    "crossvit": "with two branches of patches that exchange their class tokens",
    "davit": "which attend over channels as well as within windows",
    "deepseek_vit": "in two stages, the first within windows",
    "hiera": "which pool the queries of an unrolled grid between stages",
    "hieradet_sam2": "which pool queries between stages and attend within windows",
    "levit": "with convolutions and batch norms in place of linear layers and LayerNorms",
    "maxxvit": "which alternate convolutions with attention in windows and grids",
    "mvitv2": "which pool queries, keys and values by convolution",
    "nest": "which attend within blocks that are merged by convolution",
    "pit": "which pool tokens by convolution between stages",
    "pvt_v2": "which pool keys and values, and tokens between stages",
    "swin_transformer_v2_cr": "whose windows are another Swin V2's",
    "tnt": "with an inner transformer in each patch",
    "twins": "which pool keys and values, and tokens between stages",
    "vision_transformer_relpos": "whose relative positions are layers within the attention",
    "vision_transformer_sam": "which attend within windows and end in convolutions",
    "vitamin": "which begin with convolutional stages",
    "volo": "which begin with outlook attention",
    "xcit": "which attend over channels, not over tokens",
}
"""Files of other transformers in timm, and what methods have no form for: between one block and the next
their tokens are no longer those of a frame, or attention is none of queries with keys."""
OTHER_BLOCKS = (
    *("vit_*_18x2_*", "vit_*_xp_*", "vit_*_rpn_*", "vit_pwee_*", "vit_dpwee_*"),
    *("vit_dwee_*", "vit_dlittle_*", "eva02_enormous_*"),
    *(f"vit_{size}_patch16_sapiens2" for size in ("large", "huge", "giant", "5b")),
)
"""Patterns of those among them whose blocks or attention `families.refusal` refuses: a test builds
all."""
POOLINGS: dict[str, Literal["token", "avg"]] = {"tok": "token", "avg": "avg"}
"""open_clip's poolings of its own ViT, by timm's names."""
OWN_POOLS = ("abs_attn", "rot_attn")
"""open_clip's poolings behind a timm model, which are no part of it."""


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the backbones that load, as `create_model` takes them.

    Args:
        pattern: of file names, such as `"*clip*"`.

    Returns:
        The names that match, sorted: timm's ViTs, Evas, BEiTs and Swins, then the image towers of
        open_clip (where it is installed) as `open_clip:NAME`. A name says nothing of weights: those
        are a file or `hub`.

    Example:
        >>> import vidpipe
        >>> vidpipe.list_backbones("vit_base_patch16_clip_quick*")
        ['vit_base_patch16_clip_quickgelu_224']
        >>> vidpipe.list_backbones("open_clip:ViT-B-16*")[0]
        'open_clip:ViT-B-16'
    """
    names = _of_timm()
    if find_spec("open_clip") is not None:
        names += open_clip_names()
    return [name for name in names if fnmatchcase(name, pattern)]


def _of_timm() -> list[str]:
    found = {name for file in TIMM_FILES for name in timm.list_models(module=file)}
    plain = {n for n in found if not any(fnmatchcase(n, other) for other in OTHER_BLOCKS)}
    return sorted({*plain, *WEIGHTS_OF})


def of_other_family(name: str) -> str | None:
    """Why a model is refused by the file of timm that it is in, a phrase after its name; None: it is
    not. Models that others registered are looked at when they are built."""
    package, _, family = timm.model_entrypoint(name).__module__.rpartition(".")
    if package != "timm.models" or family in TIMM_FILES:
        return None
    why = f", {OTHER_FILES[family]}" if family in OTHER_FILES else ""
    return f"is no ViT, Eva, BEiT or Swin but of timm's {family} models{why}"


def refuse_unknown(name: str) -> None:
    """Raise VidpipeError where timm has no model of this name, with the nearest that it has."""
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        hint = f"; nearest is {near[0]}" if near else ""
        raise VidpipeError(f"backbone.name: timm has no model {name!r}{hint}")


def nearest_that_loads(name: str) -> str:
    """The model of timm that loads and whose name is nearest to `name`, as a phrase for an error."""
    return f"nearest that works is {get_close_matches(name, _of_timm(), n=1, cutoff=0)[0]}"


def nearest_tower(name: str) -> str:
    """`nearest_that_loads` among the image towers of open_clip."""
    names = [own.removeprefix("open_clip:") for own in open_clip_names()]
    return f"nearest that works is {get_close_matches(name, names, n=1, cutoff=0)[0]}"


def open_clip_names() -> list[str]:
    import open_clip

    cards = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    plain = set(_of_timm())
    return [
        f"open_clip:{name}"
        for name, card in sorted(cards.items())
        if _tower_loads(card["vision_cfg"], plain)
    ]


def _tower_loads(vision: Mapping[str, Any], plain: set[str]) -> bool:
    """Whether `openclip.tower_to_timm` takes the tower of this configuration; `plain`: timm's models
    that load."""
    if "timm_model_name" in vision:
        own_pool = vision.get("timm_pool") in OWN_POOLS
        return vision["timm_model_name"].partition(".")[0] in plain and not own_pool
    return (
        isinstance(vision["layers"], int)
        and not vision.get("attentional_pool")
        and vision.get("pool_type", "tok") in POOLINGS
    )
