"""Memory of `vidpipe predict` over 100,000 inputs: it must not grow.

    python benchmarks/predict_memory.py --inputs 100000 [--ray]

Everything is real but the videos and, without --ray, the model: decoding processes, pipes, crops,
and the Parquet writer. Each "decoded" clip is a few small frames, the model one linear layer. Prints
the driver's resident memory as it goes, and fails when the last half of the inputs adds more than
--allowed MB.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch

from vidpipe.data.sampling import test_indices
from vidpipe.inference.segments import Request, Segment
from vidpipe.video.quarantine import QuarantineError

LINES = 20


def made_up(source: str, request: Request) -> Iterator[Segment]:
    """16 frames of 36 x 48 without a file; every hundredth is damaged."""
    number = int(source.removeprefix("clip"))
    if number % 100 == 99:
        raise QuarantineError("corrupt_frames", "made up")
    frames = np.full((16, 36, 48, 3), number % 256, np.uint8)
    yield Segment(0.0, 0.64, frames, tuple(test_indices(16, s, 1) for s in request.samplings))


class OneLayer(torch.nn.Module):
    """(B, 3, T, H, W) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(video.mean((2, 3, 4)))
        return logits


def resident_mb(children: bool) -> float:
    """Of this process; with `children`, the largest of the processes it started."""
    own = psutil.Process()
    if not children:
        return own.memory_info().rss / 2**20
    sizes = []
    for child in own.children(recursive=True):
        try:
            sizes.append(child.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            continue
    return max(sizes, default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--allowed", type=float, default=30, help="MB that the last half may add")
    parser.add_argument("--ray", action="store_true", help="through Ray Data")
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
    # By its own name, under which other processes can import it, too.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    import predict_memory
    from small_models import backbone_file, save_tiny_package

    from pipeline.tools import predict

    started = time.perf_counter()
    seen: list[float] = []
    every = max(1, given.inputs // LINES)

    def inputs() -> Iterator[str]:
        for i in range(given.inputs):
            yield f"clip{i}"

    written = predict.write_rows

    def watched(rows, file, first_model):  # type: ignore[no-untyped-def]
        def passing():  # type: ignore[no-untyped-def]
            for i, row in enumerate(rows):
                if i % every == 0:
                    seen.append(resident_mb(False))
                    speed = i / (time.perf_counter() - started)
                    print(
                        f"{i:8,} rows  driver {seen[-1]:6.0f} MB  largest process "
                        f"{resident_mb(True):6.0f} MB  {speed:5.0f}/s",
                        flush=True,
                    )
                yield row

        return written(passing(), file, first_model)

    predict.write_rows = watched
    predict.sources = lambda _: inputs()  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        package = save_tiny_package(root / "model", backbone_file(root / "vit.safetensors"))
        if not given.ray:
            whole = predict.open_models

            def with_one_layer(folders: Any, weights: Any) -> Any:
                opened = whole(folders, weights)
                return {name: replace(m, model=cast(Any, OneLayer())) for name, m in opened.items()}

            predict.open_models = with_one_layer  # type: ignore[assignment]
        job = predict.Job((package,), workers=given.workers)
        ray = "local" if given.ray else "none"
        predict.run(job, [], out=root / "rows.parquet", ray=ray, work=predict_memory.made_up)
    half = seen[len(seen) // 2]
    print(f"the last half added {seen[-1] - half:.1f} MB to {half:.0f} MB")
    if seen[-1] - half > given.allowed:
        sys.exit(f"more than {given.allowed:g} MB")


if __name__ == "__main__":
    main()
