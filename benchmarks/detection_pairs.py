"""Who does what: frame mAP of detection on clips of several people, from their boxes and proposals.

    python benchmarks/detection_pairs.py DATA WEIGHTS [--methods linear_probe zeroi2v] [--device cuda]
        [--size 112 224] [--epochs 30] [--precision bf16] [--controls linear_probe]

DATA is a folder in AVA's form: `train.csv`, `val.csv`, `val_proposals.csv`, `action_list.pbtxt`,
`val_excluded_timestamps.csv` and `videos/`. WEIGHTS are of `--backbone`. Training is on ground-truth
boxes with scale jitter, crop and flip, testing on the whole frame. `no box` is the control: the same
training and test with the whole frame in place of every box, so that it cannot tell two people apart.
Where it can be merged, the merged model is tested too; the largest difference of its logits is printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import vidpipe
from vidpipe.data.layouts.ava_files import read_label_map
from vidpipe.data.model_input import to_input
from vidpipe.device import autocast, choose_device
from vidpipe.tasks.detection import frame_map
from vidpipe.tasks.detection.detector import Detector
from vidpipe.tasks.detection.samples import (
    BoxTransform,
    KeyFrame,
    frames_around,
    ground_truth,
    proposals,
    whole_frame,
)
from vidpipe.video.config import ExtractConfig
from vidpipe.video.decode import decode

T, STRIDE = 8, 4
METHODS = ("linear_probe", "st_adapter", "aim", "zeroi2v")


class Clips:
    """Every video decoded once: the data set is small."""

    def __init__(self, folder: Path, short_side: int) -> None:
        self.videos = {}
        for path in sorted(folder.iterdir()):
            fps, frames = decode(path, ExtractConfig(short_side=short_side))
            pictures = torch.from_numpy(np.stack(list(frames))).permute(0, 3, 1, 2).contiguous()
            self.videos[path.stem] = float(fps), pictures

    def __call__(self, key: KeyFrame) -> Tensor:
        """(T, 3, H, W) uint8 around the key second."""
        fps, frames = self.videos[key.video]
        return frames[frames_around(key.second, fps, len(frames), T, STRIDE)]


def batch(parts: list[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """[(video, (K, 4) boxes)] -> (B, T, 3, h, w) and (all boxes, 5)."""
    numbered = [F.pad(boxes, (1, 0), value=float(i)) for i, (_, boxes) in enumerate(parts)]
    return torch.stack([video for video, _ in parts]).to(device), torch.cat(numbered).to(device)


def without_place(boxes: Tensor) -> Tensor:
    """The whole frame in place of every box (K, 5)."""
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device=boxes.device)
    return torch.cat([boxes[:, :1], whole.expand(len(boxes), 4)], 1)


def train(own: Detector, keys: list[KeyFrame], clips: Clips, args: Any, blind: bool) -> None:
    transform = BoxTransform(own.model.form.sides)
    optimizer = torch.optim.AdamW(own.model.parameter_groups(lr=args.lr.get(own.model.name)))
    steps = args.epochs * (len(keys) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], steps, pct_start=0.1
    )
    own.train()
    mean, std = own.model.backbone.mean, own.model.backbone.std
    for _ in range(args.epochs):
        order = torch.randperm(len(keys)).tolist()
        for start in range(0, len(keys) - args.batch + 1, args.batch):
            parts, targets = [], []
            for i in order[start : start + args.batch]:
                video, boxes, kept, _ = transform(clips(keys[i]), keys[i].boxes)
                parts.append((video, boxes))
                targets.append(keys[i].targets[kept])
            video, boxes = batch(parts, args.device)
            with autocast(args.precision, args.device):
                logits = own(to_input(video, mean, std), without_place(boxes) if blind else boxes)
            loss = F.binary_cross_entropy_with_logits(
                logits.float(), torch.cat(targets).to(args.device)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def scores(
    own: Detector, keys: list[KeyFrame], clips: Clips, args: Any, blind: bool
) -> list[Tensor]:
    """(K, C) logits of each key frame's boxes."""
    own.eval()
    mean, std = own.model.backbone.mean, own.model.backbone.std
    found: list[Tensor] = []
    for start in range(0, len(keys), args.batch):
        part = keys[start : start + args.batch]
        video, boxes = batch(
            [(whole_frame(clips(key), own.model.form.sides), key.boxes) for key in part],
            args.device,
        )
        with autocast("fp32", args.device):
            logits = own(to_input(video, mean, std), without_place(boxes) if blind else boxes)
        found += logits.float().cpu().split([len(key.boxes) for key in part])
    return found


def ava_csv(path: Path, keys: list[KeyFrame], logits: list[Tensor], ids: list[int]) -> Path:
    lines = [
        f"{key.video},{key.second},{','.join(f'{e:.6f}' for e in box)},{action},{score:.6f}"
        for key, own in zip(keys, logits, strict=True)
        for box, row in zip(key.boxes.tolist(), own.sigmoid().tolist(), strict=True)
        for action, score in zip(ids, row, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--controls", nargs="*", default=METHODS, help="of these methods")
    parser.add_argument("--size", nargs=2, type=int, default=(112, 224))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--lr", type=json.loads, default={}, help='JSON, {"aim": 1e-3}')
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.device = choose_device(args.device)
    label_map = read_label_map(args.data / "action_list.pbtxt")
    excluded = args.data / "val_excluded_timestamps.csv"
    clips = Clips(args.data / "videos", 64)
    training = ground_truth(args.data / "train.csv", label_map)
    tests = {
        "boxes": ground_truth(args.data / "val.csv", label_map, excluded),
        "proposals": proposals(args.data / "val_proposals.csv", list(clips.videos)),
    }
    for method in args.methods:
        for blind in (False, True) if method in args.controls else (False,):
            start = time.perf_counter()
            torch.manual_seed(args.seed)
            model = vidpipe.create_model(
                method,
                args.backbone,
                num_classes=len(label_map),
                num_frames=T,
                weights=args.weights,
                img_size=tuple(args.size),
            )
            own = Detector(model.to(args.device))
            train(own, training, clips, args, blind)
            row: dict[str, Any] = {"method": method, "box": "no box" if blind else "box"}
            for name, keys in tests.items():
                logits = scores(own, keys, clips, args, blind)
                if not blind and model.not_mergeable is None:
                    merged = scores(own.merge(), keys, clips, args, blind)
                    # Together: a key frame may be without a person.
                    gap = float((torch.cat(logits) - torch.cat(merged)).abs().max())
                    row[f"merged_gap_{name}"] = f"{gap:.1e}"
                with tempfile.TemporaryDirectory() as folder:
                    found = ava_csv(Path(folder) / "d.csv", keys, logits, sorted(label_map))
                    result = frame_map(
                        args.data / "val.csv", found, args.data / "action_list.pbtxt", excluded
                    )
                row[f"map_{name}"] = round(float(str(result["map"])), 4)
            row["seconds"] = round(time.perf_counter() - start)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
