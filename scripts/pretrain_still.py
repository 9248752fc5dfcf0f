"""Pre-train one of the package's small image models on rendered stills.

    python scripts/pretrain_still.py
    python scripts/pretrain_still.py --architecture eva_still_patch12_48

Supervised, on what the renderer knows about a picture: where the object is, how large, at which
angle, its shape and colour, and a coarse mask of it. No moving picture, and no pair
of frames, is ever shown, so what the adapters learn about motion is theirs.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from timm.models import Eva, VisionTransformer
from torch import Tensor, nn

from vidpipe.backbones import still
from vidpipe.backbones.activation import activation_of
from vidpipe.files import atomic_file
from vidpipe.video.rendered import SHAPES, render_still

CHUNK = 500  # stills per job; the seed of a job is its number, so workers do not change the data
CELL = 4  # pixels; the mask a patch token predicts has one value per cell
GLOBALS = 8  # x, y, log radius, radius * sin, radius * cos, colour (3)
COLOUR = slice(5, 8)
SCALE = (0.25, 0.25, 0.4, 0.15, 0.15)  # about the spread of the first five
CELLS = (still.PATCH_SIZE // CELL) ** 2  # per patch

Stills = dict[str, Tensor]


def render_chunk(job: tuple[int, int]) -> dict[str, np.ndarray]:
    """CHUNK stills: image uint8 (n, 3, S, S), cover (n, S/4, S/4), shape (n,), truth (n, 8)."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(job)
    size = still.INPUT_SIZE
    images, covers, shapes, truths = [], [], [], []
    for _ in range(CHUNK):
        # Frames reach the model scaled down from files of different sizes.
        picture, target = render_still(rng, int(rng.choice([size, 64, 80, 96])))
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        if rng.random() < 0.7:
            image = _subsample_colour(image)
        images.append(_resize(image, size).round().clamp(0, 255).byte().numpy()[0])
        cover = _resize(torch.from_numpy(target["coverage"])[None, None], size)
        covers.append(F.avg_pool2d(cover, CELL)[0, 0].numpy())
        shapes.append(target["shape"])
        values = [target[k] for k in ("x", "y", "radius", "sin", "cos")]
        truths.append([*values, *target["colour"]])
    truth = np.array(truths, np.float32)
    # The cap's offset and not the bare angle: it fades out as the object gets too small to tell.
    truth[:, 3:5] *= truth[:, 2:3]
    truth[:, 2] = np.log(truth[:, 2])
    return {
        "image": np.stack(images),
        "cover": np.stack(covers),
        "shape": np.array(shapes),
        "truth": truth,
    }


def _resize(image: Tensor, size: int) -> Tensor:
    if image.shape[-1] == size:
        return image
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True)


def _subsample_colour(image: Tensor) -> Tensor:
    """Colour at half resolution, as in 4:2:0 video: (1, 3, H, W) in 0 .. 255."""
    grey = (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    colour = F.avg_pool2d(image - grey, 2)
    return (grey + F.interpolate(colour, scale_factor=2.0, mode="nearest")).clamp(0, 255)


def render_pool(number: int, seed: int, workers: int) -> Stills:
    jobs = [(seed, n) for n in range(math.ceil(number / CHUNK))]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        chunks = list(track(pool.map(render_chunk, jobs), "rendering stills", total=len(jobs)))
    return {k: torch.from_numpy(np.concatenate([c[k] for c in chunks])) for k in chunks[0]}


def augment(batch: Stills, generator: torch.Generator) -> Stills:
    """One quarter turn count and one order of the colour channels for the whole batch.

    Both change picture and truth together, exactly; one pool of stills then stands for 24.
    """
    turns = int(torch.randint(4, (), generator=generator))
    order = torch.randperm(3, generator=generator)
    # rot90 with a negative count turns the picture clockwise, as angles count.
    image = torch.rot90(batch["image"][:, order], -turns, (2, 3))
    cover = torch.rot90(batch["cover"], -turns, (1, 2))
    truth = batch["truth"].clone()
    cos, sin = (round(f(turns * math.pi / 2)) for f in (math.cos, math.sin))
    x, y, s, c = (batch["truth"][:, i] for i in (0, 1, 3, 4))
    truth[:, 0], truth[:, 1] = cos * x - sin * y, sin * x + cos * y
    truth[:, 3], truth[:, 4] = s * cos + c * sin, c * cos - s * sin
    truth[:, COLOUR] = truth[:, COLOUR][:, order]
    return {"image": image, "cover": cover, "shape": batch["shape"], "truth": truth}


class Heads(nn.Module):
    """Linear read-outs of the class token and the patch tokens, thrown away after pre-training.

    They sit at several depths, since adapters work in every block and not only on the last one.
    """

    def __init__(self, width: int, depth: int, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.cls_depths = tuple(range(depth // 2, depth + 1))
        self.patch_depths = tuple(range(1, depth))
        out = GLOBALS + len(SHAPES)
        self.cls = nn.ModuleDict({str(d): nn.Linear(width, out) for d in self.cls_depths})
        # A patch says which of its cells are covered, and what the picture as a whole shows.
        self.patch = nn.ModuleDict(
            {str(d): nn.Linear(width, CELLS + len(SCALE)) for d in self.patch_depths}
        )
        # The last depth is read after the backbone's own final norm.
        self.norms = nn.ModuleDict({str(d): nn.LayerNorm(width) for d in range(1, depth)})

    def forward(
        self, tokens: list[Tensor], final: Tensor
    ) -> tuple[dict[int, Tensor], list[Tensor]]:
        """tokens[d] is the stream after block d + 1; final the normed tokens, (B, prefix + N, D)."""
        depth = len(tokens)
        at = {d: self.norms[str(d)](tokens[d - 1]) for d in range(1, depth)} | {depth: final}
        return (
            {d: self.cls[str(d)](at[d][:, 0]) for d in self.cls_depths},
            [self.patch[str(d)](at[d][:, self.prefix :]) for d in self.patch_depths],
        )


def _regression(predicted: Tensor, truth: Tensor) -> Tensor:
    """Smooth L1 on x, y, log radius and the cap's offset, (..., 5), in units of their spread."""
    target = (truth[..., :5] / truth.new_tensor(SCALE)).expand_as(predicted)
    return F.smooth_l1_loss(predicted, target, beta=0.1)


def loss_of(vit: VisionTransformer | Eva, heads: Heads, batch: Stills) -> Tensor:
    x = batch["image"].float() / 127.5 - 1
    final, tokens = vit.forward_intermediates(
        x, return_prefix_tokens=True, output_fmt="NLC", norm=False
    )
    streams = [torch.cat([prefix, patches], dim=1) for patches, prefix in cast(Any, tokens)]
    cls, patches = heads(streams, final)
    total = x.new_zeros(())
    for depth, out in cls.items():
        part = _regression(out[:, :5], batch["truth"]) * 2
        part = part + 0.3 * F.smooth_l1_loss(out[:, 5:8], batch["truth"][:, COLOUR], beta=0.1)
        part = part + 0.1 * F.cross_entropy(out[:, 8:], batch["shape"])
        total = total + part * (1.0 if depth == len(tokens) else 0.5)
    cells = F.unfold(batch["cover"][:, None], side := still.PATCH_SIZE // CELL, stride=side)
    for depth, out in enumerate(patches, 1):
        total = total + F.smooth_l1_loss(out[..., :CELLS], cells.transpose(1, 2), beta=0.1)
        if depth > 1:
            total = total + 0.3 * _regression(out[..., CELLS:], batch["truth"][:, None])
    return total


@torch.inference_mode()
def evaluate(vit: VisionTransformer | Eva, heads: Heads, stills: Stills) -> dict[str, float]:
    """Errors of the class token's read-outs on stills that were not trained on."""
    last = heads.cls[str(len(vit.blocks))]
    images = stills["image"].split(500)
    out = torch.cat([last(vit.forward_features(i.float() / 127.5 - 1)[:, 0]) for i in images])
    truth = stills["truth"]
    value = out[:, :5] * torch.tensor(SCALE)
    angle = torch.atan2(value[:, 3], value[:, 4]) - torch.atan2(truth[:, 3], truth[:, 4])
    angle = torch.atan2(angle.sin(), angle.cos())
    place = (value[:, :2] - truth[:, :2]) * still.INPUT_SIZE
    return {
        "position_px": place.abs().mean().item(),
        "radius_percent": 100 * (value[:, 2] - truth[:, 2]).abs().mean().item(),
        "angle_median_deg": angle.abs().median().rad2deg().item(),
        "angle_mean_deg": angle.abs().mean().rad2deg().item(),
        "colour": (out[:, 5:8] - truth[:, COLOUR]).abs().mean().item(),
        "shape_accuracy": (out[:, 8:].argmax(1) == stills["shape"]).float().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", choices=still.WEIGHTS_OF, default=still.ARCHITECTURE)
    parser.add_argument("--out", type=Path, help="default: its place in the package")
    parser.add_argument("--stills", type=int, default=100_000, help="size of the training pool")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out: Path = args.out or still.WEIGHTS_OF[args.architecture]
    console = Console()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    train = render_pool(args.stills, args.seed, args.workers)
    held_out = render_pool(4000, args.seed + 1, args.workers)
    vit = timm.create_model(args.architecture)
    assert isinstance(vit, VisionTransformer | Eva)
    heads = Heads(vit.embed_dim, len(vit.blocks), vit.num_prefix_tokens)
    parameters: list[nn.Parameter] = [*vit.parameters(), *heads.parameters()]
    decay: list[Tensor] = [p for p in parameters if p.ndim >= 2]
    plain: list[Tensor] = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        cast(Any, [{"params": decay}, {"params": plain, "weight_decay": 0.0}]),
        lr=args.lr,
        weight_decay=args.weight_decay,
        betas=(0.9, 0.98),
    )
    warm_up = min(100, args.steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * i / args.steps)),
    )
    start = time.perf_counter()
    for step in range(args.steps):
        rows = torch.randint(len(train["image"]), (args.batch_size,), generator=generator)
        loss = loss_of(vit, heads, augment({k: v[rows] for k, v in train.items()}, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 499 or step + 1 == args.steps:
            errors = ", ".join(f"{k} {v:.4f}" for k, v in evaluate(vit, heads, held_out).items())
            seconds = time.perf_counter() - start
            console.print(f"step {step + 1}, {seconds:.0f} s: loss {loss.item():.4f}, {errors}")

    # Half precision costs nothing measurable here: the errors are printed again from these weights.
    weights = {k: v.half().contiguous() for k, v in vit.state_dict().items()}
    vit.load_state_dict({k: v.float() for k, v in weights.items()})
    errors = ", ".join(f"{k} {v:.4f}" for k, v in evaluate(vit, heads, held_out).items())
    console.print(f"held out, as saved: {errors}")
    metadata = {
        "architecture": args.architecture,
        "mean": ",".join(map(str, still.MEAN)),
        "std": ",".join(map(str, still.STD)),
        "input_size": f"3,{still.INPUT_SIZE},{still.INPUT_SIZE}",
        "activation": activation_of(vit),
        "source": "vidpipe pretrain_still",
    }
    with atomic_file(out) as part:
        save_file(weights, part, metadata)
    console.print(f"wrote {out.name}, {out.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
