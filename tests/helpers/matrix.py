"""Methods with the options that every promise is held to."""

from __future__ import annotations

import pytest

from vidpipe.methods.registry import METHODS, VideoModel
from vidpipe.methods.stdha import STDHA

MATRIX = [
    ("linear_probe", {}),
    ("prompt_tuning", {"num_tokens": 5}),
    ("attentional_pooling", {}),
    ("st_adapter", {}),
    ("st_adapter", {"kernel_size": [3, 3, 3], "positions": ["before_attn", "before_mlp"]}),
    ("st_adapter", {"positions": ["after_attn", "after_mlp"], "blocks": [1, 2]}),
    ("st_adapter", {"blocks": {"before_attn": [1, 2], "after_mlp": [2]}}),
    ("aim", {}),
    ("aim", {"num_temporal_adapters": 2, "scale": 1.0}),
    ("zeroi2v", {}),
    ("zeroi2v", {"head_offsets": [-1, 1, -2, 2], "scale": 0.5}),
    ("zeroi2v", {"adapters": ["attn_in", "attn_out", "mlp_in"]}),
    (
        "zeroi2v",
        {"adapters": ["attn_in_q", "attn_in_k", "attn_in_v", "attn_out", "mlp_in", "mlp_out"]},
    ),
    ("zeroi2v", {"channel_offsets": [[6, -1], [18, 1], [24, 0]]}),
    ("zeroi2v", {"head_offsets": [[-1], [1], [-2, 2]]}),
    ("zeroi2v", {"shift_ratio": 0.34}),
    ("zeroi2v", {"shift_ratio": 0.34, "shifted": "qkv"}),
    ("zeroi2v", {"shifted": "qkv"}),
    ("zeroi2v", {"shift_ratio": 0.5, "shifted": "cls"}),
    ("zeroi2v", {"activation": "gelu"}),
    ("aim", {"temporal": False, "joint": False}),
    ("aim", {"joint": False, "num_temporal_adapters": 2}),
    ("aim", {"blocks": [0, 2]}),
    ("full_finetune", {}),
    ("full_finetune", {"architecture": "divided"}),
    ("full_finetune", {"architecture": "shift"}),
    ("partial", {}),
    ("partial", {"architecture": "divided", "num_blocks": 2}),
    ("partial", {"architecture": "shift"}),
    ("bitfit", {}),
    ("bitfit", {"architecture": "divided"}),
    ("temporal_finetune", {}),
    ("temporal_finetune", {"architecture": "shift"}),
    ("temporal_heads", {}),
    ("temporal_heads", {"head_offsets": [-1, 1, 2]}),
    ("lora", {"rank": 4}),
    ("lora", {"rank": 4, "targets": ["q", "v"]}),
    ("lora", {"rank": 4, "targets": ["q", "v", "up", "down"], "scale": 0.5}),
    ("lora", {"rank": 4, "targets": ["q", "k", "v", "o", "up", "down"]}),
    ("evl", {"num_layers": 2}),
    (
        "evl",
        {
            "num_layers": 2,
            "temporal_conv": False,
            "temporal_embedding": False,
            "temporal_cross_attention": False,
        },
    ),
    ("evl", {"num_layers": 3, "temporal_embedding": False, "temporal_cross_attention": False}),
    ("evl", {"num_layers": 1, "temporal_embedding": False, "temporal_conv": False}),
    ("attentive_probe", {}),
    ("attentive_probe", {"num_blocks": 1, "mlp_ratio": 2}),
    ("side4video", {"side_width": 32}),
    ("zero_shot", {}),
    ("linear_probe", {"head_init": "text"}),
    ("aim", {"head_init": "text"}),
    ("st_adapter", {"head_init": "text"}),
    ("zeroi2v", {"head_init": "text"}),
    ("lora", {"rank": 4, "head_init": "text"}),
    ("zeroi2v", {"blocks": [1, 2], "temporal_embedding_at": "first_adapted"}),
    ("zeroi2v", {"blocks": [2], "head_offsets": [[], [1], [-1, 1]]}),
    (
        "lora",
        {"rank": 4, "blocks": [2], "targets": ["q", "v", "up"]}
        | {"temporal_embedding_at": "first_adapted"},
    ),
    ("temporal_heads", {"blocks": [2], "temporal_embedding_at": "first_adapted"}),
]


MATRIX += [(name, {}) for name in METHODS if name not in {listed for listed, _ in MATRIX}]


def sees_order_at_start(model: VideoModel, options: dict) -> bool:
    """Heads are shifted; or the class token, and the stem goes over frames; or frames have positions."""
    own = isinstance(model, STDHA) or model.name in {"side4video", "attentive_probe"}
    return own or options.get("architecture") == "shift"


IDS = [f"{name}-{i}" for i, (name, _) in enumerate(MATRIX)]


every = pytest.mark.parametrize(("name", "options"), MATRIX, ids=IDS)
