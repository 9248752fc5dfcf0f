"""Commands that begin a project: init, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Configuration


def init(
    folder: Annotated[Path, typer.Argument(help="Empty, new, or a repository of yours.")] = Path(),
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of your videos, to look at; default: rendered clips."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="With --weights: its name.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Local file of the backbone's weights.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that differ, without a question.")
    ] = False,
) -> None:
    """Start a project here: params.yaml, dvc.yaml and the rest, for your videos and this machine."""
    import sys

    from pipeline.infra.console import console
    from pipeline.tools.init import run

    def ask(file: Path, difference: str) -> bool:
        if force:
            return True
        console.print(difference)
        if not sys.stdin.isatty():
            console.print(f"{file.name}: kept as it is; --force replaces it")
            return False
        return typer.confirm(f"replace {file.name}?", default=False, err=True)

    commands = run(folder, data, weights, backbone, ask)
    typer.echo("next:\n" + "\n".join(f"  {line}" for line in commands))


def doctor(given: Configuration) -> None:
    """Check GPU, FFmpeg, disk, Ray, MLflow and weights; exit code 1 where something is missing."""
    from pipeline.infra.console import output
    from pipeline.tools.doctor import run

    checks = run(given.params, Path(), given.overlays())
    for check in checks:
        output().print(f"{check.verdict:8} {check.what:11} {check.detail}", soft_wrap=True)
    if any(check.verdict == "missing" for check in checks):
        raise typer.Exit(1)
