"""NaFlexViTs: at any one size a plain ViT with their own features, whichever way positions are kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import NaFlexVit, VisionTransformer
from tiny import randomise
from torch import nn

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.families import refusal
from vidpipe.backbones.fit import fit_state
from vidpipe.backbones.naflex import plain_vit
from vidpipe.backbones.zoo import copied_backbone
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size, sides
from vidpipe.methods.registry import METHODS, build_method

KINDS: dict[str, dict[str, Any]] = {
    "naflexvit_base_patch16_gap": {},
    "naflexvit_base_patch16_map": {},
    "naflexvit_base_patch16_siglip": {},  # bilinear
    "naflexvit_base_patch16_par_gap": {},  # positions keep the aspect
    "naflexvit_base_patch16_parfac_gap": {},  # of rows and of columns
    "naflexvit_base_patch16_radio_v3": {},  # class tokens, align_corners, no final norm
    "naflexvit_so150m2_patch16_reg1_gap": {"embed_proj_type": "conv"},
    "naflexvit_so150m2_patch16_reg1_map": {"patchify_channels_last": False, "pos_embed": "none"},
    "naflexvit_large_patch16_radio_v3": {"pre_norm": True},
}
every = pytest.mark.parametrize("name", KINDS)


def small(name: str) -> NaFlexVit:
    torch.manual_seed(0)
    narrow = {"depth": 2, "embed_dim": 48, "num_heads": 4, "num_classes": 3}
    vit = timm.create_model(name, **{**KINDS[name], **narrow})
    randomise(vit)
    return vit.eval()


def features(vit: nn.Module, own: NaFlexVit, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a clip of equal frames by vidpipe, of the picture by timm."""
    x = torch.randn(2, 3, *sides(size), generator=torch.Generator().manual_seed(0))
    model = build_method("linear_probe", copy.deepcopy(vit), 3, 2, METHODS["linear_probe"].Config())
    model.head = nn.Identity()
    with torch.no_grad():
        found = model.eval()(x[:, :, None].expand(-1, -1, 2, -1, -1))
        return found, own.forward_head(own.forward_features(x), pre_logits=True)


@every
@pytest.mark.parametrize("size", [64, 256, (48, 96), (80, 32)])
def test_at_one_size_it_is_a_plain_vit(name: str, size: Size) -> None:
    own = small(name)
    vit = plain_vit(copy.deepcopy(own), size)
    assert type(vit) is VisionTransformer
    assert refusal(vit) is None
    torch.testing.assert_close(*features(vit, own, size), atol=1e-5, rtol=1e-5)


@every
def test_weights_of_the_zoo_fit_at_any_size(name: str) -> None:
    """From a file with timm's names, whatever positions the model had."""
    own = small(name)
    for size in (64, (48, 96)):
        vit = plain_vit(small(name), size)
        randomise(vit)
        fit_state(vit, own.state_dict(), "naflex.safetensors")
        torch.testing.assert_close(*features(vit, own, size), atol=1e-5, rtol=1e-5)


def test_a_module_is_copied_at_its_size_or_another() -> None:
    own = small("naflexvit_base_patch16_siglip")
    before = copy.deepcopy(own.state_dict())
    for size in (None, 64, (48, 96)):
        backbone, made_for, _ = copied_backbone(own, size)
        assert made_for == (size or 384)
        torch.testing.assert_close(*features(backbone.vit, own, made_for), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[k]) for k, tensor in own.state_dict().items())


def test_other_patches_or_another_family_are_named(tmp_path: Path) -> None:
    from vidpipe.backbones.zoo import load_backbone

    own = small("naflexvit_base_patch16_gap")
    path = tmp_path / "naflex.safetensors"
    save_file(own.state_dict(), path)
    config = BackboneConfig(name="vit_tiny_patch16_224", weights=str(path))
    with pytest.raises(VidpipeError, match="those of a NaFlexViT, and the backbone is a plain ViT"):
        load_backbone(config, 64)
    state = {**own.state_dict(), "embeds.proj.weight": torch.zeros(48, 588)}
    with pytest.raises(VidpipeError, match="patches have 588 values, and the backbone's have 16 x"):
        fit_state(plain_vit(own, 64), state, "naflex.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_type": "axial"}, "is a NaFlexVit with RoPE"),
        ({"dynamic_img_pad": True}, "that pads pictures"),
        ({"embed_norm_layer": "layernorm"}, "with a norm in its patch embedding"),
        ({"global_pool": ""}, "has no pooling"),
        ({"attn_layer": "diff"}, "has DiffAttention"),
    ],
)
def test_what_is_no_plain_vit_is_refused(options: dict[str, Any], message: str) -> None:
    narrow = {"depth": 2, "embed_dim": 48, "num_heads": 4, "num_classes": 0}
    vit = timm.create_model("naflexvit_base_patch16_gap", **narrow, **options)
    with pytest.raises(VidpipeError, match=message):
        copied_backbone(vit, None)
