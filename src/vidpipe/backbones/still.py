"""Two image models of half a million parameters that have seen rendered stills only.

`vit_still_patch12_48` is a plain ViT, `eva_still_patch12_48` one as DINOv3 builds them: rotary
positions, registers, LayerScale, SwiGLU, no bias in its attention. They stand in for image foundation
models where none can be downloaded. Their weights come with the package (see the cards in assets/) and
were made by `python scripts/pretrain_still.py`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from timm.models import (
    Eva,
    VisionTransformer,
    build_model_with_cfg,
    eva,
    generate_default_cfgs,
    register_model,
    vision_transformer,
)
from torch import nn

ARCHITECTURE = "vit_still_patch12_48"
EVA_ARCHITECTURE = "eva_still_patch12_48"
INPUT_SIZE = 48
PATCH_SIZE = 12
MEAN = STD = (0.5, 0.5, 0.5)
ASSETS = Path(__file__).parents[1] / "assets"
WEIGHTS = ASSETS / "vit_still.safetensors"
EVA_WEIGHTS = ASSETS / "eva_still.safetensors"
WEIGHTS_OF = {ARCHITECTURE: WEIGHTS, EVA_ARCHITECTURE: EVA_WEIGHTS}

CARD = {
    "url": "",
    "input_size": (3, INPUT_SIZE, INPUT_SIZE),
    "mean": MEAN,
    "std": STD,
    "num_classes": 0,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "license": "apache-2.0",
}
# register_model looks the names up in the module. Without a url timm can never fetch weights.
default_cfgs = generate_default_cfgs(dict.fromkeys(WEIGHTS_OF, CARD))


@register_model
def vit_still_patch12_48(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """(B, 3, 48, 48) -> 4 x 4 patches + class token, 4 blocks of width 96 with 6 heads of 16."""
    model: VisionTransformer = _built(
        VisionTransformer, ARCHITECTURE, pretrained, vision_transformer, **kwargs
    )
    return model


@register_model
def eva_still_patch12_48(pretrained: bool = False, **kwargs: Any) -> Eva:
    """As `vit_still_patch12_48`, and with 2 registers; the feature is the class token."""
    own: dict[str, Any] = {
        "global_pool": "token",
        "num_reg_tokens": 2,
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_rotate_half": True,
        "rope_temperature": 100.0,
        "qkv_bias": False,
        "init_values": 1.0,
        "swiglu_mlp": True,
        "mlp_ratio": 8 / 3,
    }
    model: Eva = _built(Eva, EVA_ARCHITECTURE, pretrained, eva, **(own | kwargs))
    return model


def _built(cls: type[nn.Module], name: str, pretrained: bool, family: Any, **kwargs: Any) -> Any:
    model_args: dict[str, Any] = {
        "img_size": INPUT_SIZE,
        "patch_size": PATCH_SIZE,
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 6,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }
    return build_model_with_cfg(
        cls,
        name,
        pretrained,
        pretrained_filter_fn=family.checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **(model_args | kwargs),
    )
