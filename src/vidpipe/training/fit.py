"""A training from Python: any torch data set, this process, the pipeline's own trainer."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch.utils.data import Dataset

from vidpipe.config.identity import config_hash
from vidpipe.config.messages import explain, nearest
from vidpipe.data.own import OwnClips, OwnTrainSet, OwnViewSet
from vidpipe.device import choose_device, set_determinism
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.tasks.registry import SINGLE_LABEL, TASKS
from vidpipe.training.config import TrainConfig
from vidpipe.training.loop import Trainer
from vidpipe.training.metrics import EpochMetrics, EpochTiming
from vidpipe.training.rate_watch import RateWatch
from vidpipe.training.state import Checkpoints

logger = logging.getLogger(__name__)

ELSEWHERE = {
    "num_workers": "several workers are the command line's",
    "worker_restarts": "several workers are the command line's",
    "cpus_per_worker": "several workers are the command line's",
    "memory_gb_per_worker": "several workers are the command line's",
    "starts_from": "load the weights into the model first",
    "publish": "the model is left as the last epoch made it",
    "shuffle": "it is about the shards of a frame store",
    "balance": "the data set is your own: give it the clips as often as they shall be seen",
    "cache_features": "the data set is your own: whether its clips stay the same is not known",
    "cache_folder": "no features are kept",
    "cache_mb": "the data set is your own",
    "max_bad_reads": "the data set is your own, and its errors are raised",
}
"""Fields of TrainConfig that have no meaning here, and why."""


def fit(
    model: VideoModel,
    train: Dataset[Any],
    val: Dataset[Any] | None = None,
    *,
    epochs: int = 5,
    batch_size: int = 8,
    lr: float | None = None,
    weight_decay: float | None = None,
    task: str = SINGLE_LABEL.name,
    checkpoints: str | Path | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> list[EpochMetrics]:
    """Train `model` in place, as `vidpipe train` does, in this process.

    The same arguments, data and starting weights give the same bits, whatever ran before. Ctrl-C ends
    the step first and saves, if there is a folder to save in; a second one ends at once.

    Args:
        model: of `create_model`. It moves to the device, and is left there, in evaluation mode.
        train: a torch Dataset with a length and items (frames, label): uint8 RGB (T, 3, H, W) with
            the model's number of frames and any size (resized and cropped as by `model.preprocess`),
            and a class index, or with `task="multilabel"` (C,) 0 and 1. Augmentation is the data set's;
            what it draws from the global generators of torch, numpy and random follows `seed`.
        val: the same, to validate on after each epoch; None: no validation.
        epochs: passes over `train`.
        batch_size: clips of one optimizer step.
        lr: peak learning rate. None: the model's option `lr`, or without one its `base_lr`, which grows
            with the batch. AdamW, warm-up and cosine are as for the command line.
        weight_decay: None: the model's option `weight_decay`.
        task: `"multilabel"`: a clip has any number of classes, or none.
        checkpoints: a folder that the training is saved in and goes on from: the same call after an
            interruption ends with the same bits, a finished one returns at once. Other settings or
            another model have another place in it.
        on_epoch: called with each epoch's numbers, such as `print`.
        device: None: a GPU where there is one.
        options: any other field of `train` in params.yaml that means something here, such as
            `accumulate`, `ema_decay`, `label_smoothing`, `loader_workers`, `seed`. Unless given, the
            warm-up begins at a tenth of the rate and lasts a tenth of the epochs.

    Returns:
        The numbers of every epoch: loss and accuracy of training and validation, learning rate, mean
        gradient norm. Accuracies are fractions.

    Raises:
        VidpipeError: for an impossible option, an item of another form (by its index), or a loss or
            gradient that is not finite.
        KeyboardInterrupt: after Ctrl-C, with the model as the last finished step left it.

    Example:
        >>> import torch, vidpipe
        >>> from vidpipe.backbones.still import WEIGHTS
        >>> model = vidpipe.create_model(
        ...     "st_adapter", "vit_still_patch12_48", num_classes=2, num_frames=4, weights=WEIGHTS
        ... )
        >>> clips = torch.randint(0, 256, (4, 4, 3, 48, 48), dtype=torch.uint8)
        >>> data = torch.utils.data.TensorDataset(clips, torch.tensor([0, 1, 0, 1]))
        >>> history = vidpipe.fit(model, data, data, epochs=2, batch_size=4, lr=1e-3)
        >>> [metrics.epoch for metrics in history]
        [1, 2]
    """
    if not isinstance(model, VideoModel) or not hasattr(model, "backbone"):
        raise VidpipeError(
            f"model: a {type(model).__name__}, expected one that vidpipe.create_model made"
        )
    if task not in TASKS:
        raise VidpipeError(f"task {task}: no such task{nearest(task, TASKS)}")
    config = _config({"epochs": epochs, "batch_size": batch_size, **options})
    _set_rates(model, lr, weight_decay)
    facts = (model.num_frames, model.head.out_features, model.form, config.seed)
    several = task == "multilabel"
    train_clips = OwnClips(train, "train", *facts, several)
    val_clips = None if val is None else OwnClips(val, "val", *facts, several)
    saved = None
    if checkpoints is not None:
        form = (*facts[:2], *model.form.identity(), config.seed)
        what = (model.name, model.config, model.backbone.sha256, *form, len(train_clips))
        if model.backbone.config.pool != "zoo":
            what += (model.backbone.config.pool,)
        if task != SINGLE_LABEL.name:
            what += (task,)
        folder = Path(checkpoints) / f"{model.name}-{config_hash(config, *what)}"
        saved = Checkpoints(folder, config.storage)
    where = choose_device(config.use_gpu) if device is None else torch.device(device)

    def warn(text: str | None) -> None:
        if text is not None:
            logger.warning("%s", text)

    def report(metrics: EpochMetrics, timing: EpochTiming) -> None:
        logger.info("epoch %d of %d: %s", metrics.epoch, trainer.epochs, metrics.numbers())
        warn(watch.epoch(metrics))
        if on_epoch is not None:
            on_epoch(metrics)

    exact = set_determinism(config.deterministic)
    with _as_before(where, config.threads), exact, _interrupts_end_a_step() as asked:
        trainer = Trainer(
            model,
            OwnTrainSet(train_clips),
            None if val_clips is None else OwnViewSet(val_clips),
            config,
            (model.backbone.mean, model.backbone.std),
            device=where,
            task=TASKS[task],
            checkpoints=saved,
            stop=asked,
            on_step=lambda info: warn(watch.step(info)),
            on_epoch=report,
        )
        watch = RateWatch(
            "base_lr" if model.config.lr is None else "lr",
            lambda: trainer.peak_lr,
            guess=trainer.task.guess(facts[1]),
            chance=1 / facts[1],
            clips=trainer.batches.clips,
            epochs=trainer.epochs,
            warmup=config.warmup_epochs,
            history=trainer.progress.history,
        )
        try:
            return trainer.run()
        except TrainingStopped:
            place = f", saved in {saved.last()}" if saved is not None else ""
            raise KeyboardInterrupt(f"stopped after step {trainer.progress.step}{place}") from None
        finally:
            model.eval()


def _config(options: dict[str, Any]) -> TrainConfig:
    for name in options:
        if name in ELSEWHERE:
            raise VidpipeError(f"{name}: has no meaning for vidpipe.fit; {ELSEWHERE[name]}")
    if "warmup_epochs" not in options and isinstance(options["epochs"], int):
        options["warmup_epochs"] = 0 if options.get("steps") else options["epochs"] / 10
    options.setdefault("warmup_from", 0.1)
    options.setdefault("threads", torch.get_num_threads())
    try:
        return TrainConfig.model_validate(options)
    except ValidationError as error:
        raise VidpipeError(explain(error, TrainConfig)) from None


def _set_rates(model: VideoModel, lr: float | None, weight_decay: float | None) -> None:
    """The adapter's card records them, as of any training."""
    given = {"lr": lr, "weight_decay": weight_decay}
    changed = {name: value for name, value in given.items() if value is not None}
    kind = type(model.config)
    try:
        model.config = kind.model_validate({**model.config.model_dump(), **changed})
    except ValidationError as error:
        raise VidpipeError(explain(error, kind)) from None


@contextmanager
def _as_before(device: torch.device, threads: int) -> Iterator[None]:
    """The caller's random numbers and number of threads are afterwards what they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interrupts_end_a_step() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed. A second one raises KeyboardInterrupt, as without us.

    Only where it would have raised that: in the main thread, and where nobody else handles the signal.
    """
    asked = threading.Event()
    plain = signal.default_int_handler
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not plain:
        yield asked.is_set
        return

    def note(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, plain)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, plain)
