"""`vit_still_patch12_48`: a ViT of half a million parameters that has seen rendered stills only.

It stands in for an image foundation model where none can be downloaded. Its weights come with the
package (assets/vit_still.safetensors, see the card beside them) and were made by
`python -m pipeline.pretrain_still`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from timm.models import (
    VisionTransformer,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

ARCHITECTURE = "vit_still_patch12_48"
INPUT_SIZE = 48
PATCH_SIZE = 12
MEAN = STD = (0.5, 0.5, 0.5)
WEIGHTS = Path(__file__).parents[1] / "assets" / "vit_still.safetensors"


# register_model looks this name up in the module. Without a url timm can never fetch weights.
default_cfgs = generate_default_cfgs(
    {
        ARCHITECTURE: {
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
    }
)


@register_model
def vit_still_patch12_48(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """(B, 3, 48, 48) -> 4 x 4 patches + class token, 4 blocks of width 96 with 6 heads of 16."""
    model_args: dict[str, Any] = {
        "img_size": INPUT_SIZE,
        "patch_size": PATCH_SIZE,
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 6,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        ARCHITECTURE,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **(model_args | kwargs),
    )
    return model
