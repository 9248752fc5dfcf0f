"""A training on two workers of Ray, which goes wrong as it is told: `ray_training.py FOLDER CASE`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from trainings import settings
from two_ranks import train

from pipeline.infra.ray import train as cluster
from vidpipe.errors import VidpipeError


def worker(payload: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    rank, folder, case = cluster.rank(), Path(payload["run"]), payload["case"]
    run, _ = train(rank, cluster.world_size(), folder=str(folder / "checkpoints"))

    def on_step(info: Any) -> None:
        if case == "mistake" and info.step == 2:
            with (folder / f"tries{rank}").open("a") as file:
                file.write("x")
            raise VidpipeError("params are wrong")
        if case == "lost" and rank == 1 and info.step == 4 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    run.on_step = on_step
    run.on_epoch = lambda metrics, timing: cluster.report({"loss": metrics.train_loss})
    run.run()
    if rank == 0:
        (folder / "history").write_text(repr(run.progress.history))
        (folder / "from").write_text(str(run.resumed_from))


def run(folder: Path, case: str) -> None:
    folder.mkdir()
    config = settings(num_workers=2, memory_gb_per_worker=0.3, use_gpu="no")
    cluster.train(worker, {"run": str(folder), "case": case}, config, folder)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
