"""params.yaml: one schema, errors that name the key and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import PROJECT

from pipeline.infra.recipes import list_recipes, read_recipe, write_overlay
from vidpipe.config.identity import config_hash
from vidpipe.config.overlay import parse_override
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.params import load_params

PARAMS = PROJECT / "params.yaml"


def load(*overrides: str):
    return load_params(PARAMS, [parse_override(text) for text in overrides])


def test_shipped_params_are_valid_and_have_a_block_for_every_method_of_the_pipeline() -> None:
    params = load()
    assert set(params.pipeline.methods) == set(params.methods)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "train.epoch: unknown key; nearest is epochs"),
        ("trian.epochs=3", "trian: unknown key; nearest is train"),
        ("train.epochs=many", "train.epochs: Input should be a valid integer.*got 'many'"),
        ("train.epochs=1", "train: warmup_epochs 4 must be less than epochs 1"),
        ("methods.st_adaptor.lr=1", "methods.st_adaptor: no such method; nearest is st_adapter"),
        (
            "methods.st_adapter.bottleneck=1",
            "methods.st_adapter.bottleneck: unknown key; nearest is bottleneck_ratio",
        ),
        ("methods.st_adapter.kernel_size=[2,1,1]", "kernel_size: expected three odd sizes"),
        ("evaluate.temporal_clips=3", "temporal_clips > 1 needs sampling.strategy dense"),
        ("train.num_workers=3", "train.batch_size 32 .*num_workers 3"),
        ("sampling.strategy=random", "sampling.strategy: .*'uniform' or 'dense'.*'random'"),
        ("synth.pairs=[sideways]", "synth.pairs.0: .*got 'sideways'"),
    ],
)
def test_refusals_name_key_expectation_and_nearest(override: str, message: str) -> None:
    with pytest.raises(VidpipeError, match=message) as caught:
        load(override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["train.epochs", "=3", "a..b=1", "train.epochs=[1"])
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"^set "):
        parse_override(text)


def test_scientific_notation_as_dvc_writes_it() -> None:
    assert load("methods.aim.lr=1e-05").methods["aim"].lr == 1e-5


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(VidpipeError, match="no such file; run vidpipe in the folder"):
        load_params(tmp_path / "params.yaml")
    broken = tmp_path / "params.yaml"
    broken.write_text("a: [")
    with pytest.raises(VidpipeError, match="not valid YAML"):
        load_params(broken)
    broken.write_text("- 1")
    with pytest.raises(VidpipeError, match="expected a mapping"):
        load_params(broken)


def test_every_recipe_is_valid() -> None:
    assert list_recipes()
    for name, title in list_recipes():
        load_params(PARAMS, [read_recipe(name)])
        assert title
    with pytest.raises(VidpipeError, match="nearest is weizmann"):
        read_recipe("weisman")


def test_write_keeps_comments_and_changes_only_what_was_asked(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(PARAMS.read_text())
    write_overlay(file, parse_override("methods.st_adapter.bottleneck_ratio=0.25"))
    before, after = PARAMS.read_text().splitlines(), file.read_text().splitlines()
    assert len(before) == len(after)
    changed = [line for old, line in zip(before, after, strict=True) if old != line]
    assert changed == ["    bottleneck_ratio: 0.25"]


def test_hash_depends_on_values_only() -> None:
    assert config_hash(load().train) == config_hash(load("train.seed=0").train)
    assert config_hash(load().train) != config_hash(load("train.seed=1").train)
