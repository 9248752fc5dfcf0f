"""The rivals that keep the gradient out of the backbone: what they compute, against loops and torch's
own attention, and what they cost."""

from __future__ import annotations

from typing import Any, cast

import pytest
import timm
import torch
from tiny import randomise, tiny_vit
from torch import Tensor, nn
from trainings import make, trainer

from vidpipe.errors import VidpipeError
from vidpipe.explain.attention import attention_maps
from vidpipe.methods.attentive_probe import AttentiveProbe
from vidpipe.methods.patch_drop import PatchDrop
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.methods.side4video import Side4Video, shift_halves
from vidpipe.profile import cost, saved_by_block

T, CLASSES = 4, 7
NAMES = ("attentive_probe", "side4video")


def build(name: str, vit: dict | None = None, num_frames: int = T, **options: object) -> Any:
    torch.manual_seed(0)
    if name == "side4video":
        options = {"side_width": 128, **options}  # two heads
    config = METHODS[name].Config.model_validate(options)
    model = build_method(name, tiny_vit(**(vit or {})), CLASSES, num_frames, config)
    randomise(model)
    return model.eval()


def clip(frames: int = T, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 3, frames, 32, 32, generator=generator)


def attention(qkv: tuple[Tensor, Tensor], out: nn.Linear | None, heads: int) -> Any:
    """torch's own multi-head attention of a joint weight and bias of q, k and v; `out` None: none."""
    width = qkv[0].shape[1]
    own = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    own.in_proj_weight.data, own.in_proj_bias.data = qkv
    if out is None:
        own.out_proj.weight.data, own.out_proj.bias.data = torch.eye(width), torch.zeros(width)
    else:
        own.out_proj.load_state_dict(out.state_dict())
    return own


@pytest.mark.parametrize("name", NAMES)
def test_no_graph_is_kept_through_the_backbone(name: str) -> None:
    model, seen = build(name).train(), []
    for block in model.vit.blocks:
        block.register_forward_hook(lambda m, i, o: seen.append(o))
        block.mlp.register_forward_hook(lambda m, i, o: seen.append(o))
    model(clip()).square().mean().backward()
    assert seen
    assert not any(tokens.requires_grad for tokens in seen)
    assert all(p.grad is None for p in model.vit.parameters())
    own = {n: p for n, p in model.named_parameters() if n in model.trained_names}
    assert [n for n, p in own.items() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", NAMES)
def test_they_learn_the_order_of_frames(name: str) -> None:
    """Moving left or right: both have the same frames, so that half of them is chance."""
    options = {"side_width": 32} if name == "side4video" else {}
    model = make(name, lr=3e-3, **options)
    history = trainer(model, size=32, epochs=16).run()
    assert history[-1].val_top1 is not None
    assert history[-1].val_top1 > 0.9


# -- attentive probe ----------------------------------------------------------------------------


@torch.no_grad()
def test_the_probe_is_a_transformer_on_all_tokens_with_their_frame() -> None:
    model = cast(AttentiveProbe, build("attentive_probe", {"reg_tokens": 2}))
    frames = clip().transpose(1, 2).flatten(0, 1)
    x = model.vit.forward_features(frames).unflatten(0, (-1, T))
    x = x + model.temporal_embedding.weight[0, :, None]
    x = x.flatten(1, 2)
    assert x.shape == (2, T * (3 + 16), 48)
    for block in cast(Any, model.probe):
        joint = (block.attn.qkv.weight, block.attn.qkv.bias)
        n = block.norm1(x)
        x = x + attention(joint, block.attn.proj, 4)(n, n, n)[0]
        x = x + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(x))))
    cross: Any = model.cross
    joint = tuple(
        torch.cat([getattr(layer, part) for layer in (cross.q, cross.kv)])
        for part in ("weight", "bias")
    )
    n, q = cross.norm1(x), model.query.expand(2, -1, -1)
    q = q + attention(cast(Any, joint), None, 4)(q, n, n)[0]
    q = q + cross.mlp.fc2(nn.functional.gelu(cross.mlp.fc1(cross.norm2(q))))
    torch.testing.assert_close(model(clip()), model.head(q[:, 0]), atol=1e-4, rtol=1e-4)


def test_probe_parameters_on_vit_b16() -> None:
    """The closed form: three blocks of 12 D^2, a query's of 11 D^2. V-JEPA 2 prints none."""
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0)
        model = build_method("attentive_probe", vit, 400, 8, METHODS["attentive_probe"].Config())
        found = cost(model, 224)
    d = 768
    blocks = 3 * (12 * d * d + 13 * d) + (11 * d * d + 12 * d)
    assert found.tunable_without_head == blocks + d + 8 * d == found.new_at_inference
    assert round(found.tunable / 1e6, 2) == 28.08


# -- Side4Video ---------------------------------------------------------------------------------


@torch.no_grad()
def test_the_class_token_is_shifted_by_halves() -> None:
    x = torch.randn(2 * T, 1, 6)
    found = shift_halves(x, T).view(2, T, 6)
    own = x.view(2, T, 6)
    for t in range(T):
        after = own[:, t + 1, :3] if t + 1 < T else torch.zeros(2, 3)
        before = own[:, t - 1, 3:] if t > 0 else torch.zeros(2, 3)
        assert torch.equal(found[:, t], torch.cat([after, before], dim=1))


def naive_side(model: Side4Video, video: Tensor, kept: list[int] | None = None) -> Tensor:
    """Logits of one clip (3, T, H, W), frame by frame and tap by tap."""
    parts: Any = model
    weight, bias, patch = parts.stem.weight, parts.stem.bias, 8
    num_frames = video.shape[1]
    places = [(r, c) for r in range(4) for c in range(4)]
    s = torch.zeros(num_frames, 16, len(bias))
    for t in range(num_frames):
        for i, (r, c) in enumerate(places):
            s[t, i] = bias
            for tap in range(3):
                if 0 <= t + tap - 1 < num_frames:
                    rows, columns = slice(patch * r, patch * r + 8), slice(patch * c, patch * c + 8)
                    piece = video[:, t + tap - 1, rows, columns]
                    s[t, i] += (weight[:, :, tap] * piece).sum((1, 2, 3))
    s, position = parts.stem_norm(s), parts.position
    x = parts.vit.norm_pre(parts.view.embed(video.transpose(0, 1)))
    prefix = parts.view.num_prefix_tokens
    if kept is not None:
        s, position = s[:, kept], position[kept]
        x = torch.cat([x[:, :prefix], x[:, prefix:][:, kept]], dim=1)
    half = s.shape[-1] // 2
    for block, side in zip(parts.vit.blocks, parts.side, strict=True):
        x = block(x)
        read = side.read(side.read_norm(x))
        s = (s + read[:, prefix:]) / 2
        y, mixed = side.temporal.fc1(side.norm1(s)), torch.zeros_like(s)
        for t in range(num_frames):
            mixed[t] = side.temporal.conv.bias
            for tap in range(3):
                if 0 <= t + tap - 1 < num_frames:
                    mixed[t] += side.temporal.conv.weight[:, 0, tap] * y[t + tap - 1]
        s = s + side.temporal.fc2(mixed)
        token = torch.zeros(num_frames, 1, s.shape[-1])
        token[:-1, 0, :half], token[1:, 0, half:] = read[1:, 0, :half], read[:-1, 0, half:]
        keys = side.norm2(torch.cat([token, s + position], dim=1))
        own = attention((side.qkv.weight, side.qkv.bias), side.out, max(1, s.shape[-1] // 64))
        s = s + own(keys[:, 1:], keys, keys)[0]
        s = s + side.fc2(nn.functional.gelu(side.fc1(side.norm3(s))))
    return parts.head(parts.norm(s).mean((0, 1)))


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 2])
def test_the_side_network_against_loops(registers: int) -> None:
    model = build("side4video", {"reg_tokens": registers})
    expected = torch.stack([naive_side(model, video) for video in clip()])
    assert expected.std() > 0.1
    torch.testing.assert_close(model(clip()), expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_the_side_network_has_the_patches_that_stay() -> None:
    model = build("side4video").train()
    model.patch_drop, model.clip_keys.now = PatchDrop(0.5), torch.tensor([7, 8])
    video = clip()
    kept = model.patch_drop(video, (4, 4), model.clip_keys.now).tolist()
    assert kept[0] != kept[1]
    expected = [naive_side(model, own, places) for own, places in zip(video, kept, strict=True)]
    torch.testing.assert_close(model(video), torch.stack(expected), atol=1e-3, rtol=1e-4)


def test_side_network_on_vit_b16() -> None:
    """The closed form of the released code's layers at a width of 320, of which LayerNorm has the
    parameters of the BatchNorm that it stands for."""
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0)
        model = build_method("side4video", vit, 400, 8, METHODS["side4video"].Config())
        plain = build_method("linear_probe", vit, 400, 8, METHODS["linear_probe"].Config())
        found = cost(model, 224)
        extra = 3 * (found.gmacs - cost(plain, 224).gmacs)
    d, w, patches = 768, 320, 196
    read, conv, norms = 2 * d + d * w + w, 2 * (w * w + w) + 3 * w + w, 3 * 2 * w
    own = read + conv + norms + (4 * w * w + 4 * w) + (8 * w * w + 5 * w)
    stem = 3 * 3 * 16 * 16 * w + w
    assert found.tunable_without_head == 12 * own + stem + patches * w + 2 * 2 * w
    assert round(found.tunable / 1e6, 1) == 21.2
    assert 100 < extra < 115  # GFLOPs of three views beyond the image model's 422


def test_a_recomputed_step_keeps_what_it_reads_and_no_more() -> None:
    """4.6 MiB of the frozen block and 1.9 of its own, of which ST-Adapter's block keeps 46."""
    vit = timm.create_model("vit_base_patch16_224", num_classes=0, depth=2)
    model = build_method("side4video", vit, 5, 8, METHODS["side4video"].Config())
    saved = saved_by_block(model, 224, "cpu")
    assert saved.inputs[1] == 8 * 4 * (197 * 768 + 196 * 320)
    assert 25 < saved.blocks[1] / 2**20 < 45


def test_a_side_network_of_broken_heads_is_refused() -> None:
    with pytest.raises(VidpipeError, match="side_width: 100, expected a multiple of 64"):
        build("side4video", side_width=100)


def test_its_attention_is_not_taken_for_that_of_a_block() -> None:
    """Even where there are as many frames as patches, which look like attention over time."""
    side = build("side4video", num_frames=16)
    probe = build_method("linear_probe", side.vit, CLASSES, 16, METHODS["linear_probe"].Config())
    video = clip(16, 1)
    for index in range(3):
        found, expected = (attention_maps(m.eval(), video, index) for m in (side, probe))
        assert torch.equal(found.heads, expected.heads)
        assert found.over_time is None
