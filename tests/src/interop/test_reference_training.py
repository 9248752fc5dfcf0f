"""Training as the authors train: steps, decay and initial weights (../shared/golden/training)."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from project import SHARED

from vidpipe.interop import build_from_reference
from vidpipe.interop.names import our_name
from vidpipe.methods.noise import ClipNoise
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.training.config import TrainConfig
from vidpipe.training.optim import make_optimizer, trained_parameters

GOLDEN = SHARED / "golden" / "training"
NAMES = ["aim", "st_adapter", "zeroi2v"]

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared is not here")


@pytest.mark.parametrize("name", NAMES)
def test_ten_steps_are_the_authors(name: str) -> None:
    g = torch.load(GOLDEN / f"traj_{name}.pt", weights_only=True)
    model = build_from_reference(g["start_state_dict"], g["meta"])
    options = {"lr": g["lr"], "weight_decay": g["weight_decay"]}
    model.config = model.config.model_copy(update=options)
    for layer in model.modules():
        if isinstance(layer, ClipNoise):
            layer.rate = 0.0
    config = TrainConfig(epochs=1, batch_size=2, warmup_epochs=0, betas=tuple(g["betas"]))
    optimizer = make_optimizer(model, config, torch.device("cpu"))
    model.train()
    for video, labels, expected in zip(g["inputs"], g["labels"], g["losses"], strict=True):
        loss = F.cross_entropy(model(video), labels)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    final = {model.reference_names[n]: p for n, p in trained_parameters(model).items()}
    assert final.keys() == g["final"].keys()
    for key, parameter in final.items():
        expected = g["final"][key].view_as(parameter)
        # AdamW divides by a gradient's own size: where it is near zero, a processor's rounding shows.
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-4, rtol=0, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_decay_is_the_authors(name: str) -> None:
    g = torch.load(GOLDEN / f"traj_{name}.pt", weights_only=True)
    model = build_from_reference(g["start_state_dict"], g["meta"])
    for ours, parameter in trained_parameters(model).items():
        theirs = model.reference_names[ours]
        assert model.decays(ours, parameter) == (theirs in g["decayed"]), theirs
        assert model.decays(ours, parameter) != (theirs in g["not_decayed"]), theirs


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_have_the_authors_statistics(name: str) -> None:
    """On ViT-B/16: absolute sizes, which widths must not change. The head's are in the file's note."""
    expected = json.loads((GOLDEN / "init.json").read_text())[name]
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch16_224", num_classes=0, depth=2)
    model = build_method(name, vit, 400, 8, METHODS[name].Config())
    own = trained_parameters(model)
    checked = {"head.weight", "head.bias"}
    for theirs, statistics in expected.items():
        ours = our_name(theirs, name)
        for key in (ours, ours.replace(".0.", ".1.").replace(".0_", ".1_")):
            checked.add(key)
            # The mean of n draws is within five standard errors of the true one.
            error = 5 * statistics["std"] / own[key].numel() ** 0.5
            assert own[key].mean().item() == pytest.approx(statistics["mean"], abs=2 * error + 1e-6)
            assert own[key].std().item() == pytest.approx(statistics["std"], rel=0.02, abs=1e-7)
            assert own[key].abs().max().item() == pytest.approx(statistics["absmax"], rel=0.25)
    assert checked == own.keys()
    std = 0.02 if name == "st_adapter" else 0.01
    assert own["head.weight"].std().item() == pytest.approx(std, rel=0.02)
    assert not own["head.bias"].any()
