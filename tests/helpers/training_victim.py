"""Trainings that die, in children of this process, which must not train itself: torch's autograd
cannot be forked once it has run. `python training_victim.py FOLDER KILLS SEED` prints one line of
JSON a kill.

Each kill has a training of its own, killed once or more until it gets through: before a random thing
it does to the disk, in the middle of a tensors file, in a step, or in a validation.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)  # before any work, or there are threads that a child lacks

from trainings import make, trainer, weights  # noqa: E402

from vidpipe.training import loop  # noqa: E402
from vidpipe.training import state as state_module  # noqa: E402
from vidpipe.training.state import Checkpoints  # noqa: E402

WHERE = ("disk", "tensors", "step", "validation")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str, number: int, root: Path) -> None:
    """Die at the `number`-th event of that kind."""
    seen = 0

    def count() -> bool:
        nonlocal seen
        seen += 1
        return seen == number

    if where == "disk":
        events = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.scandir")

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event in events and args and str(root) in str(args[0]) and count():
                die()

        sys.addaudithook(hook)
    elif where == "tensors":
        original = state_module.save_file

        def save(tensors: Any, file: Path) -> None:
            original(tensors, file)
            if count():
                os.truncate(file, file.stat().st_size // 2)
                die()

        state_module.save_file = save
    elif where == "step":
        forward = loop.Trainer._forward

        def step(self: Any, batch: Any) -> Any:
            if count():
                die()
            return forward(self, batch)

        loop.Trainer._forward = step  # type: ignore[method-assign]
    else:
        validate = loop.validate

        def validation(*args: Any) -> Any:
            if count():
                die()
            return validate(*args)

        loop.validate = validation


def training(root: Path) -> None:
    """Ends with the digest of all that matters in a file."""
    model = make("st_adapter", head_dropout=0.5)
    options = {"ema_decay": 0.9, "checkpoint_every": 3, "eval_every": 2}
    run = trainer(
        model, 32, epochs=4, checkpoints=Checkpoints(root / "checkpoints"), **options
    )  # 16 steps
    history = run.run()
    digest = hashlib.sha256(repr(history).encode())
    for name, tensor in sorted(weights(model).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    left = [p.name for p in (root / "checkpoints").iterdir() if p.name.startswith(".")]
    (root.parent / f"{root.name}.json").write_text(json.dumps([digest.hexdigest(), left]))


def child(work: Callable[[], None]) -> bool:
    """Whether it was killed; any other failure ends this process too."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        sys.exit(f"a training failed, and was not killed: exit code {os.WEXITSTATUS(status)}")
    return False


def main() -> None:
    folder, kills, draws = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    child(lambda: training(folder / "whole"))
    expected = json.loads((folder / "whole.json").read_text())[0]
    most = {"disk": 240, "tensors": 24, "step": 16, "validation": 2}
    died = 0
    for kill in range(10 * kills):
        if died >= kills:
            break
        root, where = folder / f"k{kill}", WHERE[kill % len(WHERE)]
        deaths = 0
        while deaths < 3:
            number = draws.randint(1, most[where])

            def work() -> None:
                arm(where, number, root)  # noqa: B023
                training(root)  # noqa: B023

            if not child(work):
                break
            deaths += 1
        else:
            child(lambda: training(root))  # noqa: B023
        found, left = json.loads((folder / f"k{kill}.json").read_text())
        died += deaths
        print(
            json.dumps({"where": where, "deaths": deaths, "same": found == expected, "left": left})
        )
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
