"""The commands about a configuration, before anything is trained. Nothing heavy on top."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from pipeline.cli.options import PARAMS, DataRoot, ParamsFile, Recipe, Set, read_params


def profile(
    method: Annotated[
        str | None, typer.Option(help="A method; `vidpipe methods` lists them.")
    ] = None,
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    set: Set = None,
    classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 400,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    paper_tables: Annotated[
        bool, typer.Option("--paper-tables", help="Recompute every cost the papers print.")
    ] = False,
) -> None:
    """Parameters, GFLOPs and memory of a configuration, before anything is trained."""
    from vidpipe.errors import VidpipeError

    if paper_tables:
        from pipeline.tools.profile import paper_tables as recompute

        recompute(json)
        return
    if method is None:
        raise VidpipeError("profile: expected --method NAME or --paper-tables")
    resolved = read_params(params, recipe, None, set)
    resolved.method(method)
    from pipeline.tools import profile as stage

    stage.run(resolved, method, classes, json)


def show_params(
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    write: Annotated[
        bool, typer.Option("--write", help="Change the file, keeping its comments.")
    ] = False,
) -> None:
    """Print the resolved parameters, or write overrides into the file."""
    import yaml

    resolved = read_params(params, recipe, data_root, set)
    if write:
        from pipeline.infra.recipes import read_recipe, write_overlay
        from vidpipe.config.overlay import deep_merge, parse_override

        overlay: dict[str, Any] = read_recipe(recipe) if recipe else {}
        if data_root is not None:
            overlay = deep_merge(overlay, {"data": {"root": data_root}})
        for text in set or []:
            overlay = deep_merge(overlay, parse_override(text))
        write_overlay(params, overlay)
    else:
        typer.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), nl=False)


def methods() -> None:
    """List the methods, what they are, and whether they have a form for Swins."""
    from vidpipe.methods.registry import METHODS, SWIN_METHODS

    for name, method in METHODS.items():
        doc = (method.__doc__ or "").strip() or (
            sys.modules[method.__module__].__doc__ or ""
        ).strip()
        swin = "ViT, Swin" if name in SWIN_METHODS else "ViT"
        typer.echo(f"{name:20} {swin:10} {doc.splitlines()[0]}")


def recipes(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the recipes: what they cost, and what the papers report for them."""
    from pipeline.tools.list_recipes import run as show

    show(json)
