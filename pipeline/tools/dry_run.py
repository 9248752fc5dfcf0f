"""`vidpipe train --dry-run`: what a training would do, by counting, and by timing a few real steps.

Neither Ray nor MLflow is started and nothing is written. What is timed is one worker's share of the
Trainer's own steps, on this machine and real clips of the store; that several workers do not slow each
other down is assumed.
"""

from __future__ import annotations

import statistics

import torch

from pipeline.infra.pace import duration, real_steps, view_seconds
from pipeline.infra.training_setup import TrainingSetup
from pipeline.infra.workspace import Workspace, training_hash
from vidpipe.device import autocast_dtype, choose_device, set_determinism
from vidpipe.files import read_json
from vidpipe.image_size import Size
from vidpipe.params import Params
from vidpipe.profile import parameters, saved_by_block
from vidpipe.profile import trained as count_trained
from vidpipe.training.loop import Trainer
from vidpipe.training.recompute import choose_recomputed
from vidpipe.training.state import Progress

WARM_UP, TIMED = 1, 3


def run(params: Params, method: str, workspace: Workspace) -> None:
    """Print the plan of `method`'s training."""
    for name, value in plan(params, method, workspace).items():
        print(f"{name:20} {value}")


def plan(params: Params, method: str, workspace: Workspace) -> dict[str, str]:
    """The lines of the plan, name -> text. Raises VidpipeError as the training would."""
    train = params.train
    device, workers = choose_device(train.use_gpu), max(1, train.num_workers)
    setup = TrainingSetup.build(params, method, workspace)
    trained, trainer = setup.trained, setup.trainer(device, cached=False, world_size=workers)
    epochs, total, batches = trainer.epochs, trainer.total_steps, trainer.batches
    tunable = sum(p.numel() for p in trainer.trained.values())
    without_head = tunable - count_trained(trained.model.head)
    needed = _memory_line(trainer, trained.form.size)

    steps = real_steps(trainer)
    with set_determinism(train.deterministic):
        timed = [next(steps) for _ in range(WARM_UP + TIMED)][WARM_UP:]
    step = statistics.median(info.seconds for info in timed)
    waited = sum(info.waited for info in timed) / sum(info.seconds for info in timed)
    validations = -(-epochs // train.eval_every)
    validation = view_seconds(setup, device) * len(setup.val_set) / workers
    hours = total * step + validations * validation
    identity = training_hash(params, method, workspace, trained.backbone.sha256)
    name = f"{method}-{identity}"
    parts = f" in parts of {trainer.clips_at_once}" if train.accumulate > 1 else ""
    share = batches.batch_size // workers
    where = f"{train.num_workers} Ray workers" if train.num_workers else "this process"
    return {
        "run": name,
        "resumes": _resumes(params, workspace, method, identity),
        "device": f"{_device_name(device)}, {where}, {train.loader_workers} loader processes each",
        "data": f"{len(setup.train_set):,} clips to train, {len(setup.val_set):,} to validate",
        "batch": f"{batches.batch_size} clips a step: {workers} x {share}{parts}",
        "learning rate": _rate(trainer),
        "steps": f"{total:,} in {epochs} epochs of {len(batches):,}; validated {validations} times",
        "trained parameters": f"{tunable:,}, {without_head:,} without head",
        "memory": needed + _measured(device),
        "a step": f"{step:.3g} s, {waited:.0%} of it waiting for clips "
        f"(median of {TIMED} on real clips; loss {timed[-1].loss:.3g})",
        "time": f"{duration(hours)}: {duration(total * step)} of steps, "
        f"{duration(validations * validation)} of validation",
    }


def _rate(trainer: Trainer) -> str:
    config, clips = trainer.model.config, trainer.config.batch_size
    peak = f"{config.peak_lr(clips):.3g} at its peak"
    if config.lr == "auto":
        return "found by a range test of at most a hundred steps, before the first"
    if config.lr is not None:
        return peak
    return f"{peak}: {config.base_lr:.3g} for {config.base_batch_size} clips a step, linear in them"


def _memory_line(trainer: Trainer, size: Size) -> str:
    """Memory of one worker, with its clips of a step at once and the blocks that it recomputes."""
    model, train, clips = trainer.model, trainer.config, trainer.clips_at_once
    device = trainer.device
    again = choose_recomputed(model, size, clips, train, device)
    saved = saved_by_block(model, size)
    kept = saved.rest + sum(saved.blocks[again:]) + sum(saved.inputs[:again])
    kept += max(saved.blocks[:again], default=0)
    activations = (
        kept * clips / (1 if autocast_dtype(train.precision, device) is None else 2) / 2**30
    )
    weights = 4 * parameters(model) / 2**30
    # A gradient, AdamW's two moments and, with train.ema_decay, the average.
    each = 12 if trainer.ema is None else 16
    optimizer = each * sum(p.numel() for p in trainer.trained.values()) / 2**30
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
