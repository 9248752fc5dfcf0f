"""`vidpipe study` and `tune` where the task's score is mAP: what they choose by, test by and write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from cached_trainings import FIXED, trainer_of
from people import HEIGHT, SAMPLING, people, people_config
from small_store import SEVERAL, small_project

from pipeline.infra.ray.tune import Search
from pipeline.infra.study import page
from pipeline.infra.study.cell import read_result
from pipeline.infra.study.kept import take_over
from pipeline.infra.study.plan import cells_folder, make_plan
from pipeline.infra.study.runner import ranking
from pipeline.infra.workspace import Workspace
from pipeline.stages import extract
from pipeline.stages import study as stage
from pipeline.tools import tune
from vidpipe.config.overlay import deep_merge, parse_override, read_yaml
from vidpipe.errors import VidpipeError
from vidpipe.features.store import FeatureStore
from vidpipe.params import parse_params
from vidpipe.tasks.scores import average_precision, mean_known
from vidpipe.video.config import ExtractConfig

HERE = Workspace(Path())
STUDY = {
    "name": "several",
    "rows": {"linear_probe": {}, "attentional_pooling": {}},
    "spaces": {
        name: {"lr": "choice(1e-3,0.3)"} for name in ("linear_probe", "attentional_pooling")
    },
    "folds": 2,
    "trials": 2,
    "inner_fraction": 0.4,
}


def settings(**study: Any) -> tuple[Any, Any]:
    raw = deep_merge(read_yaml(Path("params.yaml")), {"study": {**STUDY, **study}})
    return parse_params(raw), raw


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    small_project(folder, 12, task="multilabel", epochs=2)
    raw: Any = yaml.safe_load((folder / "params.yaml").read_text())
    for text in (*FIXED, "train.cache_features=exact"):
        raw = deep_merge(raw, parse_override(text))
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    return folder


class NoRun:
    """A run of MLflow that is nowhere: another test has those."""

    run_id = None

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> NoRun:
        return self

    def __exit__(self, *_: object) -> None: ...

    def params(self, *_: Any) -> None: ...

    metrics = tags = artifact = params


def enter(patch: pytest.MonkeyPatch, project: Path) -> None:
    patch.chdir(project)
    for module in ("stages.study", "tools.tune", "infra.probes"):
        patch.setattr(f"pipeline.{module}.tracked_run", NoRun)


@pytest.fixture(autouse=True)
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, project)


@pytest.fixture(scope="module")
def tables(project: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, project)
        return stage.run(*settings(), HERE)


def test_a_study_of_several_labels_chooses_and_reports_by_map(tables: Any) -> None:
    assert tables.score.column == "map"
    found = tables.predictions.set_index(["method", "id"])
    for row in tables.accuracy.to_dict("records"):
        own = found.loc[row["method"]].sort_index()
        aps, positives = np.zeros(2), np.zeros(2)
        for _, fold in own.groupby("fold"):
            y = np.array([[name in text.split("|") for name in "ab"] for text in fold.label])
            ap = average_precision(np.stack(fold.probabilities.tolist()).astype(float), y)
            aps, positives = aps + np.nan_to_num(ap) * y.sum(0), positives + y.sum(0)
        assert row["map"] == pytest.approx(mean_known(aps / positives))
    trials = tables.cells[tables.cells.kind == "trial"]
    assert trials.val_score.notna().all()
    for _, own in trials.groupby(["method", "fold"]):
        best = own.sort_values(["val_score", "val_loss"], ascending=[False, True]).iloc[0]
        assert best.chosen
    assert set(found.label) <= set(SEVERAL)
    assert tables.orders.columns.tolist()[1:5] == [
        f"{order}_map" for order in ("in_order", "reversed", "shuffled", "frozen")
    ]
    report = Path("results/studies/several/report.md").read_text()
    assert "mAP %" in report
    assert "candidates are the best in mAP" in report
    assert "all ranked anew" in report
    assert "top1" not in report
    page_text = Path("results/studies/several.html").read_text()
    assert "mAP" in page_text


def test_tests_of_probes_go_on_kept_views(tables: Any) -> None:
    """Of both rows: behind the pooling, and behind the last block; each clip once for all cells."""
    kept = [FeatureStore(folder) for folder in Path("features").glob("test-*/batch-*/")]
    assert [len(store.places) for store in kept] == [12, 12]


def test_folds_hold_every_class_of_clips_with_several(tables: Any) -> None:
    plan = make_plan(*settings(), HERE)
    label = dict(zip(plan.clips.ids, plan.clips.labels, strict=True))
    for part in plan.parts:
        classes = [{c for i in ids for c in label[i].split("|")} for ids in (part.train, part.test)]
        assert all({"a", "b"} <= own for own in classes)
    assert sorted(i for part in plan.parts for i in part.test) == sorted(plan.clips.ids)


def test_what_was_kept_goes_on_to_the_same_bytes(
    tables: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page, "draw", lambda *_: {})
    folder = Path("results/studies/several")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree("study")
    assert take_over(folder.with_name("several.cells.parquet"), HERE) > 0
    monkeypatch.setattr("pipeline.infra.study.cell.CellRunner", None)  # nothing is trained
    stage.run(*settings(), HERE)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    found = stage.null(settings()[0], HERE, 3)
    assert found.studies.tolist() == [3] * 5


def test_the_best_trial_is_the_one_of_highest_map(tables: Any) -> None:
    plan = make_plan(*settings(), HERE)
    row, part = plan.rows[0], plan.parts[0]
    cells = plan.trial_cells(row, part, range(2), 0.0, 1.0)
    found = [(cell, read_result(cells_folder(HERE) / cell.key)) for cell in cells]
    known = [(cell, result) for cell, result in found if result is not None]
    first, second = (
        (cell, result.__class__("finished", 1, 1, ({"epoch": 1, **numbers},)))
        for (cell, result), numbers in zip(
            known * 2,
            (
                {"val_top1": 0.9, "val_score": 0.2, "val_loss": 1.0},
                {"val_top1": 0.1, "val_score": 0.8, "val_loss": 2.0},
            ),
            strict=False,
        )
    )
    assert ranking([first, second], "val_score")[0] == second
    assert ranking([first, second])[0] == first


def test_tune_chooses_by_map(capsys: pytest.CaptureFixture[str]) -> None:
    raw = read_yaml(Path("params.yaml"))
    space = ["methods.linear_probe.lr=choice(1e-3,0.3)"]
    tune.run(raw, "linear_probe", space, Search(trials=3), HERE)
    table = pd.read_csv("results/tune/linear_probe.csv")
    assert "val_top1" not in table
    best = table.sort_values(["val_score", "val_loss"], ascending=[False, True]).iloc[0]
    alone = trainer_of(Path(), "linear_probe", "methods.linear_probe.lr=0.3").run()[-1]
    own = table[table["methods.linear_probe.lr"] == 0.3].iloc[0]
    assert own.val_score == pytest.approx(alone.val_score)
    assert alone.decides == alone.val_score != alone.val_top1
    out = capsys.readouterr()
    assert f"best: trial {best.trial}, val mAP {best.val_score:.1%}" in out.out + out.err


def test_no_class_in_validation_is_said_before_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = deep_merge(read_yaml(Path("params.yaml")), {})
    shown: list[str] = []
    monkeypatch.setattr(tune, "run_trials", lambda *_: shown.append("trained"))
    monkeypatch.setattr(tune.probes, "run_together", lambda *_: shown.append("trained"))
    real = tune.open_clips

    def without(*args: Any) -> Any:
        clips = real(*args)
        clips.labels[:] = 0
        return clips

    monkeypatch.setattr(tune, "open_clips", without)
    with pytest.raises(VidpipeError, match="none of 3 clips of split val has a class"):
        tune.run(raw, "linear_probe", ["methods.linear_probe.lr=choice(1)"], Search(1), HERE)
    assert not shown


@pytest.mark.long
def test_a_study_of_boxes_ranks_them_by_frame_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_project(tmp_path, 4, epochs=1, warmup_epochs=0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "draw", lambda *_: {})
    data = people_config(people(tmp_path / "people", train=4, val=2))
    shutil.rmtree("data/store")
    crf = ExtractConfig(short_side=HEIGHT, crf=8, num_workers=1)
    extract.run(data, crf, Path("data/store"))
    own = {"data": data.model_dump(mode="json"), "sampling": SAMPLING.model_dump(mode="json")}
    own |= {"transform": {"size": [36, 72], "crop": "center"}}
    study = {"name": "boxes", "rows": {"linear_probe": {}, "bitfit": {}}, "trials": 1, "spaces": {}}
    raw = deep_merge(read_yaml(Path("params.yaml")), {**own, "study": {**study, "folds": 2}})
    tables = stage.run(parse_params(raw), raw, HERE)
    assert tables.accuracy.clips.tolist() == [11, 11]  # key frames: one of twelve is excluded
    assert tables.accuracy["map"].between(0, 1).all()
    assert tables.accuracy.p_chance.isna().all()
    assert tables.predictions.groupby("method").id.nunique().tolist() == [11, 11]
    assert len(tables.orders) == 2
    assert not (Path("results/studies/boxes/report.md").read_text().count("Hardest"))
    bad = deep_merge(raw, {"evaluate": {"spatial_crops": 3}})
    with pytest.raises(VidpipeError, match="task detection sees the whole frame once"):
        make_plan(parse_params(bad), bad, HERE)
    with pytest.raises(VidpipeError, match="boxes follow each other"):
        stage.null(parse_params(raw), HERE, 3)
