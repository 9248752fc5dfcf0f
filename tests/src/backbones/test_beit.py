"""BEiT: relative positions that are a block's own or shared, at any size, with prompts and over time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import Beit
from tiny import randomise

from vidpipe.backbones.beit import BeitView
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.fit import fit_state
from vidpipe.backbones.zoo import copied_backbone, load_backbone
from vidpipe.errors import VidpipeError
from vidpipe.explain.attention import attention_maps
from vidpipe.methods.evl import adjacent_attention
from vidpipe.methods.registry import METHODS, build_method

SHARED = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "own": {},
    "shared": SHARED,
    "both": {"use_shared_rel_pos_bias": True},
    "token": {"global_pool": "token"},
    "norm_then_mean": {"use_fc_norm": False, "init_values": None},
    "swiglu": {"swiglu_mlp": True, "scale_mlp": True, "qkv_bias": False},
}
every = pytest.mark.parametrize("variant", VARIANTS)


def tiny_beit(variant: str = "own", size: int | tuple[int, int] = 48) -> Beit:
    torch.manual_seed(0)
    narrow = {"depth": 3, "embed_dim": 48, "num_heads": 4, "num_classes": 0, "img_size": size}
    beit = timm.create_model("beit_base_patch16_224", **VARIANTS[variant], **narrow)
    randomise(beit)
    return beit.eval()


def still(size: int = 48, frames: int = 2) -> torch.Tensor:
    x = torch.randn(2, 3, 1, size, size, generator=torch.Generator().manual_seed(3))
    return x.expand(-1, -1, frames, -1, -1)


@every
def test_still_clips_have_the_zoos_feature(variant: str) -> None:
    beit = tiny_beit(variant)
    expected = beit.forward_head(beit.forward_features(still()[:, :, 0]), pre_logits=True)
    for method in ("linear_probe", "st_adapter"):
        model = build_method(method, copy.deepcopy(beit), 5, 2, METHODS[method].Config()).eval()
        torch.testing.assert_close(model(still()), model.head(expected), atol=1e-5, rtol=1e-5)


@every
@pytest.mark.parametrize("method", ["zeroi2v", "lora"])
def test_merging_is_exact(variant: str, method: str) -> None:
    """Folding into k gives it a bias, which BEiT has no parameter for."""
    every_place = {
        "zeroi2v": {"adapters": ["attn_in", "attn_out", "mlp_in", "mlp_out"]},
        "lora": {"rank": 4, "targets": ["q", "k", "v", "o", "up", "down"]},
    }
    config = METHODS[method].Config.model_validate(every_place[method])
    model = build_method(method, tiny_beit(variant), 5, 2, config).double().eval()
    randomise(model)
    merged = model.merge()
    video = torch.randn(2, 3, 2, 48, 48, dtype=torch.double)
    torch.testing.assert_close(merged(video), model(video), atol=1e-10, rtol=1e-10)
    again = build_method(method, tiny_beit(variant), 5, 2, merged.config).double()
    assert set(again.state_dict()) == set(merged.state_dict())


def test_prompts_stand_between_class_token_and_patches_without_a_bias() -> None:
    block = BeitView(tiny_beit("both")).blocks[0]
    own = block.bias(10)
    assert own is not None
    assert own.shape == (1, 4, 10, 10)
    bias = block.bias(13)
    assert bias is not None
    assert not bias[..., 1:4, :].any()
    assert not bias[..., :, 1:4].any()
    rest = [0, *range(4, 13)]
    assert torch.equal(bias[..., rest, :][..., rest], own)


def test_evl_compares_neighbouring_frames_with_the_bias_of_their_patches() -> None:
    block = BeitView(tiny_beit()).blocks[1]
    q, k = torch.randn(2, 2 * 3, 10, 48).unbind()
    backward, forward = adjacent_attention(block, q, k, 3, 1)
    split = (x.unflatten(-1, (4, 12)).transpose(1, 2)[:, :, 1:] for x in (q, k))
    queries, keys = split
    bias = block.bias(10)
    assert bias is not None
    scores = queries[4] @ keys[3].transpose(-2, -1) * 12**-0.5 + bias[0, :, 1:, 1:]
    torch.testing.assert_close(backward[1, 0], scores.softmax(-1).mean(0))
    assert forward.shape == backward.shape == (2, 2, 9, 9)


@pytest.mark.parametrize("variant", ["own", "shared"])
def test_positions_follow_the_size_as_timm_resizes_them(variant: str) -> None:
    beit = tiny_beit(variant)
    backbone, size = copied_backbone(beit, 80)[:2]
    assert size == 80
    twin = tiny_beit(variant, 80)
    filtered = timm.models.beit.checkpoint_filter_fn(
        beit.state_dict(), twin, interpolation="bicubic", antialias=False
    )
    twin.load_state_dict(filtered)
    expected = twin.forward_head(twin.forward_features(still(80)[:, :, 0]), pre_logits=True)
    model = build_method("linear_probe", backbone.vit, 5, 2, METHODS["linear_probe"].Config())
    torch.testing.assert_close(model.eval()(still(80)), model.head(expected), atol=1e-5, rtol=1e-5)


def test_explanations_have_the_bias_in_them() -> None:
    beit = tiny_beit()
    model = build_method(
        "linear_probe", copy.deepcopy(beit), 5, 2, METHODS["linear_probe"].Config()
    )
    maps = attention_maps(model.eval(), still()[:1], 0)
    block = BeitView(beit).blocks[0]
    x = BeitView(beit).embed(still()[:1, :, 0])
    q, k, _ = block.project(block.norm1(x))
    q, k = block.place(q, k)
    bias = block.bias(10)
    assert bias is not None
    expected = F.softmax(q @ k.transpose(-2, -1) * block.scale + bias, -1)[:, :, 1:].mean(2)
    torch.testing.assert_close(maps.heads.flatten(2)[0], expected[0, :, 1:])


def test_bitfit_trains_the_biases_of_q_and_v() -> None:
    model = build_method("bitfit", tiny_beit(), 5, 2, METHODS["bitfit"].Config())
    trained = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"weight", "bias", "q_bias", "v_bias"}  # the head's weight
    assert model.block_of("vit.blocks.2.attn.q_bias") == 2
    assert model.block_of("vit.rel_pos_bias.relative_position_bias_table") == -1


def test_a_file_of_another_size_or_family_is_fitted_or_named(tmp_path: Any) -> None:
    name = "beit_base_patch16_224"
    path = tmp_path / "vit.safetensors"
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    save_file(vit.state_dict(), path)
    with pytest.raises(VidpipeError, match="those of a plain ViT, and the backbone is a BEiT"):
        load_backbone(BackboneConfig(name=name, weights=str(path)), 224)


def test_a_subclass_with_a_block_of_its_own_is_refused() -> None:
    beit = tiny_beit()

    class Odd(type(beit.blocks[0])):  # type: ignore[misc]
        pass

    beit.blocks[1].__class__ = Odd
    with pytest.raises(VidpipeError, match="has Odd blocks, which no method can adapt yet"):
        copied_backbone(beit, None)


@pytest.mark.parametrize("variant", ["own", "shared"])
@pytest.mark.parametrize(
    ("before", "after"), [((3, 5), (3, 5)), ((3, 5), (4, 2)), ((4, 4), (5, 3))]
)
def test_grids_that_are_not_square(
    variant: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    def of(grid: tuple[int, int]) -> Beit:
        return tiny_beit(variant, (16 * grid[0], 16 * grid[1]))

    beit, twin = of(before), of(before)
    twin.set_input_size(img_size=(16 * after[0], 16 * after[1]))
    state = twin.state_dict()
    if variant == "shared":  # timm antialiases these, the weights' authors do not
        options = {"interpolation": "bicubic", "antialias": False}
        pos_embed = beit.state_dict()["pos_embed"]
        state["pos_embed"] = resample_abs_pos_embed(pos_embed, after, before, 1, **options)
        twin.load_state_dict(state)
    fitted = copied_backbone(beit, (16 * after[0], 16 * after[1]))[0].vit
    for name, tensor in fitted.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    with pytest.raises(VidpipeError, match="biases of patches, which are none of 9 x 9 patches"):
        fit_state(of(after), beit.state_dict(), "beit.safetensors", (9, 9))


def test_a_bias_of_k_leaves_those_of_q_and_v() -> None:
    block = BeitView(tiny_beit()).blocks[0]
    q, v = block.affine("q")[1], block.affine("v")[1]
    assert q is not None
    assert v is not None
    bias = torch.randn(48)
    block.overwrite("k", block.affine("k")[0], bias)
    for part, expected in (("q", q), ("k", bias), ("v", v)):
        found = block.affine(part)[1]  # type: ignore[arg-type]
        assert found is not None
        assert torch.equal(found, expected), part
