"""One matrix over (method, config): every promise a method makes, on adapters that are not zero."""

from __future__ import annotations

import copy

import pytest
import torch
from matrix import every, sees_order_at_start
from tiny import randomise, tiny_vit

from vidpipe.errors import VidpipeError
from vidpipe.methods.config import CONFIGS
from vidpipe.methods.noise import ClipNoise
from vidpipe.methods.registry import METHODS, SWIN_METHODS, VideoModel, build_method
from vidpipe.profile import cost, parameters

T, SIZE, CLASSES = 4, 32, 7
# A method that lists no options here is held to its promises with its defaults.


def build(name: str, options: dict, nonzero: bool = True) -> VideoModel:
    torch.manual_seed(0)
    config = METHODS[name].Config.model_validate(options)
    model = build_method(name, tiny_vit(), CLASSES, T, config)
    if nonzero:
        for parameter in model.adapter_state().values():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def clip(batch: int = 2, frames: int = T) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(batch, 3, frames, SIZE, SIZE)


@every
def test_only_the_declared_parameters_move(name: str, options: dict) -> None:
    model = build(name, options).train()
    if not model.trained_names:
        assert not any(p.requires_grad for p in model.parameters())
        assert not model(clip()).requires_grad
        return
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(clip()).square().mean().backward()
    optimizer.step()
    trained = model.trained_names
    assert {"head.weight", "head.bias"} <= trained
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key not in trained), key


@every
def test_what_the_last_block_leaves_out_is_read_by_nothing(name: str, options: dict) -> None:
    """Same logits and same gradients, in fp64, as with every token through every block."""
    registers = 2
    config = METHODS[name].Config.model_validate(options)
    vit = tiny_vit(reg_tokens=registers)
    model = build_method(name, vit, CLASSES, T, config).double()
    randomise(model)
    for module in model.modules():  # no chance: both runs see the same
        if isinstance(module, ClipNoise):
            module.rate = 0.0
    tokens: list[int] = []
    model.vit.blocks[-1].mlp.fc1.register_forward_pre_hook(
        lambda _, x: tokens.append(x[0].shape[1])
    )
    found = []
    for model.every_token in (True, False):
        model.train().zero_grad()
        logits = model(clip().double())
        if model.trained_names:
            logits.square().sum().backward()
        found.append((logits, [p.grad for p in model.parameters() if p.requires_grad]))
    (logits, gradients), (own_logits, own_gradients) = found
    torch.testing.assert_close(own_logits, logits, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(own_gradients, gradients, atol=1e-9, rtol=1e-9)
    # An adapter behind the attention works on the patches, even where nothing reads them any more.
    behind = any(p in str(options) for p in ("after_attn", "before_mlp", "after_mlp"))
    if not model.reads_pooled_only or behind:
        assert tokens[-1] == tokens[0]
    else:
        assert tokens[-1] == 1 + registers < tokens[0]


@every
def test_starts_blind_to_the_order_unless_heads_are_shifted(name: str, options: dict) -> None:
    """AIM and ST-Adapter start as the image model; ZeroI2V shifts heads from step 0."""
    model = build(name, options, nonzero=False)
    difference = (model(clip()) - model(clip().flip(2))).abs().max().item()
    if sees_order_at_start(model, options):
        assert difference > 1e-4
    else:
        assert difference < 1e-5


@every
def test_starts_with_the_features_of_the_image_model(name: str, options: dict) -> None:
    model = build(name, options, nonzero=False)
    if not model.starts_as_image_model:
        pytest.skip("declared not to")
    frames = clip().transpose(1, 2).flatten(0, 1)
    features = model.vit.forward_features(frames)[:, 0].unflatten(0, (-1, T))
    if name == "st_adapter":  # its final norm follows the mean
        x = model.vit.norm_pre(model.vit._pos_embed(model.vit.patch_embed(frames)))
        x = model.vit.blocks(x)[:, 0].unflatten(0, (-1, T)).mean(1)
        expected = model.head(model.vit.norm(x))
    else:
        expected = model.head(features.mean(1))
    torch.testing.assert_close(model(clip()), expected, atol=1e-5, rtol=1e-5)


@every
def test_sees_the_order_of_frames_or_is_declared_blind(name: str, options: dict) -> None:
    model = build(name, options)
    difference = (model(clip()) - model(clip()[:, :, [1, 0, 3, 2]])).abs().max().item()
    assert (difference < 1e-5) == model.order_blind


@every
def test_a_clip_does_not_depend_on_its_batch(name: str, options: dict) -> None:
    model = build(name, options)
    torch.testing.assert_close(model(clip(3))[1:2], model(clip(3)[1:2]), atol=1e-5, rtol=1e-5)


@every
def test_adapter_state_rebuilds_the_model(name: str, options: dict) -> None:
    model = build(name, options)
    other = build(name, options, nonzero=False)
    assert not torch.equal(model(clip()), other(clip()))
    other.load_adapter_state(model.adapter_state(), "test")
    assert torch.equal(model(clip()), other(clip()))


@every
def test_adapter_state_of_another_model_is_refused(name: str, options: dict) -> None:
    model = build(name, options)
    state = model.adapter_state()
    state["surprise"] = state.pop("head.bias")
    with pytest.raises(VidpipeError, match=r"missing keys: head\.bias; unexpected keys: surprise"):
        model.load_adapter_state(state, "test")


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
    assert merged.trained_names == {
        *("head.weight", "head.bias", "vit.norm.weight", "vit.norm.bias"),
        "temporal_embedding.weight",
    }
    assert parameters(merged.vit) == parameters(model.vit)
    torch.testing.assert_close(merged.merge()(x), merged(x), atol=0, rtol=0)
    single = model.float()
    torch.testing.assert_close(single.merge()(clip()), single(clip()), atol=1e-5, rtol=1e-5)


@every
def test_merging_with_a_wrong_scale_would_be_seen(name: str, options: dict) -> None:
    model = build(name, options)
    if model.not_mergeable is not None:
        pytest.skip("not mergeable")
    expected = model(clip())
    for module in model.modules():
        if hasattr(module, "scale") and hasattr(module, "matrix"):
            module.scale *= 2
        if hasattr(module, "channels"):  # temporal_heads adds a difference, whose scale is 1
            module.qkv.data *= 2
    assert (model.merge()(clip()) - expected).abs().max() > 1e-3


@every
def test_cost_counts_parameters(name: str, options: dict) -> None:
    model = build(name, options)
    counted = cost(model, SIZE)
    trained = sum(t.numel() for n, t in model.adapter_state().items() if n in model.trained_names)
    assert counted.tunable == trained
    head = (model.feature_width + 1) * CLASSES if trained else 0
    assert counted.tunable - counted.tunable_without_head == head
    assert counted.gmacs > 0
    if model.not_mergeable is None:
        assert counted.new_at_inference == T * 48  # the temporal embedding alone
    if name == "linear_probe":
        assert counted.new_at_inference == counted.tunable_without_head == 0


@every
def test_any_number_of_frames_unless_a_temporal_embedding_fixes_it(
    name: str, options: dict
) -> None:
    model = build(name, options)
    fixed = any("temporal_embedding" in key for key in model.adapter_state())
    for frames in (1, 7):
        if fixed:
            with pytest.raises(VidpipeError, match=f"clip has {frames} frames"):
                model(clip(frames=frames))
        else:
            assert model(clip(frames=frames)).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("st_adapter", {"blocks": [0, 3]}, r"blocks: \[3\] not in this backbone"),
        ("lora", {"blocks": [-1]}, r"methods.lora.blocks: \[-1\] not in this backbone"),
        ("zeroi2v", {"head_offsets": [1] * 5}, "5 offsets for 4 heads"),
        ("evl", {"num_layers": 4}, "4 decoder layers, but this backbone has 3 blocks"),
        ("zeroi2v", {"channel_offsets": [[1, 1]]}, "must add up to the width 48"),
    ],
)
def test_options_that_do_not_fit_the_backbone_are_refused(
    name: str, options: dict, message: str
) -> None:
    with pytest.raises(VidpipeError, match=message):
        build(name, options)


def test_papers_cost_on_vit_b16() -> None:
    """ST-Adapter's 7.42 M tunable and 455 GFLOPs (3 views), ZeroI2V's 14.2 M and 422 (paper tables)."""
    import timm

    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0)
        adapted, moved = (
            build_method(name, vit, 400, 8, METHODS[name].Config())
            for name in ("st_adapter", "zeroi2v")
        )
    st, zero = cost(adapted, 224), cost(moved, 224)
    assert round(st.tunable / 1e6, 2) == 7.42
    assert round(3 * st.gmacs) == 455
    assert round(zero.tunable_without_head / 1e6, 1) == 14.2
    assert round(3 * zero.gmacs) == 422


@pytest.mark.parametrize(
    ("name", "million"), [("prompt_tuning", 1.180), ("attentional_pooling", 2.362)]
)
def test_papers_parameters_on_vit_b16(name: str, million: float) -> None:
    """ST-Adapter's Table 1, where the head is not counted."""
    import timm

    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0)
        model = build_method(name, vit, 400, 8, METHODS[name].Config())
    assert round(cost(model, 224).tunable_without_head / 1e6, 3) == million


def test_randomise_leaves_nothing_at_zero() -> None:
    model = build("aim", {}, nonzero=False)
    randomise(model)
    assert all(bool((p != 0).all()) for p in model.parameters())


def test_st_adapter_blocks_by_position() -> None:
    model = build("st_adapter", {"blocks": {"before_mlp": [2], "before_attn": [0, 2]}})
    assert list(model.adapters) == ["0_before_attn", "2_before_mlp", "2_before_attn"]
    again = type(model.config).model_validate(model.config.model_dump(mode="json"))
    assert again == model.config
    with pytest.raises(ValueError, match="leave positions out"):
        build("st_adapter", {"blocks": {"before_mlp": [2]}, "positions": ["before_attn"]})
    with pytest.raises(VidpipeError, match=r"\[3\] not in this backbone"):
        build("st_adapter", {"blocks": {"before_mlp": [3]}})


def test_every_method_has_its_options_in_the_registry_that_params_read() -> None:
    assert {name: method.Config for name, method in METHODS.items()} == CONFIGS
    assert list(METHODS) == list(CONFIGS)
    assert all(METHODS[name].Config is CONFIGS[name] for name in METHODS)
    assert all(form.Config is CONFIGS[name] for name, form in SWIN_METHODS.items())
