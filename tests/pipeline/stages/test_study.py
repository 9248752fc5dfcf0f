"""`vidpipe study` on ten clips: what is read when, what is trained, and what stays after a kill."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from small_store import small_project
from tracking_store import copy_store

from pipeline.infra.mlflow.server import tracking_uri
from pipeline.infra.study import cell as cells
from pipeline.infra.study import page
from pipeline.infra.study.cell import CellRunner
from pipeline.infra.study.kept import take_over
from pipeline.infra.study.plan import Cell, make_plan
from pipeline.infra.workspace import Workspace
from pipeline.stages import study as stage
from pipeline.stages import train
from pipeline.tools import study_plan
from vidpipe.config.overlay import deep_merge, read_yaml
from vidpipe.errors import VidpipeError
from vidpipe.params import TrackingConfig, parse_params
from vidpipe.training import state
from vidpipe.training.loop import Trainer
from vidpipe.video.store import FrameStore

STUDY = {
    "name": "small",
    "rows": {
        "linear_probe": {},
        "st_adapter": {"bottleneck_ratio": 0.1},
        "too deep": {"method": "st_adapter", "blocks": [70]},
    },
    "spaces": {"st_adapter": {"lr": "loguniform(1e-4,1e-2)"}},
    "folds": 2,
    "trials": 3,
    "fractions": [0.5, 1.0],
    "inner_fraction": 0.4,
}
HERE = Workspace(Path())


def settings(**study: Any) -> tuple[Any, Any]:
    raw = deep_merge(read_yaml(Path("params.yaml")), {"study": {**STUDY, **study}})
    return parse_params(raw), raw


def run(**study: Any) -> Any:
    return stage.run(*settings(**study), HERE)


def files(name: str = "small") -> dict[str, bytes]:
    folder = Path("results/studies") / name
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


class Record:
    """What cells read, and which trainings took a step, from where they are called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: list[tuple[Cell | None, str, str]] = []
        self.trained: set[str] = set()
        self.cell: Cell | None = None
        self.doing = ""
        read, call, steps = FrameStore.read, CellRunner.__call__, Trainer.steps
        test = CellRunner._test

        def recorded_read(store: FrameStore, clip: int, indices: Any) -> Any:
            self.reads.append((self.cell, self.doing, str(store.rows.id[clip])))
            return read(store, clip, indices)

        def recorded_call(runner: CellRunner, cell: Cell) -> str:
            self.cell, self.doing = cell, "training"
            try:
                return call(runner, cell)
            finally:
                self.cell = None

        def recorded_test(runner: CellRunner, cell: Cell, *rest: Any) -> Any:
            self.doing = "testing"
            return test(runner, cell, *rest)

        def recorded_steps(trainer: Trainer) -> Iterator[Any]:
            for info in steps(trainer):
                if self.cell is not None:
                    self.trained.add(self.cell.key)
                yield info

        monkeypatch.setattr(FrameStore, "read", recorded_read)
        monkeypatch.setattr(CellRunner, "__call__", recorded_call)
        monkeypatch.setattr(CellRunner, "_test", recorded_test)
        monkeypatch.setattr(Trainer, "steps", recorded_steps)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    small_project(folder, 12, epochs=2)
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    raw["train"]["cache_mb"] = 0  # every read reaches the store
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    return folder


@pytest.fixture(autouse=True)
def inside(first: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # Drawn once, by `first`, which is made before this; pictures take longer than such trainings.
    monkeypatch.setattr(page, "draw", lambda *_: {})


@pytest.fixture(scope="module")
def first(project: Path) -> tuple[Any, Record, dict[str, bytes]]:
    """The study once: its tables, what it did, and its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        record = Record(patch)
        tables = run()
        return tables, record, files()


def test_no_test_clip_of_a_fold_is_read_while_its_setting_is_chosen(first: Any) -> None:
    record = first[1]
    plan = make_plan(*settings(), HERE)
    tested = {part.fold: set(part.test) for part in plan.parts}
    trials = [(cell, id_) for cell, _, id_ in record.reads if cell and cell.kind == "trial"]
    assert trials
    assert [(str(cell), id_) for cell, id_ in trials if id_ in tested[cell.fold]] == []
    # Nor in the final training, which begins when the choice is made; it is read once, in the test.
    finals = [(c, doing, id_) for c, doing, id_ in record.reads if c and c.kind == "final"]
    assert {doing for _, doing, _ in finals} == {"training", "testing"}
    for cell, doing, id_ in finals:
        assert (id_ in tested[cell.fold]) == (doing == "testing"), (str(cell), doing, id_)


def test_every_clip_is_tested_once_by_each_row(first: Any) -> None:
    tables = first[0]
    counts = tables.predictions.groupby("method").id.agg(["size", "nunique"])
    assert sorted(counts.index) == ["linear_probe", "st_adapter"]
    assert (counts == 12).all(axis=None)
    assert (tables.curves.groupby("fraction").size() == 3).all()


def test_a_row_that_fails_says_so_and_the_others_stand(first: Any) -> None:
    tables = first[0]
    table = tables.accuracy.set_index("method")
    assert table.failed.to_dict() == {"linear_probe": 0, "st_adapter": 0, "too deep": 4}
    assert table.top1.notna().to_dict() == {
        "linear_probe": True,
        "st_adapter": True,
        "too deep": False,
    }
    failed = tables.cells[tables.cells.state == "failed"]
    assert set(failed.method) == {"too deep"}
    assert failed.error.str.contains("70").all()
    report = first[2]["report.md"].decode()
    assert "| too deep | final |" in report
    assert "Rules: candidates are" in report


def test_the_page_has_every_part_in_order_and_its_pictures(first: Any) -> None:
    html = Path("results/studies/small.html").read_text(encoding="utf-8")
    found = [title.partition("<")[0] for title in html.split("<h2>")[1:]]
    start = ["Recommendation", "Accuracy", "Costs", "Against the best", "Against the reference"]
    assert found[:7] == [*start, "Sensitivity", "Learning curves"]
    assert found[-5:] == ["By class", "Chosen settings", "Failed cells", "Hardest clips", "Times"]
    pictures = {part.partition("<")[0]: part.count("<img ") for part in html.split("<h2>")[1:]}
    assert pictures["Costs"] == 4  # GFLOPs, parameters, training, latency
    assert all(pictures[k] == 1 for k in ("Sensitivity", "Learning curves", "Hardest clips"))
    assert "too deep has no result: " in html


def test_a_choice_is_listed_where_it_was_made(first: Any) -> None:
    """Neither where another part took it over, nor for a row that never was tuned."""
    section = next(s for s in page.sections(first[0]) if s.title == "Chosen settings")
    assert [row[:3] for row in section.rows] == [
        [name, fold, "1"] for name in ("linear_probe", "st_adapter") for fold in "12"
    ]


def test_the_null_study_is_printed_and_kept(first: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("results/studies/small", "results/studies/nulled")
    found = stage.null(settings(name="nulled")[0], HERE, 20)
    assert "false alarms at 5 %" in capsys.readouterr().out
    kept = pd.read_csv("results/studies/nulled/null.csv")
    pd.testing.assert_frame_equal(kept, found, check_dtype=False)
    assert kept.studies.eq(20).all()
    assert set(kept.test) >= {"chance", "reference", "best"}
    with pytest.raises(VidpipeError, match="run `vidpipe study` first"):
        stage.null(settings(name="never")[0], HERE, 20)


def test_each_row_has_the_same_trials_and_the_choice_is_the_best_of_them(first: Any) -> None:
    found = first[0].cells
    trials = found[found.kind == "trial"]
    assert (trials.groupby(["method", "fold"]).size() == 3).all()
    assert (trials.groupby(["method", "fold"]).chosen.sum() == 1).all()
    for _, own in trials.groupby(["method", "fold"]):
        ended = own[own.epoch == own.epochs]
        assert ended.chosen.any()
        assert own.val_top1[own.chosen].iloc[0] == ended.val_top1.max()


def test_the_second_run_trains_nothing_and_leaves_the_same_bytes(
    first: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(monkeypatch)
    run()
    assert record.trained == set()
    assert files() == first[2]


def test_another_clone_goes_on_from_the_file_of_cells(
    first: Any,
    tmp_path: Path,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data").symlink_to(project / "data")
    (tmp_path / "params.yaml").write_bytes((project / "params.yaml").read_bytes())
    file = Path("results/studies/small.cells.parquet")
    left = {folder.name for folder in Path("study/cells").iterdir()}
    (tmp_path / "results/studies").mkdir(parents=True)
    (tmp_path / file).write_bytes(file.read_bytes())
    copy_store(tmp_path)
    monkeypatch.chdir(tmp_path)
    record = Record(monkeypatch)
    study_plan.run(*settings(), HERE)
    assert "12 of the trials' first rungs are done" in capsys.readouterr().out
    run()
    assert record.trained == set()
    assert files() == first[2]
    assert {folder.name for folder in Path("study/cells").iterdir()} == left
    assert file.read_bytes() == (project / file).read_bytes()


@pytest.mark.parametrize("key", ["../../out", "/tmp/out", ""])
def test_a_file_that_holds_no_cells_is_one_line(first: Any, tmp_path: Path, key: str) -> None:
    file = tmp_path / "small.cells.parquet"
    pd.DataFrame({"key": [key], "result": ['{"state": "finished", "history": []}']}).to_parquet(
        file
    )
    with pytest.raises(VidpipeError, match=r"small\.cells\.parquet: expected the cells"):
        take_over(file, Workspace(tmp_path / "here"))
    file.write_bytes(b"PAR1 but no table")
    with pytest.raises(VidpipeError, match="delete it"):
        take_over(file, Workspace(tmp_path / "here"))
    assert not (tmp_path / "here").exists()


def test_runs_of_cells_are_nested_below_the_studys(first: Any) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri(TrackingConfig()))
    found = client.search_runs([client.get_experiment_by_name("vidpipe").experiment_id])
    (parent,) = [run for run in found if run.data.tags["vidpipe.stage"] == "study"]
    assert parent.info.status == "FINISHED"
    nested = [run for run in found if run.data.tags["vidpipe.stage"] == "cell"]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    assert {run.data.tags["vidpipe.config_hash"] for run in nested} == first[1].trained


@pytest.mark.long
def test_another_budget_keeps_old_cells_apart_and_trains_only_new_ones(
    first: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(monkeypatch)
    run(name="more", trials=4, fractions=[1.0])
    # Of what was trained before, only trials that had been stopped early may go on.
    early = first[0].cells[first[0].cells.state == "stopped early"].training
    again = record.trained & first[1].trained
    assert {key.split("-")[1] for key in again} <= set(early)
    assert record.trained - again
    assert files() == first[2], "the first study's own tables are as they were"


class Killed(BaseException):
    pass


def broken_after(monkeypatch: pytest.MonkeyPatch, steps: int, what: Exception | Killed) -> None:
    """The process ends in that step, as by kill -9: nothing that would clean up knows the exception."""
    original, done = Trainer._step, 0

    def step(self: Trainer, *args: Any) -> Any:
        nonlocal done
        done += 1
        if done > steps:
            raise what
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_step", step)


def test_a_study_that_was_killed_and_met_a_full_disk_ends_with_the_same_bytes(
    first: Any, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(project / "data")
    (tmp_path / "params.yaml").write_bytes((project / "params.yaml").read_bytes())
    (tmp_path / "mlflow.db").write_bytes((project / "mlflow.db").read_bytes())
    monkeypatch.chdir(tmp_path)
    for steps in (1, 9):
        with monkeypatch.context() as patch:
            broken_after(patch, steps, Killed())
            with pytest.raises(Killed):
                run()
        assert not Path("results/studies/small").exists()
    with monkeypatch.context() as patch:  # and a disk that fills up ends it in one line
        saved, calls = state._save, 0

        def full(file: Path, tensors: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > 5:
                raise OSError(errno.ENOSPC, "No space left on device", str(file))
            saved(file, tensors)

        patch.setattr(state, "_save", full)
        with pytest.raises(VidpipeError, match="could not be written") as error:
            run()
        assert "\n" not in str(error.value)
    run()
    assert files() == first[2]
    assert not list(Path("ray").iterdir()), "no checkpoint is left"


def test_a_cell_that_fails_is_a_row_and_is_tried_again(
    first: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CellRunner._final

    def fails(self: CellRunner, cell: Cell, folder: Path) -> None:
        if cell.row == "st_adapter" and cell.fold == 1 and cell.seed == 1:
            raise ValueError("of this very cell")
        original(self, cell, folder)

    with monkeypatch.context() as patch:
        patch.setattr(CellRunner, "_final", fails)
        tables = run(name="fails", fractions=[1.0], seeds=2)
    row = tables.cells[
        (tables.cells.state == "failed") & (tables.cells.method == "st_adapter")
    ].iloc[0]
    assert (row.fold, row.error) == (1, "ValueError: of this very cell")
    assert tables.accuracy.set_index("method").failed.to_dict()["st_adapter"] == 1
    again = run(name="fails", fractions=[1.0], seeds=2)
    assert again.accuracy.set_index("method").failed.to_dict()["st_adapter"] == 0


def test_what_train_has_trained_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set's own split, without tuning, is `vidpipe train`'s very training."""
    study = {
        "folds": "split",
        "trials": 1,
        "fractions": [1.0],
        "rows": {},
        "methods": ["linear_probe"],
    }
    params, _ = settings(name="own", spaces={}, **study)
    train.run(params, "linear_probe", HERE)
    record = Record(monkeypatch)
    tables = run(name="own", spaces={}, **study)
    assert record.trained == set()
    assert tables.accuracy.clips.tolist() == [3]
    record.reads.clear()
    run(name="own", spaces={}, **study)
    assert not record.reads, "the tested predictions are kept"
    assert any("one group" in w or "too few" in w or "uncertain" in w for w in tables.warnings)


def test_the_plan_is_printed_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "data").symlink_to(project / "data")
    (tmp_path / "params.yaml").write_bytes((project / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    study_plan.run(*settings(), HERE)
    out = capsys.readouterr().out
    assert "20: 12 trials, 8 final trainings" in out
    assert "fails:" in out
    assert {path.name for path in tmp_path.iterdir()} == {"data", "params.yaml"}


@pytest.mark.long
def test_on_ray_a_study_is_the_same(
    first: Any, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(project / "data")
    (tmp_path / "params.yaml").write_bytes((project / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run(num_workers=2)
    assert files() == first[2]


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"folds": 13}, "13 folds need as many groups"),
        ({"spaces": {"st_adapter": {"lrr": "uniform(0,1)"}}}, "row 'st_adapter'.*lrr"),
        ({"spaces": {"aim": {"lr": "uniform(0,1)"}}}, "study.spaces.aim: no such row"),
    ],
)
def test_a_study_that_cannot_be_is_one_line(study: dict[str, Any], message: str) -> None:
    with pytest.raises(VidpipeError, match=message) as error:
        run(**study)
    assert "\n" not in str(error.value)


def test_a_rung_is_an_epoch(first: Any) -> None:
    plan = make_plan(*settings(trials=9), HERE)
    assert plan.rungs(9) == [(9, 1 / 9), (3, 1 / 3), (1, 1.0)]
    assert plan.rungs(3) == [(3, 1 / 3), (1, 1.0)]
    assert plan.rungs(2) == [(2, 1.0)]
    row, part = plan.rows[0], plan.tuned_parts[0]
    cell = plan.trial_cells(row, part, [0], 0.0, 1 / 3)[0]
    assert [cells.rung_epoch(cell, epochs) for epochs in (1, 3, 10, 30)] == [1, 1, 4, 10]
    assert isinstance(first[0].cells, pd.DataFrame)
