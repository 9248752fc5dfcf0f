"""Commands that share trained models on the Hugging Face Hub: push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="Adapter or package, such as models/aim/adapter.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME; made where there is none.")],
    weights: Annotated[
        str | None, typer.Option(help="The adapter's backbone, where it is not at its path.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="How others get an adapter's backbone: hub:TAG of timm, or `include`; default: "
            "they name a file with the same hash."
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the repository, such as apache-2.0.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the data, for the page.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Accuracy for the page: results/METHOD/eval.json.")
    ] = None,
    branch: Annotated[str | None, typer.Option(help="Made where there is none.")] = None,
    tag: Annotated[str | None, typer.Option(help="A name for this version.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Where it is made.")] = False,
) -> None:
    """Share an adapter or a package on the Hugging Face Hub; prints its pinned address."""
    from pipeline.tools import hub as tool
    from vidpipe.files import read_json

    measured = read_json(evaluation) if evaluation is not None else None
    about = tool.About(licence, dataset, measured)
    options = {"weights": weights, "backbone": backbone, "branch": branch, "tag": tag}
    typer.echo(str(tool.push(folder, repo, about=about, private=private, **options)))


def pull(
    address: Annotated[str, typer.Argument(help="hf://OWNER/NAME@REVISION.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    weights: Annotated[
        str | None, typer.Option(help="The adapter's backbone, where the repository has none.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
) -> None:
    """Fetch a model from the Hugging Face Hub; it is opened, and refused where it could run code."""
    from pipeline.tools import hub as tool

    typer.echo(tool.pull(address, folder, weights, force))
