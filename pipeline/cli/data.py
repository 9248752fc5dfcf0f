"""`vidpipe data`: what the store holds, and what a model sees of it. Nothing heavy at the top."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import (
    HERE,
    PARAMS,
    Out,
    ParamsFile,
    Recipe,
    Set,
    read_params,
    workspace,
)

app = typer.Typer(help="Look at the extracted data.", no_args_is_help=True)


@app.command()
def stats(
    json: Annotated[bool, typer.Option("--json", help="Print JSON; write no file.")] = False,
    out: Out = HERE,
) -> None:
    """Clips a class and split, balance, durations, sizes, bytes, and what was quarantined."""
    from pipeline.tools import data as tool

    tool.stats(workspace(out), json)


@app.command()
def show(
    clips: Annotated[int, typer.Option(min=1, max=200, help="How many clips.")] = 8,
    split: Annotated[str, typer.Option(help="train, augmented; or val, the test views.")] = "train",
    class_name: Annotated[str | None, typer.Option("--class", help="Clips of one class.")] = None,
    epoch: Annotated[int, typer.Option(min=0, help="train: another epoch's augmentation.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Which clips.")] = 0,
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    set: Set = None,
    out: Out = HERE,
) -> None:
    """Draw clips as the model gets them: frames, crops and augmentation, but for normalisation."""
    from pipeline.tools import data as tool

    path = tool.show(
        read_params(params, recipe, None, set),
        workspace(out),
        clips=clips,
        split=split,
        class_name=class_name,
        epoch=epoch,
        seed=seed,
    )
    typer.echo(str(path))
