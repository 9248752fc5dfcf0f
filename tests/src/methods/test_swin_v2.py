"""Swin V2: norms that follow, cosine attention, a bias of k that a merged adapter needs."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models import SwinTransformer, SwinTransformerV2
from tiny import randomise
from torch import nn

from vidpipe.backbones.zoo import copied_backbone
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS, VideoModel, build_method

T, CLASSES = 4, 5
EVERY_PLACE = ["attn_in_q", "attn_in_k", "attn_in_v", "attn_out", "mlp_in", "mlp_out"]
SIZES = [56, 72, 12]  # shifted windows, padded ones, windows that shrink


def tiny(size: int = 56) -> SwinTransformerV2:
    torch.manual_seed(0)
    options: dict = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 0}
    swin = SwinTransformerV2(size, window_size=7, **options)
    randomise(swin)
    return swin.eval().double()


def build(name: str, options: dict, size: int = 56, nonzero: bool = True) -> VideoModel:
    config = METHODS[name].Config.model_validate(options)
    torch.manual_seed(0)
    model = build_method(name, tiny(size), CLASSES, T, config).double().eval()
    nn.init.normal_(model.head.weight)
    if nonzero:
        for parameter in model.adapter_state().values():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def clip(size: int = 56) -> torch.Tensor:
    return torch.randn(2, 3, T, size, size, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "options"),
    [("linear_probe", {}), ("aim", {}), ("zeroi2v", {"head_offsets": [0]})],
)
def test_starts_with_the_features_of_the_image_model(name: str, options: dict, size: int) -> None:
    model = build(name, options, size, nonzero=False)
    still = clip(size)[:, :, [0, 0, 2, 2]]
    frames = still[:, :, ::2].transpose(1, 2).flatten(0, 1)
    zoos = tiny(size)
    feature = zoos.forward_head(zoos.forward_features(frames), pre_logits=True)
    feature = feature.unflatten(0, (2, -1)).mean(1)
    torch.testing.assert_close(model(still), model.head(feature), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "adapters", [["attn_in", "attn_out", "mlp_in", "mlp_out"], EVERY_PLACE], ids=len
)
def test_merging_is_exact(size: int, adapters: list[str]) -> None:
    model = build("zeroi2v", {"adapters": adapters, "head_offsets": [-1, 1]}, size)
    merged, video = model.merge(), clip(size)
    torch.testing.assert_close(merged(video), model(video), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(merged.merge()(video), merged(video), atol=0, rtol=0)
    again = build_method("zeroi2v", tiny(size), CLASSES, T, merged.config)
    assert set(again.state_dict()) == set(merged.state_dict())


@pytest.mark.parametrize("name", ["aim", "zeroi2v"])
def test_sees_the_order_of_frames(name: str) -> None:
    model, video = build(name, {}), clip()
    assert (model(video) - model(video[:, :, [2, 3, 0, 1]])).abs().max() > 1e-4


def test_attention_over_time_written_out() -> None:
    """Cosine attention with the head's temperature; the temporal table stands for the windows' bias."""
    block = build("aim", {}).blocks[0]
    attn, x, table = block.attn, torch.randn(2 * 3, 2, 2, 16).double(), torch.randn(5, 2).double()
    out = block.attention_in_time(x, 3, table)
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    q, k, v = nn.functional.linear(x[3:, 1, 0], attn.qkv.weight, bias).chunk(3, dim=-1)
    heads = []
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        cosine = nn.functional.cosine_similarity(q[:, None, own], k[None, :, own], dim=-1)
        scores = cosine * attn.logit_scale[head].exp().clamp(max=100)
        for i in range(3):
            for j in range(3):
                scores[i, j] += table[i - j + 2, head]
        heads.append(scores.softmax(-1) @ v[:, own])
    torch.testing.assert_close(out[3:, 1, 0], attn.proj(torch.cat(heads, dim=-1)))


@pytest.mark.parametrize("kind", [SwinTransformer, SwinTransformerV2])
def test_a_swin_with_another_feature_is_refused(kind: type[nn.Module]) -> None:
    options: dict = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4), "num_classes": 0}
    with pytest.raises(VidpipeError, match="pools its patches by max, not by their mean"):
        copied_backbone(kind(56, window_size=7, global_pool="max", **options), None)
    swin = kind(56, window_size=7, **options)

    class Odd(type(swin.layers[0].blocks[0])):  # type: ignore[misc]
        pass

    other = copy.deepcopy(swin)
    other.layers[0].blocks[0].__class__ = Odd
    with pytest.raises(VidpipeError, match="has Odd, which no method can adapt yet"):
        copied_backbone(other, None)


def test_methods_without_a_published_form_are_refused() -> None:
    with pytest.raises(VidpipeError, match="method st_adapter has no Swin form"):
        build("st_adapter", {})
