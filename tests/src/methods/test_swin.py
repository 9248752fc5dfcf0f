"""Methods on a Swin: the promises of test_methods.py, and equality with timm's own forward."""

from __future__ import annotations

import copy

import pytest
import torch
from swins import CLASSES, SIZE, T, build, clip, tiny_swin
from timm.models import SwinTransformer

from vidpipe.backbones.swin import WindowView, with_tubelets
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS, SWIN_METHODS, VideoModel, build_method
from vidpipe.profile import cost, gmacs, parameters

MATRIX = [
    ("linear_probe", {}),
    ("aim", {}),
    ("aim", {"scale": 1.0, "bottleneck_ratio": 0.5}),
    ("zeroi2v", {}),
    ("zeroi2v", {"head_offsets": [[-1], [1, -2, 2]], "scale": 0.5}),
    ("zeroi2v", {"head_offsets": [-1, 1], "adapters": ["attn_in", "attn_out", "mlp_in"]}),
    (
        "zeroi2v",
        {"adapters": ["attn_in_q", "attn_in_k", "attn_in_v", "attn_out", "mlp_in", "mlp_out"]},
    ),
]
every = pytest.mark.parametrize(
    ("name", "options"), MATRIX, ids=[f"{name}-{i}" for i, (name, _) in enumerate(MATRIX)]
)
# Grids of 14 and 7: shifted windows, then one window. 18 and 9: padded. 3 and 2: windows shrink.
SIZES = [56, 72, 12]


def difference(model: VideoModel, order: list[int]) -> float:
    return (model(clip()) - model(clip()[:, :, order])).abs().max().item()


def test_every_swin_form_is_in_the_matrix() -> None:
    assert {name for name, _ in MATRIX} == set(SWIN_METHODS)
    for name, method in SWIN_METHODS.items():
        assert method.Config is METHODS[name].Config
        assert method.order_blind == METHODS[name].order_blind


@every
def test_only_the_declared_parameters_move(name: str, options: dict) -> None:
    model = build(name, options).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(clip()).square().mean().backward()
    optimizer.step()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    expected = {
        "linear_probe": {"head"},
        "aim": {"head", "adapters"},
        "zeroi2v": {"head", "adapters", "temporal_embedding", "vit"},
    }
    assert {key.split(".")[0] for key in trained} == expected[name]
    assert {key for key in trained if key.startswith("vit.")} <= {
        "vit.norm.weight",
        "vit.norm.bias",
    }
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key not in trained), key


@every
def test_sees_the_order_of_frames_or_is_declared_blind(name: str, options: dict) -> None:
    model = build(name, options)
    assert (difference(model, [3, 2, 1, 0]) < 1e-5) == model.order_blind
    assert (difference(model, [2, 3, 0, 1]) < 1e-5) == model.order_blind


def test_aim_starts_blind_to_the_order() -> None:
    """Its patches give both frames of a pair the same weight, and its adapters start at zero."""
    model = build("aim", {}, nonzero=False)
    for order in ([1, 0, 2, 3], [2, 3, 0, 1]):
        assert difference(model, order) < 1e-5
    assert difference(model, [0, 2, 1, 3]) > 1e-3  # other pairs
    assert difference(build("zeroi2v", {}, nonzero=False), [2, 3, 0, 1]) > 1e-4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear_probe", {}),
        ("zeroi2v", {"head_offsets": [0], "adapters": []}),
        ("zeroi2v", {"head_offsets": [0]}),
        ("aim", {}),
    ],
    ids=["linear_probe", "zeroi2v-merged", "zeroi2v", "aim"],
)
def test_starts_with_the_features_of_the_image_model(name: str, options: dict, size: int) -> None:
    model = build(name, options, nonzero=False, size=size)
    if name != "linear_probe":  # of two equal frames a pair is one image
        still = clip(size=size)[:, :, [0, 0, 2, 2]]
        frames = still[:, :, ::2]
    else:
        still = frames = clip(size=size)
    features = tiny_swin(size).forward_features(frames.transpose(1, 2).flatten(0, 1))
    feature = features.mean((1, 2)).unflatten(0, (2, -1)).mean(1)
    torch.testing.assert_close(model(still), model.head(feature), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_shifted_heads_take_the_same_window_of_another_frame(size: int) -> None:
    """All heads of pair 0 from pair 1: equal to blocks that are told so by hand."""
    options = {"head_offsets": [[1, 1], [1, 1, 1, 1]], "adapters": []}
    swin = tiny_swin(size)
    config = METHODS["zeroi2v"].Config.model_validate(options)
    model = build_method("zeroi2v", swin, CLASSES, 4, config).eval()
    video = clip(1, 2, size)
    x = swin.patch_embed(video[0].transpose(0, 1))
    for stage in swin.layers:
        x = stage.downsample(x)
        for block in stage.blocks:
            # A qkv that sees (own | next frame) lets timm's own attention do the shift.
            own, twin = block.norm1(x), copy.deepcopy(block)
            both = torch.cat([own, own[[1, 1]]], dim=-1)
            c = block.dim
            wide = torch.nn.Linear(2 * c, 3 * c)
            wide.weight.data.zero_()
            wide.weight.data[:c, :c] = block.attn.qkv.weight[:c]
            wide.weight.data[c:, c:] = block.attn.qkv.weight[c:]
            wide.bias.data = block.attn.qkv.bias.detach()
            twin.attn.qkv = wide
            x = x + _attention_of_wide_tokens(twin, both)
            x = x + block.mlp(block.norm2(x))
    expected = model.head(swin.norm(x).mean((0, 1, 2)))
    torch.testing.assert_close(
        model(video.repeat_interleave(2, dim=2))[0], expected, atol=1e-5, rtol=1e-5
    )


def _attention_of_wide_tokens(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """timm's window attention, whose input here is wider than its output, window by window."""
    _, height, width, _ = x.shape
    (rows, columns), (down, right) = block.window_size, block.shift_size
    rolled = torch.roll(x, (-down, -right), (1, 2))
    padded = torch.zeros(2, height + -height % rows, width + -width % columns, x.shape[-1])
    padded[:, :height, :width] = rolled
    out = torch.zeros(*padded.shape[:3], block.dim)
    index = 0
    for top in range(0, padded.shape[1], rows):
        for left in range(0, padded.shape[2], columns):
            window = padded[:, top : top + rows, left : left + columns].flatten(1, 2)
            mask = None if block.attn_mask is None else block.attn_mask[index : index + 1]
            done = _attend(block.attn, window, mask)
            out[:, top : top + rows, left : left + columns] = done.unflatten(1, (rows, columns))
            index += 1
    return torch.roll(out[:, :height, :width], (down, right), (1, 2))


def _attend(attn: torch.nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q * attn.scale) @ k.transpose(-2, -1) + attn._get_rel_pos_bias()
    weights = weights if mask is None else weights + mask
    return attn.proj((weights.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_default_offsets_are_the_papers_on_swin_b() -> None:
    from vidpipe.methods.zeroi2v_swin import _per_stage

    four = (1, -1, 2, -2)
    assert _per_stage(None, [4, 8, 16, 32]) == [(1,), (1, -1), four, four + four]
    assert _per_stage(None, [3, 6]) == [(1,), (1,)]


def test_temporal_attention_written_out() -> None:
    """Position by position and frame by frame, with row i - j + T - 1 of the bias table."""
    block = WindowView(tiny_swin().layers[0].blocks[0])
    attn = block.attn
    x, table = torch.randn(2 * 3, 2, 2, 16), torch.randn(5, 2)
    out = block.attention_in_time(x, 3, table)
    q, k, v = attn.qkv(x[3:, 1, 0]).chunk(3, dim=-1)  # clip 1, position (1, 0)
    heads = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        weights = q[:, part] @ k[:, part].T * 8**-0.5
        for i in range(3):
            for j in range(3):
                weights[i, j] += table[i - j + 2, head]
        heads.append(weights.softmax(-1) @ v[:, part])
    torch.testing.assert_close(out[3:, 1, 0], attn.proj(torch.cat(heads, dim=-1)))


@every
def test_a_clip_does_not_depend_on_its_batch(name: str, options: dict) -> None:
    model = build(name, options)
    torch.testing.assert_close(model(clip(3))[1:2], model(clip(3)[1:2]), atol=1e-5, rtol=1e-5)


@every
def test_adapter_state_rebuilds_the_model(name: str, options: dict) -> None:
    model = build(name, options)
    other = build(name, options, nonzero=False, seed=5)
    assert not torch.equal(model(clip()), other(clip()))
    other.load_adapter_state(model.adapter_state(), "test")
    assert torch.equal(model(clip()), other(clip()))


def test_aims_frozen_random_bias_travels_with_the_adapters() -> None:
    model = build("aim", {}, nonzero=False)
    tables = {n: p for n, p in model.named_parameters() if n.startswith("temporal_bias")}
    assert set(tables) == {"temporal_bias.0", "temporal_bias.2"}  # the unshifted blocks
    assert all(p.shape[0] == T - 1 and not p.requires_grad for p in tables.values())
    assert all(bool((p != 0).all()) and p.abs().max() < 0.2 for p in tables.values())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(model.adapter_state()) == trained | set(tables)


def test_aim_leaves_the_given_swin_an_image_model() -> None:
    swin = tiny_swin()
    before = set(swin.state_dict())
    tubelets = with_tubelets(swin)
    assert set(tubelets.state_dict()) == before
    assert tubelets.patch_embed.proj.weight.shape == (16, 3, 2, 4, 4)
    assert swin.patch_embed.proj.weight.shape == (16, 3, 4, 4)
    assert tubelets.layers[0] is swin.layers[0]
    assert parameters(tubelets) == parameters(swin) + swin.patch_embed.proj.weight.numel()


@every
def test_merge_is_exact_idempotent_or_refused(name: str, options: dict) -> None:
    model = build(name, options).double()
    if model.not_mergeable is not None:
        with pytest.raises(VidpipeError, match=f"{name} cannot be merged: "):
            model.merge()
        return
    x = clip().double()
    merged = model.merge()
    torch.testing.assert_close(merged(x), model(x), atol=1e-10, rtol=1e-10)
    assert type(merged) is type(model)
    assert merged.config.adapters == ()
    assert not [key for key in merged.state_dict() if "adapters" in key]
    assert parameters(merged.vit) == parameters(model.vit)
    torch.testing.assert_close(merged.merge()(x), merged(x), atol=0, rtol=0)
    single = model.float()
    torch.testing.assert_close(single.merge()(clip()), single(clip()), atol=1e-5, rtol=1e-5)


@every
def test_cost_counts_parameters(name: str, options: dict) -> None:
    model = build(name, options)
    counted = cost(model, SIZE)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert counted.tunable == sum(p.numel() for p in trained)
    assert counted.tunable - counted.tunable_without_head == (32 + 1) * CLASSES
    assert counted.gmacs > 0
    if name == "zeroi2v":
        assert counted.new_at_inference == T // 2 * 16  # the temporal embedding alone


def test_papers_cost_on_swin_b() -> None:
    """AIM's 9.17 M tunable; a frame of Swin-B is 15.4 G. The paper counts no LayerNorms."""
    import timm

    with torch.device("meta"):
        swin = timm.create_model("swin_base_patch4_window7_224", num_classes=0)
        model = build_method("aim", swin, 400, 32, METHODS["aim"].Config())
        counted = cost(model, 224)
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.__class__ = _NotCounted
        without_norms = gmacs(model, 224)
    assert round(counted.tunable / 1e6, 3) == 9.172
    assert round(counted.total / 1e6, 3) == 95.927
    assert round(without_norms, 2) == 312.11


class _NotCounted(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "st_adapter",
            {},
            "method st_adapter has no Swin form; Swin forms: linear_probe, aim, zero",
        ),
        ("aim", {"num_temporal_adapters": 2}, "num_temporal_adapters: 2, but"),
        ("zeroi2v", {"channel_offsets": [[16, 1]]}, "channel_offsets: for ViTs"),
        ("zeroi2v", {"head_offsets": [1, 1, 1]}, "3 offsets for 2 heads"),
        ("zeroi2v", {"head_offsets": [[1]]}, "1 lists for 2 stages"),
    ],
)
def test_options_that_do_not_fit_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(VidpipeError, match=message):
        build(name, options)


def test_clips_that_do_not_fit_are_refused() -> None:
    with pytest.raises(VidpipeError, match="num_frames: 3, but aim on a Swin pairs frames"):
        build_method("aim", tiny_swin(), CLASSES, 3, METHODS["aim"].Config())
    for name in ("aim", "zeroi2v"):
        with pytest.raises(VidpipeError, match="clip has 6 frames"):
            build(name, {})(clip(frames=6))
        with pytest.raises(VidpipeError, match=r"clip has \(60, 60\) pixels.*\(56, 56\)"):
            build(name, {})(clip(size=60))
    assert build("linear_probe", {})(clip(frames=7)).shape == (2, CLASSES)
    anything = SwinTransformer(56, depths=(1,), num_heads=(1,), strict_img_size=False)
    with pytest.raises(VidpipeError, match="must be for one image size"):
        build_method("zeroi2v", anything, CLASSES, T, METHODS["zeroi2v"].Config())
