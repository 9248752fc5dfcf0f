"""Models that come and go: backbones shared, memory given back, nothing read outside of a root."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from small_models import backbone_file, save_tiny_adapter, two_models_and_a_package

from vidpipe.errors import VidpipeError
from vidpipe.trained.package import open_model
from vidpipe.trained.shelf import Shelf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_models_and_a_package(tmp_path_factory.mktemp("models"))


def test_adapters_share_their_backbones_storage_and_nothing_else(folder: Path) -> None:
    shelf = Shelf()
    one, two = shelf.load("one", folder / "one" / "adapter"), shelf.load("two", folder / "two")
    weights = [m.trained.model.vit.blocks[1].attn.qkv.weight for m in (one, two)]
    assert weights[0].data_ptr() == weights[1].data_ptr()
    memory = shelf.memory()
    frozen = sum(t.numel() * 4 for t in one.trained.backbone.vit.parameters()) / 2**20
    assert memory["shared"] == pytest.approx(frozen, rel=0.02)
    assert memory["total"] == pytest.approx(memory["shared"] + sum(memory["own"].values()))
    assert memory["apart"] == pytest.approx(memory["total"] + memory["shared"])
    x = torch.randn(1, 3, 4, 32, 32)
    for name, path in (("one", folder / "one" / "adapter"), ("two", folder / "two")):
        assert torch.equal(shelf.models[name].trained.model(x), open_model(path).model(x))


def test_a_package_has_a_backbone_of_its_own(folder: Path) -> None:
    shelf = Shelf()
    shelf.load("one", folder / "one" / "adapter")
    package = shelf.load("package", folder / "one" / "package")
    assert package.backbone is None
    assert shelf.memory()["shared"] == 0


def test_the_last_that_leaves_takes_the_backbone_along(folder: Path) -> None:
    shelf = Shelf()
    one = shelf.load("one", folder / "one" / "adapter")
    shelf.load("two", folder / "two")
    alive = weakref.ref(one.trained.model.vit.blocks[1].attn.qkv.weight)
    before = shelf.memory()["total"]
    del one
    shelf.unload("one")
    gc.collect()
    assert alive() is not None
    assert shelf.memory()["total"] < before
    shelf.unload("two")
    gc.collect()
    assert alive() is None
    assert shelf.memory()["total"] == 0
    with pytest.raises(VidpipeError, match="model two: not loaded"):
        shelf.unload("two")


def test_weights_named_for_one_are_shared_with_those_who_record_them(folder: Path) -> None:
    shelf = Shelf()
    one = shelf.load("one", folder / "one" / "adapter", str(folder / "vit.safetensors"))
    assert one.backbone == shelf.load("two", folder / "two").backbone
    assert shelf.memory()["shared"] > 0


def test_what_cannot_be_opened_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """Also an adapter that claims another's backbone, with other weights: the claim is not kept."""
    shelf = Shelf()
    liar = tmp_path / "liar"
    shutil.copytree(folder / "two", liar)
    card = json.loads((liar / "config.json").read_text())
    card["backbone"]["weights"] = str(backbone_file(tmp_path / "other.safetensors", seed=2))
    (liar / "config.json").write_text(json.dumps(card))
    with pytest.raises(VidpipeError, match="trained on weights"):
        shelf.load("liar", liar)
    assert shelf.models == {}
    shelf.load("two", folder / "two")
    with pytest.raises(VidpipeError):
        shelf.load("two", tmp_path)
    assert list(shelf.models) == ["two"]


def test_inside_a_root_only_what_lies_there_is_read(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    adapter = root / "two"
    shutil.copytree(folder / "two", adapter)
    shelf = Shelf()
    with pytest.raises(VidpipeError, match=r"vit.safetensors: lies outside of the root"):
        shelf.load("two", adapter, inside=root)
    shelf.load("one", folder / "one" / "adapter")
    shelf.load("two", adapter, inside=root)  # the backbone is in memory: no file of it is read
    assert shelf.memory()["shared"] > 0

    (adapter / "adapter.safetensors").unlink()
    (adapter / "adapter.safetensors").symlink_to(folder / "two" / "adapter.safetensors")
    with pytest.raises(VidpipeError, match=r"adapter.safetensors: lies outside of the root"):
        shelf.load("three", adapter, inside=root)


def test_inside_a_root_nothing_is_downloaded(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "two"
    shutil.copytree(folder / "two", adapter)
    card = json.loads((adapter / "config.json").read_text())
    card["backbone"]["weights"] = "hub:augreg_in21k"
    (adapter / "config.json").write_text(json.dumps(card))
    with pytest.raises(VidpipeError, match="would have to be downloaded"):
        Shelf().load("two", adapter, inside=tmp_path)


def test_a_model_of_the_same_name_is_replaced(folder: Path) -> None:
    shelf = Shelf()
    shelf.load("a", folder / "one" / "adapter")
    shelf.load("a", folder / "two")
    assert shelf.models["a"].trained.classes == ["a", "b"]


def test_own_weights_beside_the_adapter_are_read(folder: Path, tmp_path: Path) -> None:
    save_tiny_adapter(tmp_path / "a", folder / "vit.safetensors")
    shutil.copy(folder / "vit.safetensors", tmp_path / "a" / "backbone.safetensors")
    card = json.loads((tmp_path / "a" / "config.json").read_text())
    card["backbone"]["weights"] = "backbone.safetensors"
    (tmp_path / "a" / "config.json").write_text(json.dumps(card))
    assert Shelf().load("a", tmp_path / "a", inside=tmp_path).trained.classes
