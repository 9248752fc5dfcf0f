"""A study and a search of a probe on kept features: all trials at once, as if they were one by one."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from cached_trainings import FIXED
from safetensors.numpy import load_file
from small_store import small_project

from pipeline.infra import probes
from pipeline.infra.mlflow.server import tracking_uri
from pipeline.infra.ray.tune import Search, sampled
from pipeline.infra.search_space import parse_space
from pipeline.infra.study import page, runner
from pipeline.infra.study.cell import CellRunner, read_result
from pipeline.infra.study.plan import make_plan
from pipeline.infra.workspace import Workspace
from pipeline.stages import study as stage
from pipeline.tools import tune
from vidpipe.config.overlay import deep_merge, parse_override, read_yaml
from vidpipe.features.store import FeatureStore
from vidpipe.params import TrackingConfig, parse_params
from vidpipe.training.side_by_side import SideBySide
from vidpipe.video.store import FrameStore

HERE = Workspace(Path())
SPACE = "loguniform(1e-4,1e-1)"
STUDY = {
    "name": "probes",
    "rows": {"linear_probe": {}, "attentional_pooling": {}},
    "spaces": {"linear_probe": {"lr": SPACE}, "attentional_pooling": {"lr": "choice(1e-4)"}},
    "folds": 2,
    "trials": 4,
    "fractions": [1.0],
    "inner_fraction": 0.4,
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_project(tmp_path, 12, epochs=3)
    raw: Any = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for text in (*FIXED, "train.cache_features=exact", "train.cache_mb=0"):
        raw = deep_merge(raw, parse_override(text))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(page, "draw", lambda *_: {})
    return tmp_path


def settings() -> tuple[Any, Any]:
    raw = deep_merge(read_yaml(Path("params.yaml")), {"study": STUDY})
    return parse_params(raw), raw


def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], Counter[str]]:
    """Sizes of the groups that were trained side by side, and how often each clip was read for it."""
    sizes: list[int] = []
    reads: Counter[str] = Counter()
    run, read, test = SideBySide.run, FrameStore.read, CellRunner._test
    testing = []

    def recorded(self: SideBySide) -> Any:
        sizes.append(len(self.configs))
        return run(self)

    def recorded_read(self: FrameStore, clip: int, indices: Any) -> Any:
        if not testing:
            reads[str(self.rows.id[clip])] += 1
        return read(self, clip, indices)

    def recorded_test(self: CellRunner, *rest: Any) -> Any:
        testing.append(1)
        try:
            return test(self, *rest)
        finally:
            testing.pop()

    monkeypatch.setattr(SideBySide, "run", recorded)
    monkeypatch.setattr(FrameStore, "read", recorded_read)
    monkeypatch.setattr(CellRunner, "_test", recorded_test)
    return sizes, reads


def test_a_study_trains_a_probes_trials_at_once_and_chooses_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes, reads = counted(monkeypatch)
    tables = stage.run(*settings(), HERE)
    assert sizes == [4, 2] * 2  # of each row and fold, in one pass
    plan = make_plan(*settings(), HERE)
    part = plan.parts[0]
    trials = plan.trial_cells(plan.rows[0], part, range(4), 0.0, 1.0)
    together = [read_result(cell.folder(HERE)) for cell in trials]

    # No clip twice in a store, whichever fold, part or trial asked for it; frames are read for no other
    # reason but to compare stores of other sizes of batches.
    for folder in Path("features").glob("*/batch-*/"):
        rows = sum(len(load_file(shard)["0"]) for shard in folder.glob("*.safetensors"))
        assert rows == len(FeatureStore(folder).places) <= 12
    assert max(reads.values()) < 12
    shutil.rmtree("study")
    shutil.rmtree("results")
    monkeypatch.setattr(runner, "of_a_probe", lambda *_: False)
    again = stage.run(*settings(), HERE)
    assert sizes == [4, 2] * 2
    for cell, one in zip(trials, together, strict=True):
        alone = read_result(cell.folder(HERE))
        assert one is not None
        assert alone is not None
        row, expected = one.history[alone.epoch - 1], alone.history[-1]
        for name in ("train_loss", "val_loss", "val_top1", "lr"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    pd.testing.assert_frame_equal(tables.accuracy, again.accuracy)


def test_a_search_of_rates_makes_rays_trials_and_leaves_their_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, _ = counted(monkeypatch)
    monkeypatch.setattr(tune, "run_trials", None)  # no Ray
    raw = read_yaml(Path("params.yaml"))
    texts = [f"methods.linear_probe.lr={SPACE}", "methods.linear_probe.weight_decay=choice(0,0.1)"]
    command = tune.run(raw, "linear_probe", texts, Search(trials=6, max_epochs=2), HERE)
    assert sizes == [6]
    table = pd.read_csv("results/tune/linear_probe.csv")
    assert list(table.epochs) == [2] * 6
    assert set(table.state) == {"finished"}
    best = table.sort_values(["val_top1", "val_loss"], ascending=[False, True]).iloc[0]
    assert f"methods.linear_probe.lr={best['methods.linear_probe.lr']:.4g}" in command

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri(TrackingConfig()))
    found = client.search_runs([client.get_experiment_by_name("vidpipe").experiment_id])
    (parent,) = [run for run in found if run.data.tags["vidpipe.stage"] == "tune"]
    nested = [run for run in found if run.data.tags.get("mlflow.parentRunId")]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    assert sorted(int(run.data.tags["vidpipe.trial"]) for run in nested) == [1, 2, 3, 4, 5, 6]


def test_the_trials_are_those_that_ray_tune_would_make() -> None:
    from ray import tune as ray_tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    space = parse_space([f"a.lr={SPACE}", "a.b=choice([0],[7])", "a.n=randint(1,9)"])
    domains = {
        "a.lr": ray_tune.loguniform(1e-4, 1e-1),
        "a.b": ray_tune.choice(["[0]", "[7]"]),
        "a.n": ray_tune.randint(1, 9),
    }
    generator = BasicVariantGenerator(random_state=5)
    ray_tune.register_trainable("nothing", lambda config: None)
    generator.add_configurations({"e": {"run": "nothing", "config": domains, "num_samples": 7}})
    made = [generator.next_trial().config for _ in range(7)]
    assert sampled(space, Search(trials=7, seed=5)) == made


def test_other_searches_stay_with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    params = settings()[0]
    rates = parse_space([f"methods.linear_probe.lr={SPACE}"])
    assert probes.possible(params, "linear_probe", rates, Search())
    assert not probes.possible(params, "linear_probe", rates, Search(algorithm="optuna"))
    other = parse_space(["methods.linear_probe.head_dropout=uniform(0,0.5)"])
    assert not probes.possible(params, "linear_probe", other, Search())
    assert not probes.possible(params, "evl", parse_space(["methods.evl.lr=choice(1)"]), Search())
    off = params.train.model_copy(update={"cache_features": "off"})
    on_frames = params.model_copy(update={"train": off})
    assert not probes.possible(on_frames, "linear_probe", rates, Search())
