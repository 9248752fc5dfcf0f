"""On a CPU, attention that is trained in bf16 is computed in fp32: the same numbers, bf16 outside."""

from __future__ import annotations

import pytest
import torch
from families import size_of, tiny_of
from torch.overrides import TorchFunctionMode

from vidpipe.backbones.ops import attention
from vidpipe.methods.registry import METHODS, build_method


class Seen(TorchFunctionMode):
    """The dtypes of queries that reach PyTorch's attention, and whether autocast is on there."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.dtype, bool]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.calls.append((args[0].dtype, torch.is_autocast_enabled("cpu")))
        return func(*args, **(kwargs or {}))


def test_its_gradients_are_those_of_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, 7, 8)] * 3 + [(1, 2, 7, 7)]
    exact = [torch.randn(shape, generator=generator).bfloat16().float() for shape in shapes]
    *qkv, mask = [x.clone().requires_grad_() for x in exact]
    expected = attention(*qkv, mask, 0.3)
    halves = [x.bfloat16().requires_grad_() for x in exact]
    with torch.autocast("cpu", torch.bfloat16), Seen() as seen:
        found = attention(*halves[:3], halves[3], 0.3)
    assert seen.calls == [(torch.float32, False)]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), atol=0, rtol=0)
    weights = torch.randn(expected.shape, generator=generator).bfloat16()
    expected.backward(weights.float())
    found.backward(weights)
    for ours, theirs in zip(halves, (*qkv, mask), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize("family", ["clip", "pe_core", "eva_giant", "beit"])
@pytest.mark.parametrize("trained", [True, False])
def test_image_models_train_so_and_predict_in_bf16(family: str, trained: bool) -> None:
    model = build_method("aim", tiny_of(family), 3, 4, METHODS["aim"].Config())
    size = size_of(family)
    x = torch.randn(2, 3, 4, size, size)
    grad = torch.enable_grad() if trained else torch.no_grad()
    with grad, torch.autocast("cpu", torch.bfloat16), Seen() as seen:
        logits = model(x)
    # What comes before the first adapter has no gradient, and stays in bf16.
    assert (torch.float32 in {dtype for dtype, _ in seen.calls}) == trained
    if trained:
        logits.float().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
