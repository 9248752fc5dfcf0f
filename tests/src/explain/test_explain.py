"""Explanations: maps against softmaxes by hand of the model's own queries and keys; Grad-CAM by hand."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matrix import every
from swins import build as build_on_swin
from tiny import randomise, tiny_vit
from torch import Tensor, nn

from vidpipe.backbones.ops import shift_frames
from vidpipe.errors import VidpipeError
from vidpipe.explain import attention_maps, grad_cam
from vidpipe.explain.attention import AttentionMaps
from vidpipe.methods.registry import METHODS, VideoModel, build_method

T, GRID, CLASSES, HEADS = 4, (3, 4), 5, 4
PATCHES = GRID[0] * GRID[1]


def build(name: str, options: dict | None = None, vit: dict | None = None) -> VideoModel:
    """On a grid that is not square, so that rows and columns cannot be taken for each other."""
    config = METHODS[name].Config.model_validate(options or {})
    backbone = tiny_vit(**{"img_size": (24, 32), **(vit or {})})
    model = build_method(name, backbone, CLASSES, T, config)
    randomise(model, seed=2)
    return model.eval()


def clip(seed: int = 3) -> Tensor:
    return torch.randn(1, 3, T, 24, 32, generator=torch.Generator().manual_seed(seed))


def outputs(model: VideoModel, layer: nn.Module, video: Tensor | None = None) -> list[Tensor]:
    """Of every call of `layer` in one forward, for all tokens of the last block too."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, y: seen.append(y.detach()))
    model.every_token = True
    with torch.no_grad():
        model(clip() if video is None else video)
    model.every_token = False
    handle.remove()
    return seen


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """q (d,), k (N, d), by the textbook."""
    scores = torch.stack([(q * key).sum() / len(q) ** 0.5 for key in k])
    return scores.exp() / scores.exp().sum()


# -- attention -------------------------------------------------------------------------------


@every
def test_every_method_gives_probabilities_and_its_own_logits(name: str, options: dict) -> None:
    model = build(name, options)
    before = model(clip())[0]
    for block in (-1, 0):
        maps = attention_maps(model, clip(), block)
        assert torch.equal(maps.logits, before)
        assert maps.heads.shape == (T, HEADS, *GRID)
        assert maps.heads.min() >= 0
        total = maps.heads.sum((2, 3)) + maps.elsewhere
        torch.testing.assert_close(total, torch.ones(T, HEADS))
        for rows in (maps.over_time, maps.class_token_over_time()):
            if rows is not None:
                torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
        if maps.clip_query is not None:
            assert (maps.clip_query.sum((1, 2, 3)) < 1).all()
    assert torch.equal(model(clip())[0], before)
    shifted = set(maps.offsets) != {0}
    assert shifted <= (not model.order_blind)


@pytest.mark.parametrize("vit", [{}, {"reg_tokens": 2}], ids=["plain", "registers"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("linear_probe", {}), ("st_adapter", {}), ("aim", {}), ("prompt_tuning", {"num_tokens": 3})],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("block", [-1, 1])
def test_maps_are_the_softmax_of_the_models_own_queries_and_keys(
    name: str, options: dict, vit: dict, block: int
) -> None:
    model = build(name, options, vit)
    maps = attention_maps(model, clip(), block)
    qkv = outputs(model, model.blocks[block].attn.qkv)[-1]  # AIM's last call is over space
    q, k, _ = qkv.unflatten(-1, (3, HEADS, -1)).unbind(2)
    for t in range(T):
        for h in range(HEADS):
            expected = probabilities(q[t, 0, h], k[t, :, h])
            for row in range(GRID[0]):
                for column in range(GRID[1]):
                    patch = -PATCHES + row * GRID[1] + column
                    own = maps.heads[t, h, row, column]
                    torch.testing.assert_close(own, expected[patch], atol=1e-6, rtol=1e-4)
    assert maps.offsets == (0,) * HEADS


@pytest.mark.parametrize("name", ["zeroi2v", "temporal_heads", "lora"])
def test_a_temporal_head_shows_the_keys_of_another_frame(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the unshifted keys, at the frame that `key_frame` says; its own at the clip's ends."""
    offsets = (-1, 2, 1)
    model = build(name, {"head_offsets": offsets})
    maps = attention_maps(model, clip())
    assert maps.offsets == (-1, 2, 1, 0)
    unshifted: list[Tensor] = []
    original = type(model).qkv

    def watched(self: Any, index: int, *rest: Any) -> Any:
        found = original(self, index, *rest)
        if index == len(model.blocks) - 1:
            unshifted.extend(x.detach().unflatten(-1, (HEADS, -1)) for x in found[:2])
        return found

    monkeypatch.setattr(type(model), "qkv", watched)
    model(clip())
    q, k = unshifted
    for t in range(T):
        for h, dt in enumerate(maps.offsets):
            source = t + dt if 0 <= t + dt < T else t
            assert maps.key_frame(t, dt) == source
            expected = probabilities(q[t, 0, h], k[source, :, h])[-PATCHES:].view(GRID)
            torch.testing.assert_close(maps.heads[t, h], expected, atol=1e-6, rtol=1e-4)


def test_key_frames_follow_the_rule_of_the_shift() -> None:
    numbers = torch.arange(float(T)).view(T, 1, 1).expand(T, 2, 7)
    offsets = (-4, -2, -1, 0, 1, 3, 9)
    shifted = shift_frames(numbers, T, tuple((1, dt) for dt in offsets))
    maps = SimpleNamespace(num_frames=T)
    for t in range(T):
        own = [AttentionMaps.key_frame(maps, t, dt) for dt in offsets]  # type: ignore[arg-type]
        assert own == shifted[t, 0].tolist()


def test_permuted_frames_permute_the_maps_of_spatial_heads_only() -> None:
    order = [2, 0, 3, 1]
    for name, options, moved in (
        ("linear_probe", {}, [0, 1, 2, 3]),
        ("zeroi2v", {"head_offsets": [[], [], [-1, 1]]}, [2, 3]),
    ):
        model = build(name, options)
        if name == "zeroi2v":
            nn.init.zeros_(model.temporal_embedding.weight)
        maps, permuted = (attention_maps(model, x) for x in (clip(), clip()[:, :, order]))
        same = [
            h
            for h in range(HEADS)
            if torch.allclose(permuted.heads[:, h], maps.heads[order, h], atol=1e-6)
        ]
        assert same == moved


def test_heads_that_mix_frames_say_so() -> None:
    for name, options in (
        ("zeroi2v", {"shift_ratio": 0.5}),
        ("full_finetune", {"architecture": "shift"}),
    ):
        model = build(name, options)
        assert attention_maps(model, clip()).offsets == (None,) * HEADS
    moved = build("zeroi2v", {"shift_ratio": 0.5, "shifted": "cls"})
    assert attention_maps(moved, clip()).offsets == (0,) * HEADS
    per_block = build("zeroi2v", {"head_offsets": [[-1], [1], [-2, 2]]})
    assert attention_maps(per_block, clip(), 0).offsets == (-1, 0, 0, 0)
    assert attention_maps(per_block, clip(), -1).offsets == (-2, 2, 0, 0)


@pytest.mark.parametrize(
    ("name", "options"), [("aim", {}), ("full_finetune", {"architecture": "divided"})]
)
def test_attention_over_time(name: str, options: dict) -> None:
    model = build(name, options)
    maps = attention_maps(model, clip())
    last = model.blocks[-1].attn if name == "aim" else model.temporal[-1].attn
    qkv = outputs(model, last.qkv)[0]
    q, k, _ = qkv.unflatten(-1, (3, HEADS, -1)).unbind(2)  # (N, T, H, d)
    extra = len(q) - PATCHES
    assert maps.over_time is not None
    assert maps.over_time.shape == (HEADS, len(q), T, T)
    for h, n, t in [(0, 0, 1), (3, 5, 2), (1, PATCHES - 1, 0)]:
        expected = probabilities(q[n, t, h], k[n, :, h])
        torch.testing.assert_close(maps.over_time[h, n, t], expected, atol=1e-6, rtol=1e-4)
    received = maps.from_other_frames()
    assert received is not None
    row, column, s = 2, 1, 3
    a = maps.over_time[:, extra + row * GRID[1] + column].mean(0)
    others = [a[t, s] for t in range(T) if t != s]
    torch.testing.assert_close(received[s, row, column], torch.stack(others).mean())
    assert (maps.class_token_over_time() is None) == (name != "aim")
    if name == "aim":
        torch.testing.assert_close(maps.class_token_over_time(), maps.over_time[:, 0].mean(0))


def test_as_many_frames_as_tokens_are_still_told_apart() -> None:
    """AIM's two attentions then have the same shape; only their order differs."""
    model = build_method("aim", tiny_vit(img_size=16), CLASSES, 5, METHODS["aim"].Config())
    randomise(model, seed=2)
    video = torch.randn(1, 3, 5, 16, 16)
    maps = attention_maps(model.eval(), video)
    assert maps.heads.shape == (5, HEADS, 2, 2)
    seen = outputs(model, model.blocks[-1].attn.qkv, video)
    for found, layer in ((maps.over_time, seen[0]), (None, seen[1])):
        q, k, _ = layer.unflatten(-1, (3, HEADS, -1)).unbind(2)
        expected = probabilities(q[0, 0, 1], k[0, :, 1])
        own = maps.heads[0, 1].flatten() if found is None else found[1, 0, 0]
        expected = expected[1:] if found is None else expected
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["attentional_pooling", "evl"])
def test_the_query_of_a_clip_reads_the_tokens_of_all_frames(name: str) -> None:
    model = build(name, {"num_layers": 2} if name == "evl" else {}, {"reg_tokens": 1})
    pool = model.decoder[-1].attn if name == "evl" else model.pool
    q, k = (outputs(model, layer)[-1].unflatten(-1, (HEADS, -1)) for layer in (pool.q, pool.k))
    found = attention_maps(model, clip()).clip_query
    assert found is not None
    for h in range(HEADS):
        expected = probabilities(q[0, 0, h], k[0, :, h]).view(T, 2 + PATCHES)[:, 2:]
        torch.testing.assert_close(found[h].flatten(1), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["linear_probe", "aim", "attentional_pooling"])
def test_one_frame_has_no_query_of_its_clip(name: str) -> None:
    """The last block's one query must not be taken for a decoder's, nor a decoder's for its."""
    model = build_method(name, tiny_vit(), CLASSES, 1, METHODS[name].Config())
    randomise(model, seed=2)
    video = torch.randn(1, 3, 1, 32, 32)
    maps = attention_maps(model.eval(), video)
    qkv = outputs(model, model.blocks[-1].attn.qkv, video)[-1]
    q, k, _ = qkv.unflatten(-1, (3, HEADS, -1)).unbind(2)
    expected = probabilities(q[0, 0, 1], k[0, :, 1])[1:]
    torch.testing.assert_close(maps.heads[0, 1].flatten(), expected, atol=1e-6, rtol=1e-4)
    assert (maps.clip_query is not None) == (name == "attentional_pooling")


@pytest.mark.parametrize(
    "vit",
    [{"class_token": False}, {"class_token": False, "reg_tokens": 2}, {"class_token": True}],
    ids=["patches only", "registers", "a class token that nothing reads"],
)
def test_where_patches_are_pooled_it_is_the_mean_over_their_queries(vit: dict) -> None:
    model = build("linear_probe", {}, {**vit, "global_pool": "avg"})
    maps = attention_maps(model, clip())
    q, k, _ = outputs(model, model.blocks[-1].attn.qkv)[0].unflatten(-1, (3, HEADS, -1)).unbind(2)
    of_patches = q[1, -PATCHES:, 2]
    expected = torch.stack([probabilities(one, k[1, :, 2]) for one in of_patches]).mean(0)
    torch.testing.assert_close(
        maps.heads[1, 2].flatten(), expected[-PATCHES:], atol=1e-6, rtol=1e-4
    )
    elsewhere = expected[:-PATCHES].sum()
    torch.testing.assert_close(maps.elsewhere[1, 2], elsewhere, atol=1e-6, rtol=1e-4)


def test_what_cannot_be_explained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VidpipeError, match="linear_probe is on a Swin"):
        attention_maps(build_on_swin("linear_probe", {}), torch.zeros(1, 3, T, 56, 56))
    model = build("linear_probe")
    with pytest.raises(VidpipeError, match=r"block 3 is not in this backbone.*0\.\.2"):
        attention_maps(model, clip(), 3)
    with pytest.raises(VidpipeError, match="expected one clip"):
        attention_maps(model, clip().repeat(2, 1, 1, 1, 1))
    evl = build("evl", {"num_layers": 1})
    evl.blocks[0].attend = lambda q, k, v: v  # by other means
    with pytest.raises(VidpipeError, match="saw no attention over patches in block 0 of evl"):
        attention_maps(evl, clip(), 0)
    with pytest.raises(VidpipeError, match="evl runs its backbone without gradients"):
        grad_cam(evl, clip(), 0)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(VidpipeError, match=re.escape("pip install 'vidpipe[explain]'")):
        grad_cam(model, clip(), 0)


# -- Grad-CAM ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in METHODS if name != "evl"])
def test_grad_cam_is_that_of_the_paper(name: str) -> None:
    """By hand: mean gradient of a channel over all patches, times the channel, summed, at least 0."""
    model = build(name)
    before = [t.clone() for t in model.state_dict().values()]
    cams = [grad_cam(model, clip(), target) for target in range(CLASSES)]
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert all(p.grad is None for p in model.parameters())
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, y: Tensor) -> None:
        y.retain_grad()
        seen.append(y)

    handle = model.blocks[-1].norm1.register_forward_hook(keep)
    for target, cam in enumerate(cams):
        seen.clear()
        model(clip().requires_grad_())[0, target].backward()
        tokens, gradient = seen[-1].detach()[:, -PATCHES:], seen[-1].grad[:, -PATCHES:]
        weights = gradient.flatten(0, 1).mean(0)
        expected = (tokens @ weights).clamp(min=0).view(T, *GRID)
        torch.testing.assert_close(cam, expected, atol=1e-6, rtol=1e-3)
    handle.remove()
    assert sum(cam.any() for cam in cams) >= CLASSES - 1
