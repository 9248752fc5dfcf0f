"""Commands that work on what MLflow has: promote, sync."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import Configuration


def promote(
    *,
    method: Annotated[str, typer.Argument(help="Whose registered model.")],
    version: Annotated[
        str | None, typer.Option(help="A version; default: the one exported last.")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Back to the champion before this one.")
    ] = False,
    given: Configuration,
) -> None:
    """Put an exported model into use (alias `champion`), if it is not worse on the same clips."""
    from vidpipe.errors import VidpipeError

    if rollback and version is not None:
        raise VidpipeError(f"--version {version}: not with --rollback, which takes the one before")
    params = given.read()
    params.method(method)
    from pipeline.tools import promote as tool

    done = tool.roll_back(params, method) if rollback else tool.promote(params, method, version)
    typer.echo(done)


def sync() -> None:
    """Send MLflow what it missed while it was not there."""
    from pipeline.tools.sync import sync as send

    lines = send()
    typer.echo("\n".join(lines) or "nothing is kept: MLflow has all runs of this folder")
