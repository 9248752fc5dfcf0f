"""`vidpipe train --dry-run`: what a training would do, by counting, and by timing a few real steps.

Neither Ray nor MLflow is started and nothing is written. What is timed is one worker's share, on real
clips of the store; that several workers do not slow each other down is assumed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator
from dataclasses import dataclass
from itertools import count

import torch
import torch.nn.functional as F

from pipeline.infra.workspace import Workspace, open_store, training_hash
from vidpipe.cpu import use_cpu
from vidpipe.data.batches import EpochBatches
from vidpipe.data.dataset import Clips, TrainSet, ViewSet, train_loader, view_loader
from vidpipe.data.mixing import PairMixer
from vidpipe.data.model_input import to_input
from vidpipe.device import choose_device
from vidpipe.files import read_json
from vidpipe.params import Params
from vidpipe.profile import parameters, saved_by_block
from vidpipe.trained.adapter import new_model
from vidpipe.trained.card import TrainedModel
from vidpipe.training.config import TrainConfig
from vidpipe.training.optim import autocast, autocast_dtype, make_optimizer, set_lr
from vidpipe.training.recompute import choose_recomputed
from vidpipe.training.state import Progress

WARM_UP, TIMED = 1, 3


@dataclass(frozen=True)
class Step:
    """Of one optimizer step: the loss of its last part, and the seconds it took, waiting included."""

    loss: float
    seconds: float
    waited: float


def run(params: Params, method: str, workspace: Workspace) -> None:
    """Print the plan of `method`'s training."""
    for name, value in plan(params, method, workspace).items():
        print(f"{name:20} {value}")


def plan(params: Params, method: str, workspace: Workspace) -> dict[str, str]:
    """What there is to print, in order. Raises VidpipeError as the training would."""
    train = params.train
    use_cpu(train.threads)
    device, workers = choose_device(train.use_gpu), max(1, train.num_workers)
    store = open_store(workspace, params)
    torch.manual_seed(train.seed)
    trained = new_model(params, method, list(store.classes))
    train_clips = Clips(store, "train", store.classes, params.subset)
    val_clips = Clips(store, "val", store.classes)
    train_set = TrainSet(train_clips, params.sampling, params.transform, train.seed)
    batches = epoch_batches(train_set, params)
    epochs = train.epochs if train.steps is None else -(-train.steps // len(batches))
    total = train.epochs * len(batches) if train.steps is None else train.steps
    share = -(-batches.batch_size // (workers * train.accumulate))
    tunable = sum(p.numel() for p in trained.model.parameters() if p.requires_grad)
    needed = _memory_line(trained, share, params, device)

    steps = real_steps(trained, train_set, params, device)
    timed = [next(steps) for _ in range(WARM_UP + TIMED)][WARM_UP:]
    steps.close()
    step = statistics.median(s.seconds for s in timed)
    waited = sum(s.waited for s in timed) / sum(s.seconds for s in timed)
    validations = -(-epochs // train.eval_every)
    view_set = ViewSet(val_clips, params.sampling, params.transform)
    validation = _view_seconds(trained, view_set, train, share, device) * len(val_clips) / workers
    hours = total * step + validations * validation
    identity = training_hash(params, method, workspace, trained.backbone.sha256)
    name = f"{method}-{identity}"
    parts = f" in {train.accumulate} parts" if train.accumulate > 1 else ""
    where = f"{train.num_workers} Ray workers" if train.num_workers else "this process"
    return {
        "run": name,
        "resumes": _resumes(params, workspace, method, identity),
        "device": f"{_device_name(device)}, {where}, {train.loader_workers} loader processes each",
        "data": f"{len(train_clips):,} clips to train, {len(val_clips):,} to validate",
        "batch": f"{batches.batch_size} clips a step: {workers} x {share * train.accumulate}{parts}",
        "steps": f"{total:,} in {epochs} epochs of {len(batches):,}; validated {validations} times",
        "trained parameters": f"{tunable:,}, {tunable - parameters(trained.model.head):,} without head",
        "memory": needed + _measured(device),
        "a step": f"{step:.3g} s, {waited:.0%} of it waiting for clips "
        f"(median of {TIMED} on real clips; loss {timed[-1].loss:.3g})",
        "time": f"{duration(hours)}: {duration(total * step)} of steps, "
        f"{duration(validations * validation)} of validation",
    }


def epoch_batches(train_set: TrainSet, params: Params) -> EpochBatches:
    """The first worker's share of each global batch, as training cuts them."""
    train = params.train
    return EpochBatches(
        len(train_set),
        train.batch_size,
        train.seed,
        0,
        max(1, train.num_workers),
        shards=train_set.clips.shards if train.shuffle == "shards" else None,
        pairs=PairMixer.of(params.transform, train.seed) is not None,
        drop_last=train.drop_last,
    )


def real_steps(
    trained: TrainedModel, train_set: TrainSet, params: Params, device: torch.device
) -> Generator[Step]:
    """Optimizer steps of one worker at the peak rate, endlessly; the model changes in memory only."""
    train, model = params.train, trained.model.to(device).train()
    mean_std = trained.backbone.mean, trained.backbone.std
    mixer = PairMixer.of(params.transform, train.seed)
    optimizer = make_optimizer(model, train, device)
    set_lr(optimizer, model.config.lr)
    batches = epoch_batches(train_set, params)
    loader = train_loader(train_set, batches, train.loader_workers, train.prefetch)
    started = time.perf_counter()
    for epoch in count():
        batches.epoch = epoch
        for batch in loader:
            waited = time.perf_counter() - started
            optimizer.zero_grad(set_to_none=True)
            clips, value = len(batch["label"]), 0.0
            size = -(-clips // train.accumulate)
            for first in range(0, clips, size):
                part = slice(first, first + size)
                x = to_input(batch["video"][part].to(device, non_blocking=True), *mean_std)
                labels = target = batch["label"][part].to(device, non_blocking=True)
                ids = batch["index"][part].tolist()
                mixed = mixer(x, labels, ids, epoch) if mixer else None
                with autocast(train, device):
                    logits = model(x if mixed is None else mixed.video).float()
                if mixed is not None:
                    target = mixed.targets(logits.shape[1])
                loss = F.cross_entropy(logits, target, label_smoothing=train.label_smoothing)
                (loss * len(ids) / clips).backward()
                value = loss.item()  # a device sync: the clock waits for the work
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            yield Step(value, now - started, waited)
            started = time.perf_counter()


@torch.no_grad()
def _view_seconds(
    trained: TrainedModel, views: ViewSet, train: TrainConfig, clips: int, device: torch.device
) -> float:
    """Seconds a clip of validation, from one batch of it."""
    model = trained.model.eval()
    started = time.perf_counter()
    batch = next(iter(view_loader(views, clips)))
    x = to_input(batch["video"][:, 0].to(device), trained.backbone.mean, trained.backbone.std)
    with autocast(train, device):
        model(x).sum().item()
    return (time.perf_counter() - started) / len(x)


def _memory_line(trained: TrainedModel, clips: int, params: Params, device: torch.device) -> str:
    """Of one worker with `clips` clips at once; sets what is recomputed for it, as training does."""
    train, model, size = params.train, trained.model, params.transform.size
    again = model.recomputed = choose_recomputed(model, size, clips, train, device)
    saved = saved_by_block(model, size)
    kept = saved.rest + sum(saved.blocks[again:]) + sum(saved.inputs[:again])
    kept += max(saved.blocks[:again], default=0)
    activations = kept * clips / (1 if autocast_dtype(train, device) is None else 2) / 2**30
    weights = 4 * parameters(model) / 2**30
    # A gradient and AdamW's two moments.
    optimizer = 12 * sum(p.numel() for p in model.parameters() if p.requires_grad) / 2**30
    note = f", {again} of {len(saved.blocks)} blocks recomputed" if again else ""
    return (
        f"about {weights + optimizer + activations:.2g} GiB a worker: weights {weights:.2g}, gradients "
        f"and AdamW {optimizer:.2g}, activations of {clips} clips {activations:.2g}{note}"
    )


def _measured(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    peak, whole = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
    return f"; measured {peak / 2**30:.2g} of {whole / 2**30:.3g} GiB"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


def _resumes(params: Params, workspace: Workspace, method: str, identity: str) -> str:
    last = workspace.checkpoints(params, f"{method}-{identity}").last()
    if last is not None:
        return f"yes: after step {Progress.read(last).step:,}, from {last}"
    card = workspace.adapter(method) / "config.json"
    if card.exists() and read_json(card).get("training", {}).get("identity") == identity:
        return f"no: it is finished, its adapter is {card.parent}"
    return "no: nothing of this configuration was begun here"


def duration(seconds: float) -> str:
    """In the unit a person would use."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"
