"""A tiny image model of each family that methods work on, made by the zoo's own name.

Adding a family is one line of FAMILIES: the name of a timm model, whose parts it keeps.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import timm
import torch
from tiny import randomise
from torch import nn

FAMILIES = {
    "clip": "vit_base_patch16_clip_quickgelu_224",  # norm_pre, QuickGELU
    "registers": "vit_base_patch14_reg4_dinov2",  # LayerScale, class token before four registers
    "gap": "vit_little_patch16_reg1_gap_256",  # mean of patches, then fc_norm; one register alone
    "map": "vit_base_patch16_siglip_224",  # attention pooling, no prefix
    "swiglu": "aimv2_large_patch14_224",  # RMS norms, no bias in qkv, output or MLP, two gate halves
    "dinov3": "vit_base_patch16_dinov3",  # RoPE, joint qkv without bias, LayerScale, registers
    "dinov3_qkvb": "vit_base_patch16_dinov3_qkvb",  # its bias in two parts, none for k
    "dinov3_swiglu": "vit_huge_plus_patch16_dinov3",
    "eva02": "eva02_base_patch14_224",  # q, k and v apart, SwiGLU with an inner norm, both positions
    "eva02_small": "eva02_tiny_patch14_224",  # joint qkv, SwiGLU without a norm
    "eva02_clip": "eva02_base_patch16_clip_224",  # an inner norm in the attention
    "pe_core": "vit_pe_core_base_patch16_224",  # AttentionRope, attention pooling, a class token
    "rope_mixed": "vit_base_patch16_rope_mixed_ape_224",  # a RoPE for each block and head
    "eva_giant": "eva_giant_patch14_224",  # no RoPE
    "beit": "beit_base_patch16_224",  # relative positions for each block, no bias of keys
}
GRID, WIDTH, HEADS, DEPTH = 4, 48, 4, 3


@cache
def _patch(family: str) -> int:
    with torch.device("meta"):
        whole: Any = timm.create_model(FAMILIES[family], depth=1, num_classes=0)
    return int(whole.patch_embed.patch_size[0])


def size_of(family: str) -> int:
    """Pixels a side of `tiny_of`'s input: 4 x 4 patches."""
    return GRID * _patch(family)


def tiny_of(family: str) -> nn.Module:
    """3 blocks of width 48, 4 heads, 4 x 4 patches; in eval mode, no parameter is zero."""
    return copy.deepcopy(_made(family))


@cache
def _made(family: str) -> nn.Module:
    torch.manual_seed(0)
    vit = timm.create_model(f"tiny_{family}", img_size=size_of(family))
    randomise(vit)
    return vit.eval()


default_cfgs: dict[str, Any] = {}  # which timm asks of a module that registers models


def _register(family: str) -> None:
    """`tiny_FAMILY` for timm, so that commands and folders can have it by name."""

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        own = {key: options[key] for key in ("img_size", "dynamic_img_size") if key in options}
        if timm.model_entrypoint(FAMILIES[family]).__module__ == "timm.models.eva":
            own["dynamic_img_size"] = False  # as `zoo` makes it
        narrow = {"depth": DEPTH, "embed_dim": WIDTH, "num_heads": HEADS}
        return timm.create_model(FAMILIES[family], num_classes=0, **narrow, **own)

    entry.__name__, entry.__module__ = f"tiny_{family}", __name__
    timm.models.register_model(entry)


for _family in FAMILIES:
    _register(_family)
