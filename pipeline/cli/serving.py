"""The command that answers requests: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.trained import HUB, Timeout, Weights, model_folders

TOKEN = "VIDPIPE_ADMIN_TOKEN"


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Adapter or package folders, or hf://OWNER/NAME@REVISION; NAME=... names one. Adapters "
            "of one backbone have it in memory once."
        ),
    ],
    *,
    host: Annotated[
        str,
        typer.Option(help="Address to listen at; another than this machine's is open to others."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of HTTP.")] = 8000,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder below which paths of videos, and of models to load, are read; default: none.",
        ),
    ] = None,
    allow_urls: Annotated[
        bool,
        typer.Option("--allow-urls", help="Fetch videos by http and https, from the internet."),
    ] = False,
    allow_private_urls: Annotated[
        bool,
        typer.Option(
            "--allow-private-urls",
            help="With --allow-urls: also from addresses of this machine and its network.",
        ),
    ] = False,
    max_queue: Annotated[
        int,
        typer.Option(min=1, max=1000, help="Requests at a time, of a replica; others get a 429."),
    ] = 32,
    batch_size: Annotated[
        int, typer.Option(min=1, max=256, help="Clips that go through a model together.")
    ] = 8,
    batch_wait: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds that a clip waits for others.")
    ] = 5,
    top: Annotated[
        int, typer.Option(min=1, help="Labels to name, where a request does not say.")
    ] = 5,
    max_mb: Annotated[float, typer.Option(min=0.001, max=4096, help="Of one video.")] = 64,
    max_frames: Annotated[int, typer.Option(min=1, max=10_000_000, help="Of one video.")] = 10_000,
    timeout: Timeout = 60,
    decoders: Annotated[
        int, typer.Option(min=1, max=64, help="Decoding processes of a replica.")
    ] = 2,
    replicas: Annotated[
        int,
        typer.Option(min=1, max=1000, help="Processes that hold the models; a GPU each, if any."),
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs of a replica; default: this machine's, shared out."),
    ] = None,
    weights: Weights = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help="Of models of task detection: weights of torchvision's person detector, a file or hub."
        ),
    ] = None,
    detector_model: Annotated[
        str, typer.Option(help="Of torchvision: fasterrcnn_...")
    ] = "fasterrcnn_resnet50_fpn_v2",
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Of a person's box.")] = 0.8,
    ray: Annotated[
        str | None,
        typer.Option(
            help="The Ray to run on: auto or host:port; default: RAY_ADDRESS, or one of its own."
        ),
    ] = None,
) -> None:
    """Answer videos over HTTP, on Ray Serve: labels, timelines, boxes."""
    import os

    from pipeline.infra.ray.connection import where_ray_is
    from pipeline.tools.predict_people import Who
    from pipeline.tools.serving import run as tool
    from pipeline.tools.serving.service import Settings, cpus
    from vidpipe.errors import VidpipeError
    from vidpipe.inference.given import Rules
    from vidpipe.trained.predictor import model_name

    if root is not None and not root.is_dir():
        raise VidpipeError(f"--root {root}: no such folder")
    named = []
    for text in models:
        name, equals, place = text.partition("=")
        if not equals or text.startswith(HUB) or Path(text).is_dir():
            name, place = "", text
        if not place.startswith(HUB) and not Path(place).is_dir():
            raise VidpipeError(f"{place}: no such folder; expected an adapter or a package")
        (folder,) = model_folders([place], weights)
        named.append((name or model_name(folder), folder.resolve()))
    if allow_private_urls and not allow_urls:
        raise VidpipeError("--allow-private-urls: only with --allow-urls")
    token = os.environ.get(TOKEN) or None
    settings = Settings(
        models=tuple(named),
        rules=Rules(
            None if root is None else root.resolve(),
            allow_urls,
            allow_private_urls,
            max_mb,
            max_frames,
            timeout,
        ),
        weights=None if weights is None else _absolute(weights),
        max_queue=max_queue,
        batch_size=batch_size,
        batch_wait_s=batch_wait / 1000,
        decoders=decoders,
        threads=threads or max(1, cpus() // replicas),
        top=top,
        who=Who(None, detector and _absolute(detector), detector_model, min_score),
        admin=tool.is_loopback(host) or token is not None,
        token=token,
        hosts=tool.hosts_of(host, port),
    )
    tool.run(settings, host, port, replicas, ray or where_ray_is())


def _absolute(text: str) -> str:
    """A file's path as replicas find it, which run in folders of their own; `hub` as it is."""
    return str(Path(text).resolve()) if Path(text).is_file() else text
