"""`train.starts_from`: a training that begins with another one's adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from project import PROJECT
from small_models import NAME, SIZE, T, backbone_file, save_tiny_adapter

from pipeline.infra.recipes import list_recipes, load_recipe
from pipeline.infra.workspace import Workspace, training_hash
from vidpipe.config.overlay import parse_override
from vidpipe.config.section import OnlyTraining, mark
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS
from vidpipe.new_model import new_model
from vidpipe.params import Params, load_params
from vidpipe.trained.adapter import load_adapter, save_adapter

CLASSES = ["left", "right", "up"]


def params(weights: Path, start: Path | None, *more: str) -> Params:
    words = [f"backbone.name={NAME}", "backbone.source=timm", f"backbone.weights={weights}"]
    words += [f"transform.size={SIZE}", f"sampling.num_frames={T}"]
    words += ["methods.zeroi2v.head_offsets=[-1, 1]", *more]
    words += [f"train.starts_from={start}"] if start else []
    return load_params(PROJECT / "params.yaml", map(parse_override, words))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return backbone_file(tmp_path / "backbone.safetensors")


def made(tmp_path: Path, weights: Path, method: str) -> Path:
    """An adapter as a training with the demo's options leaves it, with other numbers in it."""
    trained = new_model(params(weights, None), method, CLASSES)
    for tensor in trained.model.adapter_state().values():
        tensor += torch.randn_like(tensor)
    save_adapter(tmp_path / "start", trained, {})
    return tmp_path / "start"


@pytest.mark.parametrize("method", ["linear_probe", "st_adapter", "aim", "zeroi2v"])
def test_it_begins_as_the_other_ended(tmp_path: Path, weights: Path, method: str) -> None:
    start = made(tmp_path, weights, method)
    begun = new_model(params(weights, start), method, CLASSES).model.adapter_state()
    ended = load_adapter(start).model.adapter_state()
    assert begun.keys() == ended.keys()
    assert all(torch.equal(begun[name], ended[name]) for name in ended)


@pytest.mark.parametrize("classes", [["jump", "run"], CLASSES[::-1]])
def test_other_classes_get_a_head_of_their_own(
    tmp_path: Path, weights: Path, classes: list[str]
) -> None:
    start = made(tmp_path, weights, "aim")
    torch.manual_seed(3)
    begun = new_model(params(weights, start), "aim", classes).model.adapter_state()
    torch.manual_seed(3)
    fresh = new_model(params(weights, None), "aim", classes).model.adapter_state()
    ended = load_adapter(start).model.adapter_state()
    for name, tensor in begun.items():
        expected = fresh if name.startswith("head.") else ended
        assert torch.equal(tensor, expected[name])


def test_what_does_not_fit_is_one_line(tmp_path: Path, weights: Path) -> None:
    start = made(tmp_path, weights, "zeroi2v")

    def refused(match: str, method: str, *more: str, on: Path = weights) -> None:
        with pytest.raises(VidpipeError, match=match):
            new_model(params(on, start, *more), method, CLASSES)

    refused("an adapter of zeroi2v, but aim is to be trained", "aim")
    refused("trained on weights", "zeroi2v", on=backbone_file(tmp_path / "other.safetensors", 2))
    refused(r"methods.zeroi2v.scale 1.0, not 0.5", "zeroi2v", "methods.zeroi2v.scale=0.5")
    refused("temporal_embedding", "zeroi2v", "sampling.num_frames=8")
    new_model(params(weights, start, "methods.zeroi2v.lr=0.5"), "zeroi2v", CLASSES)
    tensors = start / "adapter.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    refused("not a readable safetensors file", "zeroi2v")
    tensors.unlink()
    refused("no such file", "zeroi2v")


def test_the_name_of_a_training_is_of_what_it_starts_from(tmp_path: Path, weights: Path) -> None:
    one = save_tiny_adapter(tmp_path / "one", weights, seed=1)
    same = save_tiny_adapter(tmp_path / "same", weights, seed=1)
    two = save_tiny_adapter(tmp_path / "two", weights, seed=2)
    workspace = Workspace(tmp_path)
    workspace.store.mkdir(parents=True)
    (workspace.store / "manifest.parquet").write_bytes(b"data")

    def name(start: Path | None) -> str:
        return training_hash(params(weights, start), "st_adapter", workspace, "0")

    assert name(one) == name(same)
    assert len({name(None), name(one), name(two)}) == 3


def test_recipes_start_from_what_they_can_start_from() -> None:
    found = 0
    for recipe in (load_recipe(name) for name, _ in list_recipes()):
        if recipe.starts_from is None:
            continue
        own, start = (r.overlay["methods"] for r in (recipe, load_recipe(recipe.starts_from)))
        for method, options in own.items():
            fields = METHODS[method].Config.model_fields
            for key in options:
                if mark(fields[key], OnlyTraining):
                    continue
                assert options[key] == start[method][key], f"{recipe.name}: {key}"
        found += 1
    assert found == 10
