"""Commands that show the extracted data: `vidpipe data stats` and `vidpipe data show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ClassName, Out, Run, WhichClips


def stats(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON; write no file.")] = False,
    out: Out = Path(),
) -> None:
    """Clips a class and split, balance, durations, sizes, bytes, and what was quarantined."""
    from pipeline.infra.workspace import Workspace
    from pipeline.tools import data as tool

    tool.stats(Workspace(out), json)


def show(
    *,
    clips: Annotated[int, typer.Option(min=1, max=200, help="How many clips.")] = 8,
    split: Annotated[str, typer.Option(help="train, augmented; or val, the test views.")] = "train",
    class_name: ClassName = None,
    epoch: Annotated[int, typer.Option(min=0, help="train: another epoch's augmentation.")] = 0,
    seed: WhichClips = 0,
    given: Run,
) -> None:
    """Draw clips as the model gets them: frames, crops and augmentation, but for normalisation."""
    from vidpipe.errors import VidpipeError

    if split not in ("train", "val"):
        raise VidpipeError(f"--split {split}: expected train or val")
    params = given.read()
    from pipeline.tools import data as tool

    path = tool.show(
        params,
        given.workspace,
        clips=clips,
        split=split,
        class_name=class_name,
        epoch=epoch,
        seed=seed,
    )
    typer.echo(str(path))
