"""Methods x families: what is promised of a method on a plain ViT holds on every image model that loads.

Methods and options take turns here; `make test-long` runs the whole product of `tests/helpers/matrix.py`
and `tests/helpers/families.py`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from families import DEPTH, FAMILIES, WIDTH, size_of, tiny_of
from matrix import MATRIX, sees_order_at_start
from torch import Tensor

from vidpipe.errors import VidpipeError
from vidpipe.methods.noise import ClipNoise
from vidpipe.methods.registry import METHODS, VideoModel, build_method
from vidpipe.profile import cost, parameters

T, CLASSES = 4, 5
Case = tuple[str, str, dict]


def build(case: Case, nonzero: bool = True, seed: int = 0) -> VideoModel:
    """In fp64 and eval mode. Skips what the method refuses for want of a class token."""
    family, name, options = case
    image_model = tiny_of(family)
    torch.manual_seed(seed)
    config = METHODS[name].Config.model_validate(options)
    try:
        model = build_method(name, image_model, CLASSES, T, config).double()
    except VidpipeError as error:
        if "class token" not in str(error) or image_model.cls_token is not None:
            raise
        pytest.skip(str(error))
    if nonzero:
        generator = torch.Generator().manual_seed(1)
        for parameter in model.adapter_state().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def clip(case: Case, batch: int = 2) -> Tensor:
    size = size_of(case[0])
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 3, T, size, size, generator=generator).double()


@torch.no_grad()
def logits(model: VideoModel, x: Tensor) -> Tensor:
    return model(x)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


# -- what is promised -------------------------------------------------------------------------


def only_the_declared_parameters_move(case: Case) -> None:
    model = build(case).train()
    if not model.trained_names:
        assert not model(clip(case)).requires_grad
        return
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(clip(case)).square().mean().backward()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    optimizer.step()
    trained = model.trained_names
    assert {"head.weight", "head.bias"} <= trained
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key not in trained), key


def starts_as_the_image_model(case: Case) -> None:
    model = build(case, nonzero=False)
    if not model.starts_as_image_model:
        return
    x = clip(case)[:, :, :1]  # of equal frames, so that a mean before a norm is one after it
    with torch.no_grad():
        features = model.vit.forward_features(x[:, :, 0])
        expected = model.head(model.vit.forward_head(features, pre_logits=True))
    close(logits(model, x.expand(-1, -1, T, -1, -1)), expected)


def starts_blind_to_the_order_unless_heads_are_shifted(case: Case) -> None:
    model, x = build(case, nonzero=False), clip(case)
    difference = float((logits(model, x) - logits(model, x.flip(2))).abs().max())
    assert difference > 1e-6 if sees_order_at_start(model, case[2]) else difference < 1e-10


def sees_the_order_or_is_declared_blind(case: Case) -> None:
    model, x = build(case), clip(case)
    difference = float((logits(model, x) - logits(model, x[:, :, [1, 0, 3, 2]])).abs().max())
    assert difference < 1e-10 if model.order_blind else difference > 1e-6


def a_clip_does_not_depend_on_its_batch(case: Case) -> None:
    model, x = build(case), clip(case, 3)
    close(logits(model, x)[1:2], logits(model, x[1:2]))


def the_last_block_leaves_out_what_nothing_reads(case: Case) -> None:
    """Same logits and gradients as with every token through every block."""
    model, found = build(case).train(), []
    for module in model.modules():  # no chance: both runs see the same
        if isinstance(module, ClipNoise):
            module.rate = 0.0
    for model.every_token in (True, False):
        model.zero_grad()
        out = model(clip(case))
        if model.trained_names:
            out.square().sum().backward()
        found.append((out, [p.grad for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(*found, atol=1e-9, rtol=1e-9)
    own = type(model).tokens_needed is not VideoModel.tokens_needed  # ST-Adapter's positions
    if model.view.reads == "prefix" and model.reads_pooled_only and not own:
        assert model.tokens_needed(DEPTH - 1) == model.view.num_prefix_tokens


def a_merge_is_exact_and_rebuilt_by_its_options(case: Case) -> None:
    model, x = build(case), clip(case)
    if model.not_mergeable is not None:
        with pytest.raises(VidpipeError, match=f"{case[1]} cannot be merged: "):
            model.merge()
        return
    merged = model.merge()
    close(logits(merged, x), logits(model, x))
    close(logits(merged.merge(), x), logits(merged, x), 0)
    again = build((case[0], case[1], merged.config.model_dump()), nonzero=False)
    assert {n: t.shape for n, t in merged.state_dict().items()} == {
        n: t.shape for n, t in again.state_dict().items()
    }
    again.load_state_dict(merged.state_dict())
    close(logits(again, x), logits(merged, x), 0)
    assert cost(model, size_of(case[0])).new_at_inference == T * WIDTH + (
        parameters(merged.vit) - parameters(model.vit)
    )


def adapter_state_rebuilds_the_model(case: Case) -> None:
    model, other, x = build(case), build(case, nonzero=False, seed=5), clip(case)
    assert not torch.equal(logits(model, x), logits(other, x))
    other.load_adapter_state(model.adapter_state(), "test")
    assert torch.equal(logits(model, x), logits(other, x))


PROMISES: list[Callable[[Case], None]] = [
    only_the_declared_parameters_move,
    starts_as_the_image_model,
    starts_blind_to_the_order_unless_heads_are_shifted,
    sees_the_order_or_is_declared_blind,
    a_clip_does_not_depend_on_its_batch,
    the_last_block_leaves_out_what_nothing_reads,
    a_merge_is_exact_and_rebuilt_by_its_options,
    adapter_state_rebuilds_the_model,
]


ALWAYS = ("st_adapter", "aim", "zeroi2v", "lora")


def taking_turns() -> list[Case]:
    """Each family with four methods, whose options go round, and every fourth of the others."""
    by_method = {name: [own for n, own in MATRIX if n == name] for name in METHODS}
    return [
        (family, name, options[turn % len(options)])
        for turn, family in enumerate(FAMILIES)
        for place, (name, options) in enumerate(by_method.items())
        if name in ALWAYS or (turn + place) % 4 == 0
    ]


@pytest.mark.parametrize("case", taking_turns(), ids=lambda case: f"{case[0]}-{case[1]}")
def test_every_promise_on_every_family(case: Case) -> None:
    for promise in PROMISES:
        promise(case)


@pytest.mark.long
@pytest.mark.parametrize("method", MATRIX, ids=lambda method: f"{method[0]}-{method[1]}")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_product(family: str, method: tuple[str, dict]) -> None:
    for promise in PROMISES:
        promise((family, *method))


AFTER = ("vit.norm.", "vit.fc_norm.", "vit.attn_pool.", "head.")


@pytest.mark.parametrize("family", FAMILIES)
def test_rate_and_decay_know_every_parameter(family: str) -> None:
    """What stands before the blocks has the lowest rate; positions, tokens and vectors no decay."""
    model = build((family, "full_finetune", {"layer_decay": 0.5}))
    spared = ("pos_embed", "cls_token", "reg_token", "rope.freqs")
    for name, parameter in model.named_parameters():
        own = re.match(r"vit\.blocks\.(\d+)\.", name)
        expected = int(own[1]) if own else None if name.startswith(AFTER) else -1
        assert model.block_of(name) == expected, name
        depth = DEPTH if expected is None else expected
        assert model.lr_scale(name) == 0.5 ** (DEPTH - depth), name
        kept = parameter.ndim == 1 or any(part in name for part in spared)
        if "relative_position" not in name:  # timm's own list says
            assert model.decays(name, parameter) != kept, name
