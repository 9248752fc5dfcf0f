"""The folder of one training, for one process at a time: its checkpoints and all else of its state."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.infra.locks import Busy, locked
from vidpipe.errors import VidpipeError


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The run's folder, for one process only. It holds all else that is the training's: a second
    command must touch neither the first one's run in MLflow nor its checkpoints."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except Busy:
            raise VidpipeError(f"{folder}: the same training is running already") from None
        except OSError as error:
            raise VidpipeError(
                f"{folder}: {error.strerror}; checkpoints are to be kept here"
            ) from None
        shutil.rmtree(_gone(folder), ignore_errors=True)
        try:
            yield
        finally:
            with suppress(OSError):  # unless there is something in it
                folder.rmdir()


def remove(folder: Path) -> None:
    """Remove the folder of a training that is `alone`; a kill meanwhile leaves nothing to go on from."""
    gone = _gone(folder)
    folder.rename(gone)
    shutil.rmtree(gone)


def _gone(folder: Path) -> Path:
    """The name of a training's folder while it is being removed."""
    return folder.with_name(f".{folder.name}.gone")
