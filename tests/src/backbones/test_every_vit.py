"""Every ViT of the zoos by name: it has their own feature, or is refused with the reason."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention, GlobalResponseNormMlp, Mlp
from timm.models import VisionTransformer
from tiny import tiny_vit
from torch import nn

from pipeline.tools.check_backbones import check
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.families import refusal
from vidpipe.backbones.listing import OTHER_FILES, TIMM_FILES, list_backbones
from vidpipe.backbones.view import ImageView
from vidpipe.backbones.zoo import architecture, copied_backbone
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS, build_method

PLAIN = [file for file in TIMM_FILES if "swin" not in file]
NAMES = sorted(name for file in PLAIN for name in timm.list_models(module=file))
CLASSES = {"VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit", "NaFlexVit"}
CLASSES |= {"SwinTransformer", "SwinTransformerV2"}
T = 2
POOLINGS = [
    {},
    {"fc_norm": True},
    {"fc_norm": False},
    {"final_norm": False},
    {"pool_include_prefix": True},
]


def feature_error(vit: Any, method: str, size: int) -> float:
    """Relative error of the feature of a clip of equal frames against timm's own forward."""
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = vit.forward_head(vit.forward_features(x), pre_logits=True)
        model = build_method(method, copy.deepcopy(vit), 3, T, METHODS[method].Config())
        model.head = nn.Identity()
        found = model.eval()(x[:, :, None].expand(-1, -1, T, -1, -1))
    assert expected.shape == found.shape == (2, vit.num_features)
    return float((found - expected).norm() / expected.norm())


def test_the_feature_of_every_name_is_the_zoos_or_is_refused() -> None:
    """Whatever timm calls a transformer or not: it is listed and right, or not listed and refused."""
    loads = set(list_backbones())
    errors: dict[str, set[float]] = defaultdict(set)
    # Other tests register models of their own.
    own = [n for n in timm.list_models() if "timm." in timm.model_entrypoint(n).__module__]
    for verdict in check(own):
        assert (verdict.reason is None) == (verdict.name in loads), verdict
        if verdict.error is not None:
            assert verdict.error < 1e-5, verdict
            errors[verdict.kind].add(verdict.error)
    assert set(errors) == CLASSES
    assert sum(map(len, errors.values())) > 35  # structures that were computed


def test_a_feature_that_is_not_the_zoos_has_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageView, "finish", lambda view, feature: feature)
    (verdict,) = check(["vit_tiny_patch16_224"])
    assert verdict.error is not None
    assert verdict.error > 0.1


@pytest.mark.parametrize("file", OTHER_FILES)
def test_each_other_transformer_is_refused_by_what_it_is(file: str) -> None:
    name = timm.list_models(module=file)[0]
    with pytest.raises(VidpipeError, match=f"{name} is no .* {OTHER_FILES[file]}; nearest that"):
        architecture(BackboneConfig(name=name, weights="none"), 224)


@pytest.mark.long
def test_at_full_size_the_verdict_is_the_same() -> None:
    loads = set(list_backbones())
    for name in NAMES:
        with torch.device("meta"):
            vit = timm.create_model(name, num_classes=0)
        assert (refusal(vit) is None) == (name in loads), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_dwee_patch16_reg1_gap_256", "has DiffAttention, .* is vit_wee_patch16_reg1_gap_256"),
        ("vit_base_patch16_xp_224", "has ParallelScalingBlock blocks, .* is vit_base_patch16_"),
        ("eva02_enormous_patch14_clip_224", "EvaBlockPostNorm .* is eva02_large_patch14_clip_224"),
        ("vit_5b_patch16_sapiens2", "grouped-query attention.* nearest that works is vit_"),
        ("vitamin_base_224", "of timm's vitamin models, .*; nearest that works is vit_"),
    ],
)
def test_a_refusal_names_the_reason_and_the_nearest_that_works(name: str, message: str) -> None:
    with pytest.raises(VidpipeError, match=f"{name} .*{message}"), torch.device("meta"):
        architecture(BackboneConfig(name=name, weights="none"), 32)


class Flipped(VisionTransformer):
    def forward_features(self, x: torch.Tensor, *args: object) -> torch.Tensor:
        return super().forward_features(x.flip(-1))


class Odd(Attention):
    pass


@pytest.mark.parametrize(
    ("part", "other", "message"),
    [
        ("attn", Attention(48, 4, gated=True), "has gated attention"),
        ("attn", Attention(48, 4, attn_head_dim=8), "has heads of 32 channels in all"),
        ("attn", Odd(48, 4), "has Odd, which no method can adapt yet"),
        ("mlp", GlobalResponseNormMlp(48), "has GlobalResponseNormMlp as MLP"),
        ("mlp", Mlp(48, use_conv=True), "has layers in its MLP that are not linear"),
    ],
)
def test_one_odd_block_is_enough_for_a_refusal(part: str, other: nn.Module, message: str) -> None:
    vit = tiny_vit()
    setattr(vit.blocks[1], part, other)
    with pytest.raises(VidpipeError, match=message):
        copied_backbone(vit, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vit_tiny_patch16_224",
            "8 px is no multiple of vit_tiny_patch16_224's patch of 16 px; nearest that work: 16",
        ),
        ("vit_base_mci_224", "8 px is no multiple of vit_base_mci_224's patch of 16 px"),
    ],
)
def test_a_size_that_leaves_no_patch_is_no_failed_download(name: str, message: str) -> None:
    with pytest.raises(VidpipeError, match=message), torch.device("meta"):
        architecture(BackboneConfig(name=name, weights="none"), 8)


def test_a_vit_without_pooling_is_refused() -> None:
    with pytest.raises(VidpipeError, match="has no pooling"):
        copied_backbone(tiny_vit(global_pool=""), None)


def test_a_subclass_with_a_forward_of_its_own_is_refused() -> None:
    vit = Flipped(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=4)
    with pytest.raises(VidpipeError, match="is a Flipped with a forward_features of its own"):
        copied_backbone(vit, None)


@pytest.mark.parametrize("pool", ["avg", "avgmax", "max", "token", "map", "prr"])
@pytest.mark.parametrize("options", POOLINGS, ids=str)
def test_every_pooling_of_timm(pool: str, options: dict) -> None:
    vit = tiny_vit(global_pool=pool, reg_tokens=2, depth=1, **options)
    for method in ("linear_probe", "st_adapter", "aim"):
        assert feature_error(vit, method, 32) < 1e-5, method
