"""The methods' promises on ViTs that pool otherwise than by class token, or have another MLP."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from tiny import randomise, tiny_vit

from vidpipe.backbones.mlp import hidden, input_layers, joint, output_layer
from vidpipe.methods.noise import ClipNoise
from vidpipe.methods.registry import METHODS, VideoModel, build_method
from vidpipe.profile import cost

T, CLASSES = 3, 5
AIMV2 = {"mlp_layer": SwiGLU, "norm_layer": RmsNorm, "qkv_bias": False, "init_values": None}
MAKES: dict[str, dict] = {
    "siglip": {"global_pool": "map", "class_token": False},
    "gap": {"global_pool": "avg", "class_token": False, "fc_norm": False},
    "reg_gap": {"global_pool": "avg", "class_token": False, "reg_tokens": 2},
    "beit3": {"global_pool": "avg", "scale_attn_norm": True, "scale_mlp_norm": True},
    "aimv2": {"global_pool": "avg", "class_token": False, "fc_norm": False, **AIMV2},
    "dinov2_giant": {"mlp_layer": SwiGLUPacked},
}
OPTIONS: dict[str, dict] = {
    "evl": {"num_layers": 1},
    "lora": {"targets": ["q", "v", "up", "down"]},
    "temporal_finetune": {"architecture": "shift"},
}


def build(name: str, make: str) -> VideoModel:
    torch.manual_seed(0)
    config = METHODS[name].Config.model_validate(OPTIONS.get(name, {}))
    return build_method(name, tiny_vit(depth=2, **MAKES[make]), CLASSES, T, config)


def clip() -> torch.Tensor:
    return torch.randn(2, 3, T, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_its_promises(name: str, make: str) -> None:
    model = build(name, make).eval()
    # It starts as the image model: the head reads timm's own features.
    if model.starts_as_image_model:
        frame = clip()[:, :, :1]
        still = frame.expand(-1, -1, T, -1, -1)
        vit = copy.deepcopy(model.vit)
        expected = model.head(
            vit.forward_head(vit.forward_features(frame[:, :, 0]), pre_logits=True)
        )
        torch.testing.assert_close(model(still), expected, atol=1e-5, rtol=1e-5)
    # What the last block leaves out is read by nothing; gradients are in what was declared alone.
    model = model.double()
    randomise(model)
    for module in model.modules():
        if isinstance(module, ClipNoise):
            module.rate = 0.0
    found = []
    for model.every_token in (True, False):
        model.train().zero_grad()
        logits = model(clip().double())
        if model.trained_names:
            logits.square().sum().backward()
        found.append([logits, *(p.grad for p in model.parameters() if p.requires_grad)])
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    torch.testing.assert_close(found[1], found[0], atol=1e-9, rtol=1e-9)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(model.trained_names)
    # Merging is exact.
    if model.not_mergeable is None:
        model.eval()
        x = clip().double()
        merged = model.merge()
        torch.testing.assert_close(merged(x), model(x), atol=1e-10, rtol=1e-10)
        assert (
            cost(model, 32).new_at_inference
            == sum(p.numel() for p in merged.vit.parameters())
            - sum(p.numel() for p in model.vit.parameters())
            + T * 48
        )


@pytest.mark.parametrize(
    ("make", "trained"),
    [
        *(("siglip", "norm"), ("gap", "norm"), ("reg_gap", "fc_norm"), ("beit3", "fc_norm")),
        *(("aimv2", "norm"), ("dinov2_giant", "norm")),
    ],
)
@pytest.mark.parametrize("name", ["aim", "zeroi2v", "lora", "partial"])
def test_the_norm_that_is_trained_is_the_one_that_pooling_uses(
    name: str, make: str, trained: str
) -> None:
    model = build(name, make)
    assert f"vit.{trained}.weight" in model.trained_names
    if name != "partial":
        assert not model.decays(
            f"vit.{trained}.weight", model.vit.get_parameter(f"{trained}.weight")
        )


def test_the_last_block_computes_what_pooling_reads() -> None:
    for make, needed in (("siglip", None), ("beit3", None), ("dinov2_giant", 1)):
        assert build("aim", make).tokens_needed(1) == needed
    vit = VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=4)
    assert build_method("aim", vit, CLASSES, T, METHODS["aim"].Config()).tokens_needed(0) == 2


@pytest.mark.parametrize("make", ["beit3", "aimv2", "dinov2_giant"])
def test_an_mlp_in_pieces_is_timms(make: str) -> None:
    mlp = tiny_vit(**MAKES[make]).double().blocks[0].mlp
    x = torch.randn(2, 3, 48, dtype=torch.double)
    found = output_layer(mlp)(hidden(mlp, joint(mlp, x)))
    torch.testing.assert_close(found, mlp(x), atol=1e-12, rtol=1e-12)
    assert sum(layer.out_features for layer in input_layers(mlp)) == joint(mlp, x).shape[-1]
