"""`modern/`: the papers' settings on the image models of today; ours, so no accuracy is promised."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from families import size_of, tiny_of
from project import PROJECT
from small_store import small_store

from pipeline.infra.recipes import FOLDER, list_recipes, load_recipe
from pipeline.infra.training_setup import TrainingSetup
from pipeline.tools.list_recipes import DATA, row
from vidpipe.backbones.zoo import Backbone, architecture
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.methods.registry import build_method
from vidpipe.params import Params, load_params
from vidpipe.profile import macs_by_kind
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.store import FrameStore

PARAMS = PROJECT / "params.yaml"
DATASETS, METHODS = ("k400", "ssv2"), ("aim", "st_adapter", "zeroi2v")
BACKBONES = {
    "dinov3_b16": ("{}_{}_b16_8f", "dinov3"),
    "dinov3_l16": ("{}_{}_l14_8f", "dinov3"),
    "siglip2_b16": ("{}_{}_b16_8f", "map"),
    "pe_core_b16": ("{}_{}_b16_8f", "pe_core"),
    "eva02_clip_b16": ("{}_{}_b16_8f", "eva02_clip"),
}
NAME = "modern/{}_{}_{}_8f"
PRODUCT = list(product(DATASETS, METHODS, BACKBONES))
NAMES = [NAME.format(*parts) for parts in PRODUCT]


def resolved(name: str, **more: Any) -> Params:
    return load_params(PARAMS, [load_recipe(name).overlay, more])


def test_there_is_one_for_each_dataset_method_and_backbone() -> None:
    found = [name for name, _ in list_recipes() if name.startswith("modern/")]
    assert sorted(found) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_papers_recipe_on_another_backbone(name: str) -> None:
    recipe, params = load_recipe(name), resolved(name)
    assert recipe.name == name
    assert recipe.expects is None  # a published number is of the published backbone
    assert recipe.ours is not None
    assert recipe.title.endswith("ours, with the settings of CLIP's; no accuracy is known")
    data, method, backbone = next(parts for parts in PRODUCT if name == NAME.format(*parts))
    paper = load_recipe(BACKBONES[backbone][0].format(data, method))
    assert paper.expects is not None
    assert recipe.ours.dataset == paper.expects.dataset
    assert recipe.methods == [method] == paper.methods
    resized = {**paper.overlay["transform"], "interpolation": "card"}
    rest = {k: v for k, v in recipe.overlay.items() if k != "backbone"}
    assert rest == {
        k: v for k, v in {**paper.overlay, "transform": resized}.items() if k != "backbone"
    }
    assert params.backbone.pool == ("token" if "dinov3" in backbone else "zoo")
    assert params.backbone.hub_tag
    assert f"{params.sampling.num_frames} frames" in recipe.title


@pytest.mark.parametrize("backbone", BACKBONES)
def test_its_cost_is_counted_and_a_merged_zeroi2v_is_the_image_model(
    backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tools.list_recipes.training_gmacs", lambda model, size: 1.0)
    own = row(load_recipe(f"modern/k400_zeroi2v_{backbone}_8f"))
    params = resolved(own.name)
    with torch.device("meta"):
        plain = architecture(params.backbone, params.transform.size).requires_grad_(False)
    products, norms = macs_by_kind(plain, params.transform.size, 0)
    head = 400 * plain.num_features
    assert own.gflops_without_norms == pytest.approx(3 * (8 * products + head) / 1e9, rel=1e-12)
    # A class token alone passes the final norm, where timm norms all tokens.
    assert own.gflops == pytest.approx(3 * 8 * (products + norms) / 1e9, rel=1e-4)
    assert own.top1 is None
    assert own.table == "ours"


# -- a step of each -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return small_store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", [b for b in BACKBONES if b != "dinov3_l16"])
def test_one_step_on_a_tiny_model_of_the_same_make(
    backbone: str, method: str, store: FrameStore
) -> None:
    family, name = BACKBONES[backbone][1], f"modern/k400_{method}_{backbone}_8f"
    size, frames = size_of(family), 4
    jitter = {"short_side": [size, size + 8]} if resolved(name).transform.short_side else {}
    params = resolved(
        name,
        transform={"size": size, "interpolation": "bicubic", **jitter},  # the card of these weights
        sampling={"num_frames": frames},
        train={"batch_size": 4, "warmup_epochs": 0},
        backbone={"name": f"tiny_{family}"},
    )
    classes = ["a", "b", *(f"c{i}" for i in range(2, DATA["K400"].classes))]
    vit = tiny_of(family)
    model = build_method(method, vit, len(classes), frames, params.method(method))
    backbone_of = Backbone(vit, params.backbone, "", "", (0.5,) * 3, (0.5,) * 3)
    trained = TrainedModel(model, backbone_of, classes, params.sampling, params.transform)
    train_set = TrainSet(Clips(store, "train", classes), params.sampling, params.transform, 0)
    view_set = ViewSet(Clips(store, "val", classes), params.sampling, params.transform)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    setup = TrainingSetup(params, trained, train_set, view_set)
    assert math.isfinite(next(setup.trainer(torch.device("cpu")).steps()).loss)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {"head.weight", "head.bias"} < moved <= set(model.adapter_state())
    assert any(n.startswith("adapters.") for n in moved)


def test_the_files_are_three_lines() -> None:
    for file in (FOLDER / "modern").glob("*.yaml"):
        assert len(Path(file).read_text().splitlines()) == 3
