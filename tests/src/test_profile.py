"""Counting what a model costs allocates nothing of its size, on whatever device it lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import randomise, tiny_vit
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidpipe.methods.registry import METHODS, build_method
from vidpipe.profile import cost, gmacs, memory, parameters, training_gmacs


class NothingReal(TorchDispatchMode):
    """Refuses every operation that makes a real tensor larger than a few numbers."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                assert tensor.numel() < 100, f"{func} made {tuple(tensor.shape)}"
        return found


@pytest.mark.parametrize("method", ["st_adapter", "aim", "zeroi2v", "evl", "lora", "full_finetune"])
def test_no_second_copy_of_the_weights_is_made(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_method(method, tiny_vit(depth=4), 2, 4, METHODS[method].Config())
    randomise(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    inference = model.merge() if model.not_mergeable is None else model
    computed = gmacs(inference, 32)  # on the model's own device, as the meta device must find it

    def refuse(storage: Any, *rest: Any) -> None:
        raise AssertionError(f"a copy of {storage.nbytes()} bytes")

    monkeypatch.setattr(torch.UntypedStorage, "__deepcopy__", refuse)
    with NothingReal():
        found = cost(model, 32)
        assert memory(model, 32).activations_per_clip > 0
        assert training_gmacs(model, 32) > 0
    assert found.gmacs == computed
    assert found.total == parameters(model)
    for name, parameter in model.named_parameters():
        assert parameter.device.type == "cpu"
        assert torch.equal(parameter, before[name])
