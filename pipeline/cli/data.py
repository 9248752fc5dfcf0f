"""Commands about the extracted data: `vidpipe data stats`, `vidpipe data show`, `vidpipe data check`."""

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


def check(
    *,
    videos: Annotated[
        bool,
        typer.Option("--videos", help="Read the videos of data.root in place of the frame store."),
    ] = False,
    similarity: Annotated[
        float, typer.Option(min=0.5, max=1, help="From which on two clips are copies.")
    ] = 0.95,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 1 where a problem is found.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON; write no file.")] = False,
    given: Run,
) -> None:
    """Find what makes an accuracy too good: copies (also mirrored, trimmed or encoded anew) and groups
    on both sides of the split, equal clips with different labels, classes with a single group."""
    params, place = given.read(), given.workspace
    from pipeline.tools import data_check as tool

    if videos:
        from shutil import rmtree

        from pipeline.stages import extract as stage

        folder = place.root / "data" / ".check"  # killed, the next call goes on
        stage.run(params.data, tool.small_frames_only(params.extract), folder / "store")
        found = tool.check(params, place, folder / "store", similarity, json)
        rmtree(folder)
    else:
        found = tool.check(params, place, params.data.store or place.store, similarity, json)
    if strict and found:
        raise typer.Exit(1)


def convert_proposals(
    source: Annotated[Path, typer.Argument(help="A pickle of proposals, as MMAction2 has them.")],
    target: Annotated[Path, typer.Argument(help="The CSV to write.")],
) -> None:
    """Turn pickled person boxes (MMAction2's) into a CSV; nothing in the pickle is executed."""
    from vidpipe.tasks.detection.proposal_pickle import convert_proposals

    typer.echo(f"{convert_proposals(source, target)} boxes written to {target}")
