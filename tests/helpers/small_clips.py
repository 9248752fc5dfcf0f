"""Whole open_clip models of a few thousand parameters, with both halves, made and saved by open_clip."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import factory
from safetensors.torch import save_file

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CARDS: dict[str, dict[str, Any]] = {
    "small-clip": {
        "embed_dim": 24,
        "vision_cfg": {
            **{"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
        },
        "text_cfg": TEXT,
    },
    "small-trunk": {  # as MobileCLIP and EVA02: the trunk's classifier projects, with a bias
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {
            **{"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False},
            **{"timm_pool": "token", "timm_proj": None},
        },
        "text_cfg": TEXT,
    },
    "small-eva": {  # as EVA02
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {
            **{"image_size": 384, "timm_model_name": "vit_pe_core_tiny_patch16_384"},
            **{"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": None},
        },
        "text_cfg": {**TEXT, "context_length": 32},
    },
    "small-siglip": {  # no projection; a tokenizer from a hub
        "embed_dim": 96,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            **{"image_size": 160, "timm_model_name": "test_vit3", "timm_model_pretrained": False},
            **{"timm_pool": "map", "timm_proj": "none"},
        },
        "text_cfg": {**TEXT, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"},
    },
}


@contextmanager
def small_clips(folder: Path) -> Iterator[None]:
    """open_clip knows the models of CARDS by name."""
    for name, card in CARDS.items():
        (folder / f"{name}.json").write_text(json.dumps(card))
    open_clip.add_model_config(folder)
    try:
        yield
    finally:
        factory._MODEL_CONFIG_PATHS.remove(folder)
        for name in CARDS:
            factory._MODEL_CONFIGS.pop(name)


def saved_clip(name: str, file: Path) -> Any:
    """Model `name` with random weights, in eval mode; its state dict is in `file`."""
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if "logit" not in n):
            parameter += (0.05 if parameter.ndim > 1 else 0.2) * torch.randn_like(parameter)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    return model.eval()
