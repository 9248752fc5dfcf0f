"""Parity with numbers measured on the authors' own model classes (../shared/golden)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vidpipe.errors import VidpipeError
from vidpipe.interop import build_from_reference

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
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
