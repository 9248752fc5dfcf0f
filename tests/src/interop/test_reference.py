"""Parity with numbers measured on the authors' own model classes (../shared/golden)."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from project import SHARED

from vidpipe.errors import VidpipeError
from vidpipe.interop import build_from_reference

GOLDEN = SHARED / "golden"
FILES = ["aim_k400", "st_adapter_both_k311", "st_adapter_pre_attn_k333", "zeroi2v_k400"]

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared is not here")


def golden(name: str) -> dict:
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize("name", FILES)
def test_logits_trainable_set_and_gradients(name: str) -> None:
    g = golden(name)
    model = build_from_reference(g["state_dict"], g["meta"])
    logits = model(g["input"])
    torch.testing.assert_close(logits, g["logits"], atol=1e-5, rtol=0)
    loss = torch.nn.functional.cross_entropy(logits, g["labels"])
    assert loss.item() == pytest.approx(g["loss"], abs=1e-5)

    loss.backward()
    trained = {model.reference_names[n]: p for n, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == set(g["trainable"])
    for theirs, parameter in trained.items():
        assert parameter.numel() == g["state_dict"][theirs].numel()
        assert parameter.grad is not None, theirs
        assert parameter.grad.norm().item() == pytest.approx(
            float(g["grad_norm"][theirs]), rel=1e-4, abs=1e-8
        ), theirs
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_our_merge_and_the_authors_merge_agree() -> None:
    g = golden("zeroi2v_k400")
    ours = build_from_reference(g["state_dict"], g["meta"]).merge()
    theirs = build_from_reference(g["merged_state_dict"], g["meta"])
    for model in (ours, theirs):
        torch.testing.assert_close(model(g["input"]), g["merged_logits"], atol=1e-5, rtol=0)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_named() -> None:
    g = golden("aim_k400")
    state = dict(g["state_dict"])
    state.pop("backbone.ln_post.weight")
    state["backbone.surprise"] = torch.zeros(1)
    with pytest.raises(VidpipeError, match=r"missing keys: vit.norm.weight.*surprise"):
        build_from_reference(state, g["meta"])


def test_a_scale_is_never_guessed() -> None:
    g = golden("zeroi2v_k400")
    meta = {k: v for k, v in g["meta"].items() if k != "adapter_scale"}
    with pytest.raises(VidpipeError, match=r"meta\.adapter_scale is missing"):
        build_from_reference(g["state_dict"], meta)


@pytest.mark.parametrize("name", ["aim_in21k", "aim_ssv2", "zeroi2v_long", "zeroi2v_qkv6"])
def test_every_released_vit_layout_is_read(name: str) -> None:
    """Names and shapes of the layouts that have no golden numbers; the values are random."""
    layout = yaml.safe_load((GOLDEN / "layouts.yaml").read_text())[name]
    meta = layout["meta"]
    depth = meta.get("layers", meta.get("depth"))
    torch.manual_seed(0)
    state = {}
    for key, shape in layout["keys"].items():
        for index in range(depth) if "blocks.0." in key else [0]:
            state[key.replace("blocks.0.", f"blocks.{index}.")] = 0.2 * torch.randn(shape)
    model = build_from_reference(state, meta)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == layout["trainable_count"]
    side = meta.get("input_resolution", meta.get("img_size"))
    clip = torch.randn(2, 3, meta["num_frames"], side, side)
    assert model(clip).shape == (2, meta["num_classes"])
    reordered = model(clip.flip(2))
    assert not torch.allclose(model(clip), reordered)
    if name.startswith("zeroi2v"):
        torch.testing.assert_close(model.merge()(clip), model(clip), atol=1e-4, rtol=1e-4)


def aim_swin() -> tuple[dict[str, torch.Tensor], dict]:
    """Random values in the names and shapes of AIM's Swin class, and the layout they are from.

    The layout leaves out the last block: as the one before, but with nothing temporal.
    """
    layout = yaml.safe_load((GOLDEN / "layouts.yaml").read_text())["aim_swin"]
    shapes = dict(layout["keys"])
    first = "backbone.layers.1.blocks.0."
    for key, shape in layout["keys"].items():
        if key.startswith(first) and not re.search(r"T_Adapter|temporal|t_relative", key):
            shapes.setdefault(key.replace("blocks.0.", "blocks.1."), shape)
    torch.manual_seed(0)
    return {key: 0.2 * torch.randn(shape) for key, shape in shapes.items()}, layout


def test_the_released_swin_layout_is_read() -> None:
    state, layout = aim_swin()
    meta = layout["meta"]
    model = build_from_reference(state, meta)
    trained = {model.reference_names[n] for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == layout["trainable_count"]
    assert all("Adapter" in name or name.startswith("cls_head") for name in trained)
    clip = torch.randn(1, 3, meta["num_frames"], meta["img_size"], meta["img_size"])
    assert model(clip).shape == (1, meta["num_classes"])
    # In fp64, since the mean over many tokens leaves little of the order of random frames.
    model, clip = model.double(), clip.double()
    within, between = [1, 0, 2, 3], [2, 3, 0, 1]
    for order in (within, between):
        assert (model(clip) - model(clip[:, :, order])).abs().max() > 1e-6
    for name, parameter in model.named_parameters():
        if "temporal.fc2" in name:
            parameter.data.zero_()
    assert (model(clip) - model(clip[:, :, within])).abs().max() > 1e-6  # two taps of one patch
    assert (model(clip) - model(clip[:, :, between])).abs().max() < 1e-10


def test_every_tensor_of_the_swin_layout_has_its_place() -> None:
    """Our parameters are theirs one to one: shape, value, and the stage that merges patches."""
    state, layout = aim_swin()
    model = build_from_reference(state, layout["meta"])
    own = model.state_dict()
    assert set(model.reference_names) == set(own)
    for ours, theirs in model.reference_names.items():
        assert torch.equal(own[ours], state[theirs]), ours
    buffers = ("relative_position_index", "t_relative_coords", "attn_mask")
    assert set(state) - set(model.reference_names.values()) == {
        name for name in state if name.endswith(buffers)
    }
    merging = "vit.layers.1.downsample.reduction.weight"
    assert model.reference_names[merging] == "backbone.layers.0.downsample.reduction.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "zeroi2v"}, "only aim was released on Swin"),
        ({"window_size": None}, r"meta\.window_size is missing"),
        ({"patch_size": [1, 4, 4]}, r"expected \[2, n, n\]"),
        ({"num_frames": 8}, r"temporal_bias\.0 is \(3, 2\), expected \(7, 2\)"),
    ],
)
def test_a_swin_that_does_not_fit_is_named(change: dict, message: str) -> None:
    state, layout = aim_swin()
    meta = {k: v for k, v in {**layout["meta"], **change}.items() if v is not None}
    with pytest.raises(VidpipeError, match=message):
        build_from_reference(state, meta)


def test_channel_groups_of_the_long_class() -> None:
    from vidpipe.interop.method_options import channel_offsets

    stdha = {"shift1_div": 16, "shift2_div": 16, "shift3_div": 16, "shift3_right": False}
    groups = channel_offsets(64, stdha)
    assert groups == ((4, -1), (4, 1), (4, -2), (4, 2), (4, -3), (44, 0))
    assert channel_offsets(48, {"shift_div": 4}) == ((12, -1), (12, 1), (24, 0))
    assert channel_offsets(48, {"shift_div": 8, "long_shift_div": 16}) == (
        *((6, -1), (6, 1), (3, -2)),
        (33, 0),
    )


def shuffled_placement() -> tuple[dict, dict]:
    """`both_k311` with adapters before attention in blocks 1 and 2, before the MLP in 2 only."""
    g = golden("st_adapter_both_k311")
    dropped = ("resblocks.0.adapter", "resblocks.1.adapter_pre_mlp")
    state = {k: v for k, v in g["state_dict"].items() if not any(d in k for d in dropped)}
    return g, state


def test_st_adapter_positions_may_adapt_different_blocks() -> None:
    g, state = shuffled_placement()
    model = build_from_reference(state, {**g["meta"], "adapter_layers": 2})
    assert set(model.adapters) == {"1_before_attn", "2_before_attn", "2_before_mlp"}
    assert model.config.blocks == {"before_attn": (1, 2), "before_mlp": (2,)}
    # An adapter whose last layer is zero is no adapter: the full model then has the same logits.
    full = {k: v if k in state else torch.zeros_like(v) for k, v in g["state_dict"].items()}
    expected = build_from_reference(full, g["meta"])(g["input"])
    torch.testing.assert_close(model(g["input"]), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(expected, g["logits"], atol=1e-3)


@pytest.mark.parametrize("name", FILES)
def test_prefixes_projection_and_half_precision_are_read(name: str) -> None:
    g = golden(name)
    prefix = "" if name.startswith("st") else "backbone."
    state = {f"module.{k}": v.half() for k, v in g["state_dict"].items()}
    state[f"module.{prefix}visual.proj"] = torch.zeros(48, 32)
    model = build_from_reference(state, {k: v for k, v in g["meta"].items() if v is not None})
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(g["input"]), g["logits"], atol=2e-2, rtol=0)
    state[f"module.{prefix}visual.proj"] = torch.zeros(47, 32)
    with pytest.raises(VidpipeError, match=r"unexpected keys: vit\.visual\.proj"):
        build_from_reference(state, g["meta"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("aim_k400", {"num_tadapter": 2}, r"meta.num_tadapter is 2.* have 1"),
        ("aim_k400", {"layers": 12}, "meta.layers is 12.* have 3"),
        ("aim_k400", {"num_frames": 8}, "meta.num_frames is 8.* have 4"),
        ("aim_k400", {"input_resolution": 224}, "meta.input_resolution is 224.* have 32"),
        ("aim_k400", {"backbone": "timm_vit"}, "meta.backbone: 'timm_vit', but .* ln_pre"),
        ("aim_k400", {"heads": 5}, "5 heads do not divide the width 48"),
        ("aim_k400", {"heads": None}, "meta.heads is missing"),
        ("aim_k400", {"heads": "four"}, "meta.heads is 'four'"),
        ("aim_k400", {"adapter_scale": "half"}, "scale cannot be 'half'"),
        ("aim_k400", {"drop_path_rate": 2}, "drop_path cannot be 2"),
        ("st_adapter_both_k311", {"adapter_layers": 1}, "meta.adapter_layers is 1.* have 3"),
        ("st_adapter_both_k311", {"adapter_pre_mlp": False}, "adapter_pre_mlp is False"),
        ("st_adapter_both_k311", {"adapter_width": 384}, "meta.adapter_width is 384.* have 24"),
        ("st_adapter_both_k311", {"adapter_kernel_size": [3, 3, 3]}, "kernel_size is .3, 3, 3"),
        ("st_adapter_both_k311", {"num_frames": None}, "meta.num_frames is None"),
        ("zeroi2v_k400", {"stdha": {"shift_div": "x"}}, "meta.stdha.shift_div is 'x'"),
        ("zeroi2v_k400", {"stdha": 4}, "meta.stdha is 4"),
        ("zeroi2v_k400", {"width": 64}, "meta.width is 64.* have 48"),
    ],
)
def test_options_that_contradict_the_tensors_are_refused(
    name: str, change: dict, message: str
) -> None:
    g = golden(name)
    with pytest.raises(VidpipeError, match=message):
        build_from_reference(g["state_dict"], {**g["meta"], **change})


@pytest.mark.parametrize("name", FILES)
def test_no_missing_option_or_tensor_is_a_bare_python_error(name: str) -> None:
    g = golden(name)
    for key in g["meta"]:
        meta = {k: v for k, v in g["meta"].items() if k != key}
        try:
            model = build_from_reference(g["state_dict"], meta)
        except VidpipeError:
            continue
        torch.testing.assert_close(model(g["input"]), g["logits"], atol=1e-5, rtol=0)
    for key in g["state_dict"]:
        for wrong in (torch.zeros(0), torch.zeros(()), torch.zeros(3, 5), "text"):
            with pytest.raises(VidpipeError):
                build_from_reference({**g["state_dict"], key: wrong}, g["meta"])
        state = {k: v for k, v in g["state_dict"].items() if k != key}
        with pytest.raises(VidpipeError):
            build_from_reference(state, g["meta"])
    for state in ({}, {7: torch.zeros(1)}, {"state_dict": g["state_dict"]}):
        with pytest.raises(VidpipeError):
            build_from_reference(state, g["meta"])


def test_a_checkpoint_without_its_backbone_names_the_command() -> None:
    g = golden("st_adapter_both_k311")
    state = {k: v for k, v in g["state_dict"].items() if k in g["trainable"]}
    with pytest.raises(VidpipeError, match="vidpipe import-checkpoint"):
        build_from_reference(state, g["meta"])
