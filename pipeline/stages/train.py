"""Stage `train`: adapters on a frozen backbone, by Ray Train, tracked by MLflow."""

from __future__ import annotations

import io
import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.infra import offsets
from pipeline.infra.console import console
from pipeline.infra.mlflow.tracking import TrackedRun, tracked_run
from pipeline.infra.model_facts import cost_numbers, data_splits, settings
from pipeline.infra.ray import train as cluster
from pipeline.infra.stopping import Interrupted, StopRequest, asked
from pipeline.infra.training_display import TrainingDisplay
from pipeline.infra.training_folder import alone, remove
from pipeline.infra.training_setup import TrainingSetup, searches_offsets, seeded_model
from pipeline.infra.workspace import Workspace, data_hash, folder_hash, open_store, training_hash
from vidpipe.cpu import use_cpu
from vidpipe.device import choose_device, set_determinism
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.evaluation.thresholds import with_thresholds
from vidpipe.files import atomic_folder, read_json, remove_temporary, write_json, write_text
from vidpipe.params import Params, deciding_sections
from vidpipe.profile import cost
from vidpipe.tasks.clips import open_clips, open_views
from vidpipe.trained.adapter import load_adapter, save_adapter
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.training.metrics import EpochMetrics, EpochTiming, StepInfo
from vidpipe.training.state import Checkpoints, Progress, load_result
from vidpipe.training.validate import validate
from vidpipe.video.store import FrameStore
from vidpipe.weights import read_weights, state_sha256


def run(params: Params, method: str, workspace: Workspace) -> dict[str, Any]:
    """Train `method` and publish its adapter; returns the last epoch's metrics.

    A training that was stopped or killed goes on from its last checkpoint; one whose adapter is
    published is not repeated. What decides both is the hash of all that goes into it.
    Raises Interrupted when asked to stop, its state saved.
    """
    use_cpu(params.train.threads)
    if params.train.num_workers == 0:
        choose_device(params.train.use_gpu)  # refuses before anything is begun
    store = open_store(workspace, params)
    classes = list(store.classes)
    trained = seeded_model(params, method, classes)
    costs = cost(trained.model, trained.form.size)
    identity = training_hash(params, method, workspace, trained.backbone.sha256)
    folder = workspace.ray / f"{method}-{identity}"
    checkpoints = workspace.checkpoints(params, folder.name)
    with alone(folder):
        with tracked_run(params.tracking, "train", method, identity, identity) as tracked:
            tracked.params(_shown_params(params, method))
            tracked.params({"classes": len(classes), "clips": len(store)})
            tracked.tags({"data.sha256": data_hash(workspace, params)})
            tracked.datasets(data_splits(workspace, params))
            tracked.row(settings(params, method), cost_numbers(costs))
            tracked.metrics({f"cost.{k}": v for k, v in vars(costs).items()})
            checkpoints.fetch()
            if checkpoints.last() is None and (done := _published(workspace, method, identity)):
                console.print(
                    f"{method}: this very training is finished, nothing to do; to repeat it, "
                    f"remove {workspace.adapter(method)}"
                )
                _log_adapter(tracked, workspace.adapter(method), params)
                return done
            if searches_offsets(params, method):
                params, trained = _with_offsets(params, method, workspace, folder, tracked)
                costs = cost(trained.model, trained.form.size)
            if not trained.model.trained_names:
                last = _publish_untrained(
                    trained, folder, store, params, workspace, identity, costs
                )
            else:
                if not _finished(checkpoints):
                    _train(params, method, workspace, classes, tracked, folder, checkpoints)
                last = _publish(trained, checkpoints, params, workspace, identity, costs, tracked)
            _log_adapter(tracked, workspace.adapter(method), params)
        # Its state is of no more use, and another training of this name (`dvc repro -f`) is to be one.
        if checkpoints.mirror is not None:
            checkpoints.mirror.remove()
        remove(folder)
        if (searched := workspace.ray / _search_of(folder)).exists():
            remove(searched)
    return last


def _search_of(folder: Path) -> str:
    """Name of the folder of the search that comes before the training in `folder`."""
    return f"offsets-{folder.name}"


def _with_offsets(
    params: Params, method: str, workspace: Workspace, folder: Path, tracked: TrackedRun
) -> tuple[Params, TrainedModel]:
    """`params` with the head offsets that their search finds, and the model before its training."""
    name = _search_of(folder)
    with StopRequest(folder / "stop") as request:
        stop = asked(folder / "stop")
        try:
            found = offsets.search(
                params, method, workspace, name, stop=stop, parent=tracked.run_id
            )
        except TrainingStopped:
            raise Interrupted(
                request.number or 0,
                f"stopped, and saved in {workspace.ray / name}; run the same command again to go on",
            ) from None
    tracked.tags({"head_offsets": found.text})
    tracked.artifact(offsets.publish(found, workspace))
    params = offsets.with_offsets(params, method, found)
    return params, seeded_model(params, method, list(open_store(workspace, params).classes))


def _train(
    params: Params,
    method: str,
    workspace: Workspace,
    classes: list[str],
    tracked: TrackedRun,
    folder: Path,
    checkpoints: Checkpoints,
) -> None:
    payload = {
        "params": params.model_dump(mode="json"),
        "method": method,
        "classes": classes,
        "store": str(workspace.store),
        "cwd": str(Path.cwd()),
        "mlflow": asdict(tracked),
        "run": str(folder),
    }
    with StopRequest(folder / "stop") as request:
        cluster.train(worker, payload, params.train, folder)
        checkpoints.fetch()  # rank 0 may have been on a node that shares no folder with us
        if not _finished(checkpoints):
            if request.number is None:
                raise VidpipeError("training ended before its last epoch; see Ray's log above")
            last = checkpoints.last()  # none while `lr: auto` looks for its rate
            saved = f"stopped, and saved in {last}" if last else "stopped before its first step"
            raise Interrupted(request.number, f"{saved}; run the same command again to go on")


def _finished(checkpoints: Checkpoints) -> bool:
    last = checkpoints.last()
    return last is not None and Progress.read(last).finished


def _published(workspace: Workspace, method: str, identity: str) -> dict[str, Any] | None:
    """The results of the training `identity`, where all of them are in their places."""
    adapter, result = workspace.adapter(method), workspace.result(method, "train.json")
    history = workspace.result(method, "history.csv")
    tensors = adapter / "adapter.safetensors"
    if not ((adapter / "config.json").exists() and result.exists() and history.exists()):
        return None
    training = read_json(adapter / "config.json").get("training", {})
    if training.get("identity") != identity or not tensors.exists():
        return None
    if state_sha256(read_weights(tensors)[0]) != training.get("sha256"):
        return None
    return {k: v for k, v in read_json(result).items() if k != "cost"}


def _shown_params(params: Params, method: str) -> dict[str, Any]:
    """What decides this training, for MLflow's table: the method's own block without its name."""
    sections = {"data": params.data, **deciding_sections(params, "train", method)}
    shown = {key: section.model_dump(mode="json") for key, section in sections.items()}
    return {"method": method, "method_config": shown.pop("methods"), **shown}


def _publish(
    trained: TrainedModel,
    checkpoints: Checkpoints,
    params: Params,
    workspace: Workspace,
    identity: str,
    costs: Any,
    tracked: TrackedRun,
) -> dict[str, Any]:
    """The adapter, proven to load, and the small results; returns the published epoch's metrics.

    history.csv has every epoch, train.json the one whose weights are published, like the adapter's card.
    """
    last = checkpoints.last()
    assert last is not None
    progress = Progress.read(last)
    source = checkpoints.best() if params.train.publish == "best" else last
    if source is None:
        raise VidpipeError(
            f"train.publish: best, but {checkpoints.folder / str(progress.best)} is gone; set it to "
            f"last, or remove {checkpoints.folder} to train anew"
        )
    published = load_result(source, trained.model).epoch
    _log(tracked, progress.history, progress.timing)
    own = params.train.model_dump(mode="json")
    extra = {"epoch": published, "train": own, "identity": identity}
    extra |= {} if progress.lr is None else {"lr": progress.lr}
    if params.train.publish == "best":
        metrics = progress.history[published - 1]
        extra |= {"val_top1": metrics.val_top1, "val_loss": metrics.val_loss}
        extra |= {} if metrics.val_score is None else {"val_score": metrics.val_score}
    rows = [{"epoch": m.epoch, "step": m.step, **m.numbers()} for m in progress.history]
    draft, row = last.parents[1] / "adapter", published - 1
    trained = _with_answers(trained, open_store(workspace, params), params)
    numbers = _write(trained, draft, params, workspace, extra, costs, rows, row)
    # The first epoch pays for warming up and for filling the cache of decoded clips.
    speeds = pd.Series([t.clips_per_s for t in progress.timing if t.clips_per_s > 0], dtype=float)
    steady = speeds.iloc[1:] if len(speeds) > 1 else speeds
    if len(steady):
        speed = {"train_clips_per_s": float(steady.median())}
        write_json(workspace.timing(trained.model.name), speed)
        tracked.metrics(speed)
    return numbers


def _publish_untrained(
    trained: TrainedModel,
    folder: Path,
    store: FrameStore,
    params: Params,
    workspace: Workspace,
    identity: str,
    costs: Any,
) -> dict[str, Any]:
    """The adapter of a method that trains nothing, as it is made, and its validation in this process."""
    console.print(f"{trained.model.name}: nothing to train")
    device = choose_device("auto" if params.train.num_workers else params.train.use_gpu)
    clips = open_clips(store, "val", trained.classes)
    views = open_views(clips, trained.sampling, trained.transform)
    normalisation = trained.backbone.mean, trained.backbone.std
    model = trained.model.to(device)
    network = trained.task.network(model)
    seen = validate(network, views, params.train, normalisation, device, task=trained.task)
    model.to("cpu")
    trained = _with_answers(trained, store, params)
    extra = {"epoch": 0, "train": params.train.model_dump(mode="json"), "identity": identity}
    rows = [{"epoch": 0, "step": 0, "val_loss": seen.loss, "val_top1": seen.top1}]
    rows[0] |= {} if seen.score is None else {"val_score": seen.score}
    return _write(trained, folder / "adapter", params, workspace, extra, costs, rows, 0)


def _with_answers(trained: TrainedModel, store: FrameStore, params: Params) -> TrainedModel:
    """With what its answers need beside probabilities: thresholds, and the length of a window."""
    device = choose_device("auto" if params.train.num_workers else params.train.use_gpu)
    clips = open_clips(store, "train", trained.classes, params.subset)
    if store.has_spans:
        one, between = not trained.task.has_thresholds, params.data.background
        rows = store.rows[(store.rows.split == "train") & (store.rows.label != (between or ""))]
        length = float((rows.end_s - rows.start_s).median())
        trained = replace(trained, window_s=length, background=between if one else None)
    return with_thresholds(trained, clips, device, params.train.precision)


def _write(
    trained: TrainedModel,
    draft: Path,
    params: Params,
    workspace: Workspace,
    extra: dict[str, Any],
    costs: Any,
    rows: list[dict[str, Any]],
    row: int,
) -> dict[str, Any]:
    """The adapter by way of `draft`, history.csv of `rows`, and train.json of the published one."""
    method = trained.model.name
    adapter = workspace.adapter(method)
    results = [workspace.result(method, name) for name in ("history.csv", "train.json")]
    for path in (adapter, *results, workspace.timing(method)):
        remove_temporary(path)
    save_adapter(draft, trained, extra)
    load_adapter(draft, params.backbone.weights)
    with atomic_folder(adapter) as target:
        for file in draft.iterdir():
            shutil.copyfile(file, target / file.name)
    # As whoever reads the table finds it: pandas may read another last digit than it wrote.
    history = pd.read_csv(io.StringIO(pd.DataFrame(rows).to_csv(index=False)))
    write_text(workspace.result(method, "history.csv"), history.to_csv(index=False))
    numbers = {str(k): float(v) for k, v in history.iloc[row].drop("epoch").items()}
    write_json(workspace.result(method, "train.json"), {**numbers, "cost": vars(costs)})
    return numbers


def _log_adapter(run: TrackedRun, adapter: Path, params: Params) -> None:
    run.adapter(adapter, folder_hash(adapter), settings(params, run.method))


def _log(run: TrackedRun, history: list[EpochMetrics], timing: list[EpochTiming]) -> None:
    """Epochs that the run has already are left as they are."""
    for metrics, pace in zip(history, timing, strict=True):
        run.metrics({**metrics.curves(), **vars(pace)}, metrics.epoch)


def worker(payload: dict[str, Any]) -> None:
    """One training worker: builds everything from plain values, so it can run on any node."""
    os.chdir(payload["cwd"])  # paths in params are relative to the project
    params = Params.model_validate(payload["params"])
    method, classes = payload["method"], payload["classes"]
    workspace = Workspace(Path(payload["store"]).parents[1])
    setup = TrainingSetup.build(params, method, workspace, classes)
    folder = Path(payload["run"])
    trainer = setup.trainer(
        cluster.device(payload),
        rank=cluster.rank(),
        world_size=cluster.world_size(),
        checkpoints=Workspace(folder.parents[1]).checkpoints(params, folder.name),
        stop=asked(folder / "stop"),
    )
    with set_determinism(params.train.deterministic), ExitStack() as stack:
        tracked = display = None
        if cluster.rank() == 0:
            tracked = TrackedRun(**payload["mlflow"])
            stack.enter_context(tracked.system_metrics())
            display = stack.enter_context(TrainingDisplay(method, trainer.epochs))
            watch = setup.watch(trainer)

            def on_step(info: StepInfo) -> None:
                display.step(info)
                display.warn(watch.step(info))

            trainer.on_step = on_step
            progress = trainer.progress
            if progress.step:
                display.resumed(str(trainer.resumed_from), progress.step)
                _log(tracked, progress.history, progress.timing)

        def on_epoch(metrics: EpochMetrics, timing: EpochTiming) -> None:
            if tracked is not None and display is not None:
                _log(tracked, [metrics], [timing])
                display.epoch(metrics, timing)
                display.warn(watch.epoch(metrics))
            cluster.report({"epoch": metrics.epoch, **metrics.numbers()})

        def on_rate(lr: float) -> None:
            if tracked is not None and display is not None:
                tracked.metrics({"lr.found": lr})
                console.print(f"{method}: lr auto: {lr:.3g}, well below where the loss rises")

        trainer.on_epoch, trainer.on_rate = on_epoch, on_rate
        trainer.run()
