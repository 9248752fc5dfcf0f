"""Checkpoints to go on from: tensors as safetensors, everything else as JSON, no pickle.

A folder a checkpoint, named by its step and by the epochs that are done; it appears whole or not at
all, and never under a name that was used before, so that there is no moment without a last one.
    trained.safetensors     the trained parameters
    optimizer.safetensors   AdamW's moments and step counts, as NAME:exp_avg
    ema.safetensors         with train.ema_decay
    state.json              where the training is: `Progress`, and the loss scale of fp16
Random numbers need no state: samples and dropout are functions of seed, epoch and clip, and torch's
generators are seeded anew in each step. Not chosen: torch.save, which pickles; one folder that is
replaced, which is missing for a moment between two renames.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder, read_json
from vidpipe.methods.base import VideoModel
from vidpipe.training.ema import Ema
from vidpipe.training.metrics import EpochMetrics, EpochTiming, Sums
from vidpipe.training.mirror import Mirror
from vidpipe.training.optim import trained_parameters
from vidpipe.weights import refuse_mismatch

VERSION = 2
NAME = re.compile(r"\d{8}-\d{4}")


@dataclass
class Progress:
    """Where a training is. All but the tensors that the rest of it depends on."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """Epochs done, with their validation."""
    batch: int = 0
    """Batches done of the epoch after them."""
    sums: Sums = field(default_factory=Sums)
    """Over those batches."""
    history: list[EpochMetrics] = field(default_factory=list)
    timing: list[EpochTiming] = field(default_factory=list)
    best_score: float | None = None
    best: str | None = None
    """Name of the checkpoint with the highest validation score so far; the first of equals."""
    finished: bool = False
    lr: float | None = None
    """The peak rate that was found for `lr: auto`."""

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """Raises VidpipeError when there is no such checkpoint, or one of another version."""
        return cls._of(_read_card(folder)["progress"])

    @classmethod
    def _of(cls, plain: Mapping[str, Any]) -> Progress:
        history = [EpochMetrics(**row) for row in plain["history"]]
        timing = [EpochTiming(**row) for row in plain["timing"]]
        sums = Sums(**plain["sums"])
        if "best_top1" in plain:  # as it was called before
            plain = {**plain, "best_score": plain["best_top1"]}
        known = {name: plain[name] for name in cls.__dataclass_fields__ if name in plain}
        return cls(**{**known, "history": history, "timing": timing, "sums": sums})


class Checkpoints:
    """The checkpoints of one training, in one folder; the last is kept, and what else is of use.

    `mirror`: an fsspec URL that holds a copy of each, to go on from where the folder is lost.
    `keep_best`: also keep the one of the highest validation score, to publish it.
    """

    def __init__(self, folder: Path, mirror: str | None = None, keep_best: bool = False) -> None:
        self.folder, self.keep_best = folder, keep_best
        self.mirror = Mirror(mirror) if mirror else None

    def names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if NAME.fullmatch(p.name))

    def last(self) -> Path | None:
        names = self.names()
        return self.folder / names[-1] if names else None

    def best(self) -> Path | None:
        """None before the first validation, and where it was not kept."""
        last = self.last()
        name = Progress.read(last).best if last else None
        return self.folder / name if name and (self.folder / name).exists() else None

    def fetch(self, name: str | None = None) -> None:
        """Have checkpoint `name` here, or the mirror's last one where that is newer than ours."""
        if self.mirror is None:
            return
        if name is None:
            names = [name for name in self.mirror.names() if NAME.fullmatch(name)]
            last = self.last()
            if not names or (last is not None and names[-1] <= last.name):
                return
            name = names[-1]
        if not (self.folder / name).exists():
            self.mirror.pull(name, self.folder)
            best = Progress.read(self.folder / name).best
            if self.keep_best and best and not (self.folder / best).exists():
                self.mirror.pull(best, self.folder)

    def clean(self) -> None:
        """Remove what a kill left half-written; for the only process that writes here."""
        for path in self.folder.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)

    def save(
        self,
        progress: Progress,
        model: VideoModel,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None,
        scaler: torch.amp.GradScaler,
        *,
        failed: bool = False,
    ) -> Path:
        """Write a checkpoint, then remove those before it that are of no use. `failed`: under that name,
        to be looked at and never resumed from.

        Raises VidpipeError when it cannot be written; the last one is then as it was.
        """
        name = "failed" if failed else f"{progress.step:08d}-{progress.epoch:04d}"
        target = self.folder / name
        with self._explained(target):
            if target.exists() and not failed:
                return target
            with atomic_folder(target) as folder:
                parameters = trained_parameters(model)
                _save(folder / "trained.safetensors", parameters)
                _save(folder / "optimizer.safetensors", _moments(parameters, optimizer))
                if ema is not None:
                    _save(folder / "ema.safetensors", ema.average)
                card = {
                    "version": VERSION,
                    "progress": asdict(progress),
                    "scaler": scaler.state_dict(),
                }
                (folder / "state.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
            kept = {name, progress.best} if self.keep_best and progress.best else {name}
            if not failed:
                for old in self.names():
                    if old not in kept:
                        # Under its own name, a folder half removed would pass for a checkpoint.
                        gone = (self.folder / old).rename(self.folder / f".{old}.gone")
                        shutil.rmtree(gone)
        if self.mirror is not None and not failed:
            self.mirror.push(target)
            self.mirror.keep(kept)
        return target

    @contextmanager
    def _explained(self, target: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            last = self.last()
            safe = f"{last} is intact" if last else "there is none yet"
            raise VidpipeError(
                f"{target.parent}: this checkpoint could not be written ({reason}), {safe}; make "
                "room there, or make the folder writable, and run the same command again to go on"
            ) from error


def restore(
    folder: Path,
    model: VideoModel,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    scaler: torch.amp.GradScaler,
) -> Progress:
    """Everything as it was when `folder` was saved, in place.

    Raises VidpipeError when the checkpoint is damaged or of another model.
    """
    card = _read_card(folder)
    parameters = trained_parameters(model)
    device = next(iter(parameters.values())).device
    _copy(folder / "trained.safetensors", parameters)
    optimizer.state.clear()
    for key, tensor in _load(folder / "optimizer.safetensors").items():
        name, _, moment = key.rpartition(":")
        if name not in parameters:
            raise VidpipeError(
                f"{folder}: holds moments of {name}, which this model does not train"
            )
        optimizer.state[parameters[name]][moment] = tensor.to(device)
    if ema is not None:
        _copy(folder / "ema.safetensors", ema.average)
    if scaler.is_enabled():
        scaler.load_state_dict(card["scaler"])
    return Progress._of(card["progress"])


def load_result(folder: Path, model: VideoModel) -> Progress:
    """The weights to publish, into `model`: the average where there is one."""
    average = folder / "ema.safetensors"
    file = average if average.exists() else folder / "trained.safetensors"
    _copy(file, trained_parameters(model))
    return Progress.read(folder)


def _moments(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return {
        f"{name}:{moment}": tensor
        for name, parameter in parameters.items()
        for moment, tensor in optimizer.state.get(parameter, {}).items()
    }


def _save(file: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, file)


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise VidpipeError(
            f"{file}: not a readable checkpoint ({error}); remove {file.parent} to go on from the "
            "one before it, or to start anew"
        ) from None


@torch.no_grad()
def _copy(file: Path, tensors: Mapping[str, Tensor]) -> None:
    state = _load(file)
    refuse_mismatch(str(file), dict(tensors), state)
    for name, tensor in tensors.items():
        tensor.copy_(state[name])


def _read_card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = read_json(folder / "state.json")
    if card.get("version") != VERSION:
        raise VidpipeError(
            f"{folder}: a checkpoint of version {card.get('version')!r}, expected {VERSION}; remove "
            "it to start anew"
        )
    return card
