"""EVL: no gradient passes the backbone, and its temporal modules do what the paper says."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from tiny import randomise, tiny_vit
from torch import Tensor, nn

from vidpipe.methods.evl import EVL, DecoderLayer, EVLConfig
from vidpipe.profile import cost

T, GRID, CLASSES = 4, (3, 4), 7


def build(nonzero: bool = True, vit: dict | None = None, **options: object) -> EVL:
    """On a grid that is not square, so that rows and columns cannot be taken for each other."""
    config = EVLConfig.model_validate({"num_layers": 2, "mlp_dropout": 0.0, **options})
    model = EVL(tiny_vit(img_size=(24, 32), **(vit or {})), CLASSES, T, config)
    if nonzero:
        randomise(model)
    return model.eval()


def clip() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(2, 3, T, 24, 32)


@pytest.mark.parametrize("cross", [True, False])
def test_no_graph_is_kept_through_the_backbone(cross: bool) -> None:
    """Even where someone unfreezes it, and asks for the gradient of the pixels."""
    model = build(temporal_cross_attention=cross).train()
    model.vit.requires_grad_(True)
    video = clip().requires_grad_()
    seen = list(model.features(video))
    assert len(seen) == 2
    tensors = [t for features in seen for t in features if t is not None]
    assert len(tensors) == (6 if cross else 2)
    assert not any(t.requires_grad for t in tensors)
    model(video).square().mean().backward()
    assert video.grad is None
    assert all(p.grad is None for p in model.vit.parameters())
    own = {n: p for n, p in model.named_parameters() if not n.startswith("vit.")}
    assert [n for n, p in own.items() if p.grad is None] == []
    # A key's bias moves all scores of a query alike, so its gradient is zero.
    assert [n for n, p in own.items() if not p.grad.any() and "attn.k.bias" not in n] == []


@pytest.mark.parametrize("vit", [{}, {"reg_tokens": 2}, {"qk_norm": True}], ids=str)
def test_reads_the_outputs_of_the_last_blocks_before_the_final_norm(vit: dict) -> None:
    model = build(vit=vit)
    frames = clip().transpose(1, 2).flatten(0, 1)
    _, expected = model.vit.forward_intermediates(frames, indices=[1, 2], output_fmt="NLC")
    prefix = model.vit.num_prefix_tokens
    for features, patches in zip(model.features(clip()), expected, strict=True):
        torch.testing.assert_close(features.tokens[:, prefix:], patches, atol=1e-5, rtol=1e-5)


def naive_maps(model: EVL, x: Tensor, index: int) -> dict[int, Tensor]:
    """{-1: backward, 1: forward}, patch by patch, from the tokens x (T, N, D) entering a block."""
    block = cast(Any, model.blocks[index])
    heads, prefix = block.attn.num_heads, model.vit.num_prefix_tokens
    q, k, _ = block.attn.qkv(block.norm1(x))[:, prefix:].chunk(3, dim=-1)
    width = q.shape[-1] // heads
    maps = {}
    for dt in (-1, 1):
        pairs = [(t, t + dt) for t in range(T) if 0 <= t + dt < T]
        maps[dt] = torch.zeros(len(pairs), q.shape[1], q.shape[1])
        for i, (here, there) in enumerate(pairs):
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                for a, query in enumerate(q[here, :, part]):
                    scores = torch.stack([query @ key for key in k[there, :, part]])
                    maps[dt][i, a] += (scores / width**0.5).softmax(0) / heads
    return maps


def test_attention_maps_are_those_of_the_frozen_block_between_adjacent_frames() -> None:
    model = build()
    seen = list(model.features(clip()))
    maps = naive_maps(model, seen[0].tokens[T:], 2)  # of the second clip
    torch.testing.assert_close(seen[1].backward[1], maps[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[1].forward[1], maps[1], atol=1e-5, rtol=1e-5)


def naive_temporal(layer: DecoderLayer, features: Any, b: int) -> Tensor:
    """The tokens (T, N, D) of clip b with the temporal modules applied, in loops."""
    x = features.tokens[b * T : (b + 1) * T]
    y = x.clone()
    conv = layer.temporal_conv.conv
    for t in range(T):
        y[t] += conv.bias + layer.temporal_embedding.weight[0, t]
        for tap in range(3):
            if 0 <= t + tap - 1 < T:
                y[t] += conv.weight[:, 0, tap] * x[t + tap - 1]
    height, columns = GRID
    places = [(r, c) for r in range(height) for c in range(columns)]
    cross = layer.cross_frame
    for maps, table, first in (
        (features.backward[b], cross.backward_table, 1),
        (features.forward[b], cross.forward_table, 0),
    ):
        weights = table.view(2 * height - 1, 2 * columns - 1, -1)
        for i in range(T - 1):
            for a, (r, c) in enumerate(places):
                for o, (r2, c2) in enumerate(places):
                    offset = weights[r2 - r + height - 1, c2 - c + columns - 1]
                    y[first + i, 1 + a] += maps[i, a, o] * offset
    return y


@torch.no_grad()
def test_temporal_modules_against_loops() -> None:
    model = build()
    for layer, features in zip(model.decoder, model.features(clip()), strict=True):
        y = cast(DecoderLayer, layer).temporal(features, T, 1).unflatten(0, (2, T))
        for b in range(2):
            expected = naive_temporal(cast(DecoderLayer, layer), features, b)
            torch.testing.assert_close(y[b], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_temporal_modules_start_as_identity() -> None:
    model = build(nonzero=False)
    for layer, features in zip(model.decoder, model.features(clip()), strict=True):
        assert torch.equal(cast(DecoderLayer, layer).temporal(features, T, 1), features.tokens)


@torch.no_grad()
def test_decoder_is_a_transformer_decoder_of_one_query() -> None:
    """Against torch's own multi-head attention, with our weights."""
    model = build()
    q = model.class_token.expand(2, -1, -1)
    for module, features in zip(model.decoder, model.features(clip()), strict=True):
        layer = cast(DecoderLayer, module)
        attention = nn.MultiheadAttention(48, 4, batch_first=True).eval()
        ours = layer.attn
        attention.in_proj_weight.copy_(torch.cat([m.weight for m in (ours.q, ours.k, ours.v)]))
        attention.in_proj_bias.copy_(torch.cat([m.bias for m in (ours.q, ours.k, ours.v)]))
        attention.out_proj.load_state_dict(ours.out.state_dict())
        y = layer.norm3(layer.temporal(features, T, 1)).unflatten(0, (2, T)).flatten(1, 2)
        q = q + attention(layer.norm1(q), y, y)[0]
        hidden = nn.functional.gelu(layer.mlp[0](layer.norm2(q)))
        q = q + layer.mlp[3](hidden)
    torch.testing.assert_close(model(clip()), model.head(model.norm(q[:, 0])), atol=1e-4, rtol=1e-4)


def test_decoder_has_the_activation_of_the_backbone() -> None:
    from timm.layers import QuickGELU

    model = build(vit={"act_layer": QuickGELU})
    assert all(isinstance(cast(DecoderLayer, m).mlp[1], QuickGELU) for m in model.decoder)


@pytest.mark.parametrize(
    ("options", "million", "gmacs"),
    [({}, 33.18, 454), ({"temporal_cross_attention": False}, 28.70, 444)],
)
def test_cost_on_vit_b16(options: dict, million: float, gmacs: int) -> None:
    """ZeroI2V quotes 454 GFLOPs (3 views) and 29 M for K400; no one model has both."""
    import timm

    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0)
        counted = cost(EVL(vit, 400, 8, EVLConfig.model_validate(options)), 224)
    assert round(counted.tunable / 1e6, 2) == million
    assert int(3 * counted.gmacs) == gmacs
