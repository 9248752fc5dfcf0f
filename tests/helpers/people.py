"""A small data set in AVA's format: two squares side by side, each of which rises, sinks or stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from small_models import NAME
from tiny import randomise
from videos import write_video

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import architecture, load_backbone
from vidpipe.data.config import DataConfig, SamplingConfig, TransformConfig
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.tasks.registry import TASKS
from vidpipe.trained.trained_model import TrainedModel

FPS, SECONDS, HEIGHT, WIDTH, SIDE = 25, 3, 32, 64, 10
ACTIONS = {1: "rise", 2: "sink", 4: "bright"}
SAMPLING = SamplingConfig(strategy="dense", num_frames=4, stride=5)
EXCLUDED = ("val_0", 2)


def people(root: Path, train: int = 6, val: int = 3) -> Path:
    """`train_N.mp4` and `val_N.mp4` with boxes at seconds 1 and 2, proposals a little off, and one in
    a thousandth that nobody believes; `val_0`, second 2 is excluded."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    label_map = "".join(f'item {{ name: "{name}" id: {i} }}\n' for i, name in ACTIONS.items())
    (root / "action_list.pbtxt").write_text(label_map)
    (root / "val_excluded_timestamps.csv").write_text("{},{:04d}\n".format(*EXCLUDED))
    proposals = []
    for split, count in (("train", train), ("val", val)):
        rows = []
        for number in range(count):
            frames, found = _film(rng, number)
            write_video(root / f"{split}_{number}.mp4", frames, crf="12")
            for second, box, actions, person in found:
                where = f"{split}_{number},{second:04d}," + ",".join(f"{e:.3f}" for e in box)
                rows += [f"{where},{action},{person}" for action in actions]
                if split == "val":
                    near = np.clip(box + rng.uniform(-0.01, 0.01, 4), 0, 1)
                    edges = ",".join(f"{e:.3f}" for e in near)
                    proposals.append(
                        f"{split}_{number},{second:04d},{edges},{0.99 - person / 10:.3f}"
                    )
            proposals.append("val_0,0001,0.400,0.400,0.600,0.600,0.100")
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    (root / "val_proposals.csv").write_text("\n".join(proposals) + "\n")
    return root


def _film(rng: np.random.Generator, number: int) -> tuple[np.ndarray, list[Any]]:
    count = FPS * SECONDS
    frames = np.full((count, HEIGHT, WIDTH, 3), 40, np.uint8)
    found: list[Any] = []
    for person in range(2):
        action = (1, 2)[(number + person + int(rng.integers(2))) % 2]
        bright = bool(rng.integers(2))
        start, x = rng.uniform(0, 8), 6 + person * 32 + int(rng.integers(8))
        for t in range(count):
            phase = (start + (-1 if action == 1 else 1) * t * 1.2) % (HEIGHT - SIDE)
            y = round(phase)
            frames[t, y : y + SIDE, x : x + SIDE] = 250 if bright else 130
            if t in (FPS, 2 * FPS):
                box = np.array([x / WIDTH, y / HEIGHT, (x + SIDE) / WIDTH, (y + SIDE) / HEIGHT])
                found.append((t // FPS, box, [action, 4] if bright else [action], person))
    return frames, sorted(found, key=lambda f: (f[0], f[3]))


def people_config(root: Path, **detection: Any) -> DataConfig:
    return DataConfig.model_validate(
        {"root": str(root), "task": "detection", "layout": "ava", "detection": detection}
    )


def small_detector(folder: Path, method: str = "st_adapter", name: str = NAME) -> TrainedModel:
    """A model of the three actions with non-zero adapters, its backbone's weights in `folder`."""
    torch.manual_seed(1)
    file = folder / "vit.safetensors"
    vit = architecture(BackboneConfig(name=name, weights="none"), (HEIGHT, WIDTH))
    randomise(vit, 1)
    save_file(vit.state_dict(), file)
    backbone = load_backbone(BackboneConfig(name=name, weights=str(file)), (HEIGHT, WIDTH))
    model = build_method(method, backbone.vit, len(ACTIONS), 4, METHODS[method].Config())
    for tensor in model.adapter_state().values():
        tensor += 0.1 * torch.randn_like(tensor)
    return TrainedModel(
        model.eval(),
        backbone,
        list(ACTIONS.values()),
        SAMPLING,
        TransformConfig(size=(HEIGHT, WIDTH)),
        {"short_side": HEIGHT, "fps": None},
        TASKS["detection"],
    )
