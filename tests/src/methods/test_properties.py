"""Properties over random options: shifts against a loop, merges, and ViTs of every make."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_vit

from vidpipe.backbones import ops
from vidpipe.backbones.ops import shift_frames, shift_keys_and_values, shift_projection
from vidpipe.methods.registry import METHODS, VideoModel, build_method
from vidpipe.methods.stdha import STDHAConfig, channel_groups

T, CLASSES = 4, 5
ADAPTERS = [
    ("attn_in", "attn_out", "mlp_in", "mlp_out"),
    ("attn_out", "mlp_in"),
    ("mlp_out",),
    ("attn_in_q", "attn_in_v"),
    ("attn_in_k", "attn_out"),
    ("attn_in_q", "attn_in_k", "attn_in_v", "attn_out", "mlp_in", "mlp_out"),
]
offsets = st.lists(st.integers(-5, 5), max_size=4).map(tuple)
scales = st.sampled_from([0.25, 0.5, 1.0, 2.0])


def model_of(name: str, options: dict, **vit: object) -> VideoModel:
    torch.manual_seed(0)
    config = METHODS[name].Config.model_validate(options)
    model = build_method(name, tiny_vit(**vit), CLASSES, T, config)
    for parameter in model.adapter_state().values():
        parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@given(
    groups=st.lists(st.tuples(st.integers(1, 4), st.integers(-6, 6)), min_size=1, max_size=4),
    frames=st.integers(1, 5),
    clips=st.integers(1, 2),
)
def test_shifted_channels_come_from_frame_t_plus_dt(
    groups: list[tuple[int, int]], frames: int, clips: int
) -> None:
    width = sum(channels for channels, _ in groups)
    x = torch.randn(clips * frames, 3, width)
    expected = x.clone()
    for clip in range(clips):
        for t in range(frames):
            first = 0
            for channels, dt in groups:
                source = t + dt if 0 <= t + dt < frames else t  # outside: the frame's own
                part = slice(first, first + channels)
                expected[clip * frames + t, :, part] = x[clip * frames + source, :, part]
                first += channels
    assert torch.equal(shift_frames(x, frames, tuple(groups)), expected)
    projected = torch.cat([x, x, x], dim=-1)  # as qkv lies
    for recorded in (True, False):
        _, k, v = projected.clone().chunk(3, dim=-1)
        with torch.set_grad_enabled(recorded):
            assert torch.equal(shift_projection(k, frames, tuple(groups)), expected)
        assert torch.equal(k, x if recorded else expected)  # in place without a graph only
        assert torch.equal(v, x)


@given(own=st.lists(offsets, min_size=3, max_size=3), ratio=st.none() | st.floats(0.1, 1))
def test_groups_cover_the_width(own: list[tuple[int, ...]], ratio: float | None) -> None:
    config = STDHAConfig(
        head_offsets=tuple(own) if ratio is None else None,
        shift_ratio=ratio,
    )
    groups = channel_groups(config, "test", width=96, heads=4, depth=3)
    assert len(groups) == 3
    assert all(sum(channels for channels, _ in block) == 96 for block in groups)
    if ratio is None:
        moved = [
            tuple(dt for c, dt in block)[: len(o)] for block, o in zip(groups, own, strict=True)
        ]
        assert moved == own


@settings(max_examples=15, deadline=None)
@given(
    adapters=st.sampled_from(ADAPTERS),
    heads=offsets,
    scale=scales,
    ratio=st.sampled_from([0.1, 0.25, 0.5]),
    qkv_bias=st.booleans(),
)
def test_zeroi2v_merges_whatever_its_options(
    adapters: tuple[str, ...], heads: tuple[int, ...], scale: float, ratio: float, qkv_bias: bool
) -> None:
    options = {
        "adapters": adapters,
        "head_offsets": heads,
        "scale": scale,
        "bottleneck_ratio": ratio,
    }
    model = model_of("zeroi2v", options, depth=2, qkv_bias=qkv_bias).double()
    clip = torch.randn(1, 3, T, 32, 32, dtype=torch.double)
    torch.testing.assert_close(model.merge()(clip), model(clip), atol=1e-10, rtol=1e-10)


@settings(max_examples=15, deadline=None)
@given(
    targets=st.sets(st.sampled_from(["q", "k", "v", "o", "up", "down"])).map(sorted).map(tuple),
    heads=offsets,
    scale=scales,
    rank=st.integers(1, 8),
    qkv_bias=st.booleans(),
)
def test_lora_merges_whatever_its_options(
    targets: tuple[str, ...], heads: tuple[int, ...], scale: float, rank: int, qkv_bias: bool
) -> None:
    options = {"targets": targets, "head_offsets": heads, "scale": scale, "rank": rank}
    model = model_of("lora", options, depth=2, qkv_bias=qkv_bias).double()
    clip = torch.randn(1, 3, T, 32, 32, dtype=torch.double)
    torch.testing.assert_close(model.merge()(clip), model(clip), atol=1e-10, rtol=1e-10)


MAKES = {
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "plain": {"init_values": None},
    "clip": {"init_values": None, "pre_norm": True, "qkv_bias": True},
    "qk_norm": {"qk_norm": True},
    "no_class_token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "patch 4": {"patch_size": 4},
}


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_merges_on_every_make_of_vit(name: str, make: str) -> None:
    options: dict = {"num_layers": 2} if name == "evl" else {}
    if name == "temporal_finetune" and make == "no_class_token":
        pytest.skip("divided attention needs a class token, and says so")
    model = model_of(name, options, **MAKES[make]).double()
    clip = torch.randn(2, 3, T, 32, 32, dtype=torch.double)
    logits = model(clip)
    assert logits.shape == (2, CLASSES)
    assert bool(logits.isfinite().all())
    if model.not_mergeable is None:
        torch.testing.assert_close(model.merge()(clip), logits, atol=1e-10, rtol=1e-10)
    if model.trained_names:
        logits.sum().backward()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)


@settings(deadline=None, max_examples=40)
@given(
    clips=st.integers(1, 3),
    frames=st.integers(1, 5),
    tokens=st.integers(1, 4),
    offsets=st.lists(st.tuples(st.integers(1, 3), st.integers(-6, 6)), min_size=1, max_size=4),
    joint=st.sampled_from(["qkv", "kv", "apart"]),
)
def test_keys_and_values_move_alike_gathered_or_in_slices(
    clips: int, frames: int, tokens: int, offsets: list[tuple[int, int]], joint: str
) -> None:
    """To the bit, wherever they lie; the queries beside them stay."""
    groups = tuple((2 * count, dt) for count, dt in offsets)
    width = sum(count for count, _ in groups)
    parts = {"qkv": 3, "kv": 2, "apart": 2}[joint]
    whole = torch.randn(clips * frames, tokens, parts * width)
    *q, k, v = whole.chunk(parts, dim=-1)
    if joint == "apart":
        k, v = k.clone(), v.clone()
    expected = [shift_frames(x, frames, groups) for x in (k, v)]
    before = [x.clone() for x in q]
    with torch.inference_mode():
        found = shift_keys_and_values(k, v, frames, groups)
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, q, before))


@torch.no_grad()
def test_small_keys_are_gathered_and_large_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    own = ops._row_numbers
    monkeypatch.setattr(ops, "_row_numbers", lambda *a: (seen.append(a[0]), own(*a))[1])
    for frames, expected in ((4, [4]), (4096, [])):
        seen.clear()
        _, k, v = torch.randn(frames, 4, 3 * 12).chunk(3, dim=-1)
        shift_keys_and_values(k, v, 4, ((4, -1), (8, 0)))
        assert seen == expected
