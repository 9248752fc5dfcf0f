"""Options that several commands share, and what they resolve to. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.infra.workspace import Workspace
    from vidpipe.params import Params

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameters file.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a value: train.epochs=5. Repeatable.")
]
Recipe = Annotated[
    str | None, typer.Option(help="Overlay from pipeline/recipes, or a path to a YAML file.")
]
DataRoot = Annotated[str | None, typer.Option(help="Folder of the videos (data.root).")]
Method = Annotated[
    str | None,
    typer.Option(
        help="A method; `vidpipe methods` lists them. Default: the recipe's, if it has one."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder that holds data/, models/ and results/.")]

PARAMS, HERE = Path("params.yaml"), Path()


def read_params(
    file: Path, recipe: str | None, data_root: str | None, overrides: list[str] | None
) -> Params:
    from vidpipe.params import load_params

    return load_params(file, overlays(recipe, data_root, overrides))


def overlays(
    recipe: str | None, data_root: str | None, overrides: list[str] | None
) -> list[dict[str, Any]]:
    """What goes over the parameters file, in this order."""
    from pipeline.infra.recipes import read_recipe
    from vidpipe.config.overlay import parse_override

    found = [read_recipe(recipe)] if recipe else []
    if data_root is not None:
        found.append({"data": {"root": data_root}})
    return found + [parse_override(text) for text in overrides or []]


def choose_method(method: str | None, recipe: str | None, params: Params) -> str:
    """`--method`, or the one method that the recipe is for. Raises VidpipeError where it is unclear."""
    from pipeline.infra.recipes import load_recipe
    from vidpipe.errors import VidpipeError

    if method is None:
        found = load_recipe(recipe).methods if recipe else []
        if len(found) != 1:
            why = f"--recipe {recipe} has {len(found) or 'no'} methods" if recipe else "no --recipe"
            raise VidpipeError(f"--method is missing: {why}; `vidpipe methods` lists them")
        (method,) = found
    params.method(method)
    return method


def warn_of_start(recipe: str | None, params: Params) -> None:
    """Say it where the published number began with an adapter and this training does not."""
    from pipeline.infra.console import console
    from pipeline.infra.recipes import load_recipe

    start = load_recipe(recipe).starts_from if recipe else None
    if start is not None and params.train.starts_from is None:
        console.print(
            f"warning: the published accuracy of {recipe} starts from the adapter of {start}; "
            "expect less, or give its folder: --set train.starts_from=FOLDER"
        )


def workspace(out: Path) -> Workspace:
    from pipeline.infra.workspace import Workspace

    return Workspace(out)
