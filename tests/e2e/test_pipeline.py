"""The whole pipeline by DVC, on real clips, real Ray Train, a real MLflow store."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from e2e_project import METHODS, Run, environment, run_in
from project import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Vidpipe = Callable[..., tuple[int, str]]


def ran(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def test_every_stage_leaves_its_files_and_a_clean_tree(project: Path, run: Run) -> None:
    for method in METHODS:
        assert (project / "models" / method / "adapter" / "adapter.safetensors").is_file()
        assert (project / "models" / method / "package" / "parity.json").is_file()
        assert (project / "models" / method / "evaluation" / "confusion.png").stat().st_size > 5000
        result = json.loads((project / "results" / method / "eval.json").read_text())
        assert result["clips"] == 6
        assert 0 <= result["in_pair_top1"] <= 1
    table = (project / "results" / "report.md").read_text()
    for heading in (
        "top1 %",
        "tunable M",
        "+ head",
        "GFLOPs/view",
        "clips/s",
        "new M at inference",
    ):
        assert heading in table
    assert "lost by shuffling" in table
    assert table.count("| zeroi2v |") == 2  # the methods, and their use of time
    assert "<img" in (project / "results" / "report.html").read_text()
    assert (project / "results" / "report" / "accuracy_against_parameters.png").is_file()
    predictions = project / "models" / "zeroi2v" / "evaluation" / "predictions.parquet"
    frame = pd.read_parquet(predictions)
    np.testing.assert_allclose([sum(p) for p in frame.probabilities], 1, atol=1e-5)
    assert run("dvc", "status", "dvc.yaml").stdout.strip() == "Data and pipelines are up to date."
    assert run("git", "status", "--porcelain").stdout == ""


@pytest.mark.long  # MLflow's page of what tests/pipeline/infra/mlflow/test_rows.py reads from its store
@pytest.mark.skipif(
    "REQUIRE_BROWSER" not in os.environ
    and not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="chromium and chromedriver are not installed",
)
def test_runs_are_shown_in_the_browser(project: Path, tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{project}/mlflow.db", "--workers", "1"),
        ],
        cwd=project,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--disable-sync"),
        *("--disable-component-update", "--window-size=1600,1200", f"--user-data-dir={tmp_path}"),
    ):
        options.add_argument(flag)
    driver = None
    try:
        _wait_for(port, server)
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        driver.get(f"http://127.0.0.1:{port}/#/experiments/1/runs")
        # A row a method, with its data set; stages are folded away below it.
        names = [*METHODS, "synth ("]
        WebDriverWait(driver, 90).until(
            lambda d: all(n in d.find_element(By.TAG_NAME, "body").text for n in names)
        )
        if target := os.environ.get("SAVE_SCREENSHOT"):
            driver.save_screenshot(target)
    finally:
        if driver is not None:
            driver.quit()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_no_temporary_files_are_left(project: Path) -> None:
    left = [p for p in project.rglob(".*") if p.name.startswith((".store", ".adapter", ".package"))]
    assert not left
    assert not list((project / "ray").iterdir())


def test_a_second_repro_runs_nothing(run: Run) -> None:
    assert ran(run("dvc", "repro").stdout) == set()


def test_changing_the_sampling_reruns_training_but_not_extraction(
    run: Run, vidpipe: Vidpipe
) -> None:
    assert vidpipe("params", "--write", "--set", "sampling.num_frames=6")[0] == 0
    try:
        would = ran(run("dvc", "repro", "--dry").stdout)
    finally:
        run("git", "checkout", "-q", "params.yaml")
    assert {f"train@{method}" for method in METHODS} <= would
    assert not {"synth", "extract"} & would


def test_another_reader_of_the_same_frames_runs_nothing(run: Run, vidpipe: Vidpipe) -> None:
    words = ("--set", "data.reader=decord", "--set", "train.cache_mb=10")
    assert vidpipe("params", "--write", *words)[0] == 0
    try:
        assert ran(run("dvc", "repro", "--dry").stdout) == set()
    finally:
        run("git", "checkout", "-q", "params.yaml")


OTHER = ("--set", "methods.linear_probe.lr=0.002")
"""Of a method that is not in the list."""


def test_changing_one_method_trains_that_method_only(run: Run, vidpipe: Vidpipe) -> None:
    """tests/pipeline/test_dvc.py: between two that are in the list."""
    found = []
    for change in (OTHER, ("--set", "methods.zeroi2v.lr=0.002")):
        assert vidpipe("params", "--write", *change)[0] == 0
        try:
            found.append(ran(run("dvc", "repro", "--dry").stdout))
        finally:
            run("git", "checkout", "-q", "params.yaml")
    others, own = found
    assert others == set()
    assert "train@zeroi2v" in own
    assert not {"synth", "extract"} & own


@pytest.mark.long  # five stages, each a process that imports all anew
def test_changing_one_method_reruns_that_method_only(
    project: Path, run: Run, vidpipe: Vidpipe
) -> None:
    both = "pipeline.methods=[linear_probe,zeroi2v]"
    assert vidpipe("params", "--write", *OTHER, "--set", both)[0] == 0
    done = ran(run("dvc", "repro").stdout)
    assert done == {f"{s}@linear_probe" for s in ("train", "evaluate", "export")} | {"report"}
    config = json.loads((project / "models/linear_probe/adapter/config.json").read_text())
    assert config["method_config"]["lr"] == 0.002
    run("git", "checkout", "-q", ".")
    run("dvc", "checkout", "-q")
    for folder in ("models", "results"):
        shutil.rmtree(project / folder / "linear_probe")
    assert ran(run("dvc", "repro").stdout) == set()


def test_a_teammate_pulls_store_and_models_without_computing(
    project: Path, run: Run, tmp_path: Path
) -> None:
    run("dvc", "remote", "add", "--local", "--force", "-d", "team", str(tmp_path / "remote"))
    run("dvc", "push")
    clone = tmp_path / "clone"
    run_in(tmp_path, "git", "clone", "-q", str(project), str(clone))
    run_in(clone, "dvc", "remote", "add", "--local", "-d", "team", str(tmp_path / "remote"))
    run_in(clone, "dvc", "pull", "-q")
    assert (
        run_in(clone, "dvc", "status", "dvc.yaml").stdout.strip()
        == "Data and pipelines are up to date."
    )
    assert ran(run_in(clone, "dvc", "repro").stdout) == set()
    for name in ("data/store/shard-00000.bin", "models/zeroi2v/package/model.safetensors"):
        assert (clone / name).read_bytes() == (project / name).read_bytes()
    assert "zeroi2v" in (clone / "results" / "report" / "accuracy.csv").read_text()


def test_mlflow_holds_one_finished_run_per_stage_and_method(
    project: Path, vidpipe: Vidpipe
) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("vidpipe")
    runs = client.search_runs([experiment.experiment_id], "tags.`vidpipe.method` = 'zeroi2v'")
    stages = ["evaluate", "export", "model", "train"]
    assert sorted(r.data.tags["vidpipe.stage"] for r in runs) == stages
    assert {r.info.status for r in runs} == {"FINISHED"}
    training = next(r for r in runs if r.data.tags["vidpipe.stage"] == "train")
    assert training.data.params["method_config.head_offsets"] == "[-1, 1, -2, 2]"
    assert training.data.metrics["cost.tunable"] > 0
    assert {"git.commit", "data.sha256", "env.torch"} <= set(training.data.tags)
    curve = client.get_metric_history(training.info.run_id, "train_loss")
    assert [m.step for m in curve] == [1, 2]

    for stage in ("evaluate", "export"):  # again: the same run, nothing twice
        assert vidpipe(stage, "--method", "zeroi2v")[0] == 0
    again = client.search_runs([experiment.experiment_id], "tags.`vidpipe.method` = 'zeroi2v'")
    assert {r.info.run_id for r in again} == {r.info.run_id for r in runs}
    with sqlite3.connect(project / "mlflow.db") as store:
        twice = store.execute(
            "select run_uuid, key, step, count(*) from metrics group by 1, 2, 3 having count(*) > 1"
        ).fetchall()
    assert not twice
    assert len(client.search_model_versions("name = 'vidpipe-zeroi2v'")) == 1
    version = client.get_model_version_by_alias("vidpipe-zeroi2v", "candidate")
    assert int(version.version) == 1


def test_the_registered_model_answers(project: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/vidpipe-zeroi2v@candidate")
    videos = sorted((project / "data" / "synth").glob("*/*.mp4"))[:3]
    table = pd.DataFrame({"bytes": [video.read_bytes() for video in videos]})
    answers = model.predict(table)
    assert answers.reason.tolist() == [None] * 3
    for labels in answers.labels:
        assert {each["label"] for each in labels} == {"move_left", "move_right"}
        assert sum(each["score"] for each in labels) == pytest.approx(1, abs=1e-5)


@pytest.mark.long
def test_two_ray_workers_train_as_one_process_does(project: Path, tmp_path: Path, run: Run) -> None:
    """Real Ray workers, DDP over gloo; the same global batches, so nearly the same curve."""
    out = tmp_path / "two"
    (out / "data").mkdir(parents=True)
    shutil.copytree(project / "data" / "store", out / "data" / "store")
    options = ("--method", "zeroi2v", "--set", "train.num_workers=2", "--out", str(out))
    run("vidpipe", "train", *options)
    two = pd.read_csv(out / "results" / "zeroi2v" / "history.csv")
    one = pd.read_csv(project / "results" / "zeroi2v" / "history.csv")
    np.testing.assert_allclose(two.train_loss, one.train_loss, rtol=1e-4)
    np.testing.assert_allclose(two.val_loss, one.val_loss, rtol=1e-4)


def test_damaged_videos_do_not_stop_the_run(
    project: Path, tmp_path: Path, vidpipe: Vidpipe
) -> None:
    root = tmp_path / "videos"
    shutil.copytree(project / "data" / "synth", root)
    broken = sorted(root.glob("move_left/*.mp4"))[:2]
    broken[0].write_bytes(b"")
    broken[1].write_bytes(broken[1].read_bytes()[:500])
    twin = sorted(root.glob("move_right/*.mp4"))[:2]
    twin[1].write_bytes(twin[0].read_bytes())
    out = tmp_path / "out"
    options = ("--data-root", str(root), "--out", str(out), "--set", "extract.max_bad_fraction=0.5")
    assert vidpipe("extract", *options)[0] == 0
    counts = json.loads((out / "results" / "extract.json").read_text())
    assert counts["clips"] == 21
    reasons = ("undecodable", "truncated", "duplicate")
    assert [counts[f"quarantined_{reason}"] for reason in reasons] == [1, 1, 1]
    rows = pd.read_parquet(out / "data" / "store" / "manifest.parquet")
    assert set(rows[rows.status != "ok"].reason) == set(reasons)

    before = (out / "data" / "store" / "shard-00000.bin").read_bytes()
    strict = (*options[:-1], "extract.max_bad_fraction=0.1")
    code, line = vidpipe("extract", *strict)
    assert code == 1
    assert "3 of 24 videos are bad (undecodable 1, truncated 1, duplicate 1" in line
    assert (out / "data" / "store" / "shard-00000.bin").read_bytes() == before
    assert vidpipe("extract", *options, "--set", "extract.num_workers=1")[0] == 0
    assert (out / "data" / "store" / "shard-00000.bin").read_bytes() == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("extract", "--data-root", "nowhere"), "data.root (--data-root): nowhere: no such folder"),
        (("extract", "--set", "data.classes=[move_left,move_rihgt]"), "nearest is move_rihgt"),
        (("extract", "--set", "data.annotations=none.csv"), "none.csv: no such file"),
        (("train", "--method", "st_adaptor"), "nearest is st_adapter"),
        (("train", "--method", "aim", "--set", "backbone.weights=no.safetensors"), "no such file"),
        (("train", "--method", "aim", "--out", "elsewhere"), "run `vidpipe extract` first"),
        (("train", "--method", "aim", "--set", "train.memory_gb_per_worker=9000"), "GB free"),
        (("evaluate", "--method", "aim", "--out", "elsewhere"), "config.json: no such file"),
        (("report", "--out", "elsewhere"), "nothing evaluated yet"),
        (("params", "--recipe", "kinetics"), "no such recipe"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    vidpipe: Vidpipe, command: tuple[str, ...], message: str
) -> None:
    code, line = vidpipe(*command)
    assert code == 1
    assert message in line


@pytest.mark.skipif(not (PROJECT / "../shared/weights").is_dir(), reason="../shared is not here")
def test_real_clips_and_real_weights_by_a_recipe(vidpipe: Vidpipe, tmp_path: Path) -> None:
    """Three of Weizmann's classes with DINOv2 ViT-S/14, unchanged code: one short epoch of the linear
    probe."""
    shared = (PROJECT / ".." / "shared").resolve()
    videos, out = tmp_path / "videos", tmp_path / "weizmann"
    for name in ("bend", "jack", "wave1"):
        shutil.copytree(shared / "data" / "weizmann9" / name, videos / name)
    rows = pd.read_csv(shared / "data" / "weizmann9" / "index.csv")
    rows[rows.label.isin(["bend", "jack", "wave1"])].to_csv(videos / "index.csv", index=False)
    code, line = vidpipe(
        *("run", "--recipe", "weizmann", "--methods", "linear_probe"),
        *("--data-root", str(videos), "--out", str(out)),
        *(
            "--set",
            f"backbone.weights={shared / 'weights' / 'vit_small_patch14_dinov2.safetensors'}",
        ),
        *("--set", "transform.size=56", "--set", "evaluate.temporal_clips=1"),
        *("--set", "train.epochs=1", "--set", "train.warmup_epochs=0.5"),
        # Programs are traced above: of twelve blocks it takes a dozen seconds.
        *("--set", "export.formats=[]"),
    )
    assert code == 0, line
    counts = json.loads((out / "results" / "extract.json").read_text())
    assert counts["clips"] == 45
    assert counts["quarantined"] == 0
    result = json.loads((out / "results" / "linear_probe" / "eval.json").read_text())
    assert result["clips"] == 9


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, "the MLflow server died"
        with socket.socket() as attempt:
            attempt.settimeout(1)
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("the MLflow server did not start")
