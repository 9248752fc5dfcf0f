"""What decides a result: every field of the schema, by its mark, in every identity."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from schema_fields import RAW, Leaf, leaves, nested, other_values
from small_store import small_project

from pipeline.cli.app import main
from pipeline.infra.workspace import Workspace, training_hash
from vidpipe.config.identity import config_hash, decides, deciding
from vidpipe.config.overlay import deep_merge, parse_override
from vidpipe.data.dataset import TrainSet
from vidpipe.evaluation.config import EvaluateConfig
from vidpipe.params import STAGES, Params, deciding_sections

# What the first users raised to go on, and lost their training by.
MACHINE = {
    "train.cache_mb": 10,
    "train.loader_workers": 1,
    "train.prefetch": 3,
    "train.max_bad_reads": 0.5,
    "train.worker_restarts": 5,
    "train.memory_gb_per_worker": 0.5,
    "train.checkpoint_every": 7,
    "train.eval_every": 3,
    "train.cpus_per_worker": 2,
    "train.storage": "memory://runs",
    "train.activation_gb": 1,
    "data.reader": "decord",
    "data.max_missing_fraction": 0.5,
    "extract.num_workers": 1,
    "extract.timeout_s": 900,
    "extract.max_bad_fraction": 0.5,
    "evaluate.num_workers": 1,
    "evaluate.batch_size": 3,
    "tracking.experiment": "other",
}


def identities(params: Params, method: str) -> dict[str, str]:
    return {stage: config_hash(deciding_sections(params, stage, method)) for stage in STAGES}


def sections_of(params: Params, leaf: Leaf) -> list[tuple[Any, str]]:
    """(section, field) of every step on the way to the leaf, the trained method's block included."""
    found, steps = [], list(leaf.path)
    section: Any = params
    while steps:
        name = steps.pop(0)
        if isinstance(section, dict):
            section = section[name]
            continue
        found.append((section, name))
        section = getattr(section, name)
    return found


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.key)
def test_a_field_changes_the_identities_that_it_decides_and_no_other(leaf: Leaf) -> None:
    before = nested(leaf)
    if "const" in leaf.schema()[0]:  # what makes a method what it is
        return
    changed = other_values(leaf)
    assert changed, f"no other valid value of {leaf.key} was found"
    first = identities(before, leaf.method)
    for params in changed:
        found = identities(params, leaf.method)
        # A field that is absent at its default decides by the value that it is changed to.
        decisive = any(
            all(decides(section, name) for section, name in sections_of(either, leaf))
            for either in (before, params)
        )
        expected = {stage for stage in STAGES if decisive and leaf.path[0] in STAGES[stage]}
        assert {stage for stage in STAGES if found[stage] != first[stage]} == expected


def changed(key: str, value: Any) -> Params:
    return Params.model_validate(deep_merge(RAW, parse_override(f"{key}={value}")))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    here = Workspace(tmp_path)
    here.store.mkdir(parents=True)
    (here.store / "manifest.parquet").write_bytes(b"data")
    return here


@pytest.mark.parametrize(("key", "value"), MACHINE.items())
def test_a_limit_of_the_machine_keeps_the_training(
    workspace: Workspace, key: str, value: Any
) -> None:
    before, after = Params.model_validate(RAW), changed(key, value)
    assert before != after
    assert training_hash(after, "aim", workspace, "w") == training_hash(
        before, "aim", workspace, "w"
    )
    assert identities(after, "aim") == identities(before, "aim")


@pytest.mark.parametrize(
    ("key", "value"),
    {"train.seed": 1, "train.threads": 3, "methods.aim.lr": 0.1, "backbone.name": "other"}.items(),
)
def test_what_decides_gives_another_training(workspace: Workspace, key: str, value: Any) -> None:
    names = {
        training_hash(p, "aim", workspace, "w")
        for p in (changed(key, value), changed("data.seed", 0))
    }
    assert len(names) == 2


def test_a_mark_may_depend_on_another_value() -> None:
    def train(**values: Any) -> dict[str, Any]:
        return deciding(Params.model_validate(deep_merge(RAW, {"train": values})).train)

    assert train(activation_gb=1) == train()
    assert train(activation_gb=1, compile=True) != train(compile=True)


def test_an_evaluation_records_what_decides_it() -> None:
    assert set(deciding(EvaluateConfig())) == {
        *("temporal_clips", "spatial_crops", "average", "use_of_time", "precision"),
        "reversed_pairs",
    }


def vidpipe(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["vidpipe", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_training_that_met_its_limit_goes_on_with_a_higher_one(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_project(in_folder)
    original = TrainSet.__getitem__

    def unreadable_from_the_third_epoch_on(self: TrainSet, key: tuple[int, int]) -> dict[str, Any]:
        return {**original(self, key), "replaced": key[0] >= 2}

    monkeypatch.setattr(TrainSet, "__getitem__", unreadable_from_the_third_epoch_on)
    train = ("train", "--method", "linear_probe", "--set")
    assert vidpipe(monkeypatch, *train, "train.max_bad_reads=0.3") == 1
    assert "more than train.max_bad_reads allows" in capsys.readouterr().err
    assert vidpipe(monkeypatch, *train, "train.max_bad_reads=1") == 0
    assert re.search(r"goes on after step [1-9]", capsys.readouterr().err)
    more = ("train.cache_mb=10", "--set", "train.loader_workers=1", "--set", "train.eval_every=2")
    assert vidpipe(monkeypatch, *train, *more) == 0
    assert "finished, nothing to do" in capsys.readouterr().err
