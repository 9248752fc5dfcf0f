"""What trainings cost on kept features (`train.cache_features: exact`) beside trainings on frames.

    python benchmarks/cache_features.py [--clips 64] [--rounds 5] [--device cuda] [--precision bf16]
        [--backbone vit_base_patch16_224] [--only top]

8 frames of 224 pixels, random weights. `linear_probe`: epochs of one Trainer each, from a frame store
of rendered clips, the first left out (it fills caches of both); rounds alternate between frames and
features. `20 trials`: such an epoch of one training on features, and of twenty side by side. `top`:
steps (forward, backward, AdamW) of one clip with the upper half of the blocks adapted, on frames, on
features, and on half the patches of those, over a step with all blocks adapted on frames. Ratios are
medians over rounds; `saved` is what autograd keeps for the backward pass, as in `patch_drop.py`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from patch_drop import saved_bytes

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import Backbone
from vidpipe.cpu import use_cpu
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.dataset import Clips, TrainSet
from vidpipe.data.model_input import InputForm
from vidpipe.features.cache import FeatureCache
from vidpipe.features.place import Place
from vidpipe.methods.base import VideoModel
from vidpipe.methods.noise import lowbias32
from vidpipe.methods.patch_drop import PatchDrop
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.methods.split import Split
from vidpipe.training.config import TrainConfig
from vidpipe.training.loop import Trainer
from vidpipe.training.optim import make_optimizer
from vidpipe.training.side_by_side import SideBySide
from vidpipe.video.encode import encode_h264
from vidpipe.video.store import FrameStore, write_manifest

T, SIZE = 8, 224
BACKBONE = "vit_base_patch16_224"
NORMAL = (0.5, 0.5, 0.5)
FIRST: dict[str, Any] = {"temporal_embedding_at": "first_adapted"}
TOP: dict[str, dict[str, Any]] = {"st_adapter": {}, "zeroi2v": FIRST, "aim": FIRST}


def store_of(root: Path, clips: int) -> FrameStore:
    """Clips of 32 frames, 340 x 256, of noise that moves."""
    rows: list[dict[str, Any]] = []
    data, noise = b"", np.random.default_rng(0).integers(0, 255, (16, 22, 3), np.uint8)
    picture = noise.repeat(16, 0).repeat(16, 1)[:256, :340]
    for i in range(clips):
        frames = (np.roll(picture, (5 * i + 3 * t, 4 * t), (0, 1)) for t in range(32))
        clip = encode_h264(frames, 25, 8).data
        rows.append(
            {
                **{"id": f"c{i}", "path": f"c{i}.mp4", "label": "ab"[i % 2], "split": "train"},
                **{"status": "ok", "reason": "", "detail": "", "frames": 32, "fps": 25.0},
                **{"width": 340, "height": 256, "sha256": str(i), "source_bytes": len(clip)},
                **{"shard": 0, "offset": len(data), "nbytes": len(clip)},
            }
        )
        data += clip
    (root / "shard-00000.bin").write_bytes(data)
    write_manifest(root, rows, ("a", "b"))
    return FrameStore(root, cache_mb=1024)


def model_of(name: str, device: torch.device, **options: Any) -> VideoModel:
    torch.manual_seed(0)
    vit = timm.create_model(BACKBONE, num_classes=0)
    config = METHODS[name].Config.model_validate(options)
    model = build_method(name, vit, 2, T, config).to(device)
    model.form = InputForm(SIZE)
    return model


def medians(rounds: int, runs: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each run in each round but the first."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def probe(root: Path, clips: int, rounds: int, device: torch.device, precision: Any) -> None:
    """A linear probe's epochs."""
    store = store_of(root, clips)
    sampling = SamplingConfig(strategy="uniform", num_frames=T, train_frames="middle")
    data = TrainSet(
        Clips(store, "train", ["a", "b"]), sampling, TransformConfig(size=SIZE, crop="center"), 0
    )
    config = TrainConfig(
        epochs=10_000, batch_size=8, warmup_epochs=1, precision=precision, threads=1,
        cache_features="exact",
    )  # fmt: skip
    backbone = Backbone(
        torch.nn.Identity(),
        BackboneConfig(name="b16", weights="random"),
        "0",
        "gelu",
        NORMAL,
        NORMAL,
    )
    model = model_of("linear_probe", device)
    split = Split(model)
    samples, _ = FeatureCache(
        Place(root / "features"), split, backbone, config, device, print
    ).sets(data, None)
    rest = (None, config, (NORMAL, NORMAL))
    options: dict[str, Any] = {"device": device, "split": split}
    rates = [model.config.model_copy(update={"lr": 1e-4 * 1.4**k}) for k in range(20)]
    frames_trainer = Trainer(model_of("linear_probe", device), data, *rest, device=device)
    one = Trainer(model, samples, *rest, **options)
    many = SideBySide(model, samples, *rest, configs=rates, **options)
    runs: dict[str, Callable[[], None]] = {
        "frames": lambda: epoch(frames_trainer),
        "features": lambda: epoch(one),
        "side by side": many.epoch,
    }
    times = medians(rounds, runs)
    frames, features = (statistics.median(times[name]) for name in ("frames", "features"))
    faster = ratio(times["frames"], times["features"])
    print(f"linear_probe, an epoch of {clips} clips: {frames:.2f} s on frames, {features:.4f} s on")
    print(f"features: {faster:.0f} times faster")
    more = ratio(times["side by side"], times["features"])
    print(f"20 trials side by side: {more:.2f} times the time of one", flush=True)


def epoch(trainer: Trainer) -> None:
    for _ in trainer.steps():
        pass
    trainer.progress.epoch, trainer.progress.batch = trainer.progress.epoch + 1, 0


def top_half(rounds: int, device: torch.device, precision: str) -> None:
    """A step of one clip: adapters in all blocks, in the upper half, on features, on half of those."""
    clips = torch.randn(1, 3, T, SIZE, SIZE, device=device)
    labels = torch.zeros(1, dtype=torch.long, device=device)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    print(
        "A step with adapters in the top half, over one with adapters in all blocks (saved: the same)"
    )
    print("| method | all blocks, s | on frames | on features | and half the patches |")
    print("| --- | --- | --- | --- | --- |")
    for method, more in TOP.items():
        whole = model_of(method, device)
        depth = len(whole.blocks)
        half = model_of(method, device, blocks=range(depth // 2, depth), **more)
        split = Split(half)
        with cast:
            features = split.frozen(clips)
        steps: dict[str, Callable[[], None]] = {}
        saved = {}
        for name, model, forward, x, drop in (
            ("all blocks", whole, whole, clips, None),
            ("on frames", half, half, clips, None),
            ("on features", half, split, features, None),
            ("and half the patches", half, split, features, PatchDrop(0.5)),
        ):
            config = TrainConfig(epochs=1, batch_size=1, warmup_epochs=0)
            optimizer = make_optimizer(model, config, device)
            model.train().clip_keys.now = torch.tensor([lowbias32(1)], device=device)

            def step(
                model: VideoModel = model,
                forward: Any = forward,
                x: Any = x,
                drop: PatchDrop | None = drop,
                optimizer: torch.optim.AdamW = optimizer,
            ) -> None:
                model.patch_drop = drop
                optimizer.zero_grad(set_to_none=True)
                with cast:
                    loss = F.cross_entropy(forward(x), labels)
                loss.backward()
                optimizer.step()

            steps[name], model.patch_drop = step, drop
            with cast:
                saved[name] = saved_bytes(forward, x)  # type: ignore[arg-type]
        times = medians(rounds, steps)
        cells = (
            f"{ratio(times[name], times['all blocks']):.2f} ({saved[name] / saved['all blocks']:.2f})"
            for name in list(steps)[1:]
        )
        seconds = statistics.median(times["all blocks"])
        print(f"| {method} | {seconds:.2f} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--only", choices=("probe", "top"))
    given = parser.parse_args()
    globals()["BACKBONE"] = given.backbone
    use_cpu(1)
    device = torch.device(given.device)
    title = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, 1 thread"
    print(f"{title}, {given.backbone}, {given.precision}")
    if not given.only or given.only == "probe":
        with tempfile.TemporaryDirectory() as root:
            probe(Path(root), given.clips, given.rounds, device, given.precision)
    if not given.only or given.only == "top":
        top_half(given.rounds, device, given.precision)


if __name__ == "__main__":
    main()
