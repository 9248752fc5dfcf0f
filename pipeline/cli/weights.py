"""Commands that bring weights from elsewhere: of a backbone's zoo, of the papers' authors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fetch_weights(
    name: Annotated[str, typer.Argument(help="Model name in the zoo.")],
    file: Annotated[Path, typer.Argument(help="Where to write the .safetensors file.")],
    source: Annotated[str, typer.Option(help="timm or open_clip.")] = "timm",
    tag: Annotated[str, typer.Option(help="Pretrained tag; empty: the default of timm.")] = "",
) -> None:
    """Download a backbone's weights into a local file, which DVC can track."""
    from vidpipe.errors import VidpipeError

    if file.suffix != ".safetensors":
        raise VidpipeError(f"{file}: expected a name ending in .safetensors")
    from pipeline.tools.fetch_weights import fetch

    typer.echo(fetch(source, name, tag, file))


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="What the authors' code saved.")],
    method: Annotated[str, typer.Option("--from", help="aim, st_adapter or zeroi2v.")],
    backbone: Annotated[str, typer.Option(help="Model name in the zoo.")],
    weights: Annotated[str, typer.Option(help="The backbone's weights: a local file, or hub:TAG.")],
    out: Annotated[Path, typer.Option(help="Adapter folder, such as models/aim/adapter.")],
    source: Annotated[str, typer.Option(help="timm or open_clip.")] = "timm",
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames a clip.")] = None,
    sampling: Annotated[str | None, typer.Option(help="uniform or dense.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Of dense sampling.")] = None,
    adapter_scale: Annotated[
        float | None, typer.Option(help="AIM and ZeroI2V: the config's adapter_scale.")
    ] = None,
    stdha: Annotated[
        list[str] | None, typer.Option(help="ZeroI2V's shifts: shift_div=12. Repeatable.")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Only checked: the backbone tells it.")] = None,
    size: Annotated[
        int | None, typer.Option(min=14, help="Input in pixels, where the file has no backbone.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line; default class_0, class_1, ...")
    ] = None,
) -> None:
    """Turn a checkpoint of the authors' released code into an adapter folder."""
    from pipeline.tools import import_checkpoint as tool

    found = tool.run(
        file,
        method,
        backbone={"source": source, "name": backbone, "weights": weights},
        options={
            "num_frames": num_frames,
            "sampling": sampling,
            "stride": stride,
            "adapter_scale": adapter_scale,
            "heads": heads,
            "size": size,
        },
        stdha=stdha or [],
        classes=classes,
        out=out,
    )
    for name, value in found.items():
        typer.echo(f"{name:20} {value}")
