"""Every ViT of the zoos by name: it has their own feature, or is refused with the reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention, GlobalResponseNormMlp, Mlp
from timm.models import VisionTransformer
from tiny import randomise, tiny_vit
from torch import nn

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.families import refusal
from vidpipe.backbones.fit import fit_state
from vidpipe.backbones.listing import TIMM_FILES, list_backbones
from vidpipe.backbones.zoo import architecture, copied_backbone
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS, build_method

PLAIN = [file for file in TIMM_FILES if file != "swin_transformer"]
NAMES = sorted(name for file in PLAIN for name in timm.list_models(module=file))
SMALL = {"depth": 2, "num_classes": 0}
NARROW = {"embed_dim": 48, "num_heads": 4}
PARTS = ("blocks", "norm", "fc_norm", "attn_pool", "norm_pre")
T = 2
POOLINGS = [
    {},
    {"fc_norm": True},
    {"fc_norm": False},
    {"final_norm": False},
    {"pool_include_prefix": True},
]


def small(name: str, **options: object) -> Any:
    """`name` with two narrow blocks; a convolutional stem keeps its size."""
    narrow = {} if "mci" in name else NARROW  # its stem makes tokens of the full width
    if "sapiens2" in name:  # which heads share their keys depends on the depth
        heads = {"base": 12, "large": 16, "huge": 16, "giant": 24, "5b": 32}[name.split("_")[1]]
        return timm.create_model(name, num_classes=0, embed_dim=8 * heads, **options)
    return timm.create_model(name, **SMALL, **narrow, **options)


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


@pytest.mark.filterwarnings("ignore")
def test_the_feature_of_every_name_is_the_zoos_or_is_refused() -> None:
    """By linear probe (`pool`) and ST-Adapter (`reduce`, mean over T, `finish`)."""
    seen: set[str] = set()
    loads = set(list_backbones())
    for name in NAMES:
        with torch.device("meta"):
            vit = small(name)
        assert (refusal(vit) is None) == (name in loads), name
        options = ("global_pool", "no_embed_class", "pool_include_prefix", "rope")
        pooling = [getattr(vit, option, None) for option in options]
        # Names that differ in size alone are one case; a patch of 16 stands for all.
        parts = [getattr(vit, part, None) for part in PARTS]
        tokens = (vit.num_prefix_tokens, vit.cls_token is None, type(vit), type(vit.patch_embed))
        structure = f"{pooling} {parts} {tokens}"
        if refusal(vit) is not None or structure in seen:
            continue
        seen.add(structure)
        patch = name.split("patch")[1].split("_")[0] if "patch" in name else "16"
        size = 4 * int(patch)
        vit = small(name, img_size=size).eval()
        randomise(vit)
        for method in ("linear_probe", "st_adapter"):
            assert feature_error(vit, method, size) < 1e-5, (name, method)
        fresh = small(name, img_size=size)
        fit_state(fresh, vit.state_dict(), name)
        assert all(torch.equal(t, vit.state_dict()[k]) for k, t in fresh.state_dict().items()), name
    assert len(seen) > 25


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
        ("vitamin_base_224", "of timm's vitamin models; nearest that works is vit_"),
        ("naflexvit_base_patch16_gap", "of timm's naflexvit models"),
    ],
)
def test_a_refusal_names_the_reason_and_the_nearest_that_works(name: str, message: str) -> None:
    with pytest.raises(VidpipeError, match=f"{name} .*{message}"):
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
