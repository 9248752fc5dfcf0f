"""`vidpipe demo`: a page on this machine to drop a clip on a model.

Nothing is fetched from the internet, nothing leaves the machine, and no other page may ask for anything;
uploads are limited in size, decoded in a process of their own, and deleted when they have been read.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid

from pipeline.infra.console import console
from pipeline.infra.own_page import LOOPBACK, OwnPage, own_hosts
from pipeline.infra.stopping import until_signal
from pipeline.tools.demo_film import Seen, Watching, template, watching
from pipeline.tools.predict import Job, Opened
from pipeline.tools.predict_people import Who
from vidpipe.errors import VidpipeError
from vidpipe.inference.segments import Segment
from vidpipe.tasks.base import said as labels_said
from vidpipe.video.guard import Guards
from vidpipe.video.quarantine import QuarantineError

ADDRESS = LOOPBACK
TOP = 5
PICTURE = 224
"""Pixels a side that smaller frames are enlarged to."""
COLUMNS = 8
EVERY_S = 1.0
"""Between two pictures of a timeline that grows."""
KEPT_S, SWEEP_S = 600, 60
TRIES = 5  # of a free port
"""Seconds that a file stays on disk: pictures of an answer, for the browser, and an upload that nobody
asked about. Seconds between looks at them."""
ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_SERVER_NAME": ADDRESS,
    "GRADIO_SHARE": "False",
    "GRADIO_ALLOWED_PATHS": "",
    "GRADIO_ROOT_PATH": "",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
}
"""What Gradio is told before it is imported; the user's own settings could open the page to others."""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
CSS = """
.gradio-container {width: 100% !important; max-width: 1180px !important; margin: 0 auto;}
#status textarea {font-size: 15px;}
"""
Picture = NDArray[np.uint8]
Answer = tuple[
    dict[str, float] | None, Picture | None, Picture | None, Picture | None, str
]  # probabilities; frames, attention in space and over time, (H, W, 3); a line or two
NOTHING: Answer = (None, None, None, None, "")


def run(job: Job, port: int, who: Who | None = None, smooth: int = 1) -> None:
    """Serve the page on 127.0.0.1:`port` (0: any free one) until Ctrl-C or SIGTERM.

    `who`: where the boxes come from, of models of people in boxes. `smooth`: windows of a timeline that
    are averaged.

    Raises VidpipeError where Gradio is not installed, the port is taken or a model does not fit.
    """
    _free_port(port)  # a taken one is refused before the models are loaded
    stopped = threading.Event()
    scratch = tempfile.TemporaryDirectory(prefix="vidpipe-demo-")
    with until_signal(stopped), scratch as folder:
        watch = watching(job, who or Who(), Path(folder), smooth)
        os.environ.update(ENVIRONMENT, GRADIO_TEMP_DIR=folder)
        with watch.guards() as guards:
            page, look = build(watch, guards)
            with served(page, look, port, job.max_mb) as own:
                console.print(f"http://{ADDRESS}:{own} (Ctrl-C ends it)")
                while not stopped.wait(SWEEP_S):
                    sweep(Path(folder), KEPT_S)


@contextmanager
def served(page: Any, look: dict[str, Any], port: int, max_mb: float) -> Iterator[int]:
    """Context manager that serves `page` from a thread of its own, at the port it yields.

    Raises VidpipeError if it cannot.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)
    page.queue(max_size=16)
    try:
        for left in reversed(range(1 if port else TRIES)):
            own = _free_port(port)
            try:
                _launch(page, look, own, max_mb)
                break
            except OSError as error:  # what was free may be another's by now
                if not left:
                    raise VidpipeError(f"demo: {ADDRESS}:{own}: {error}") from None
        yield own
    finally:
        page.close(verbose=False)


def _launch(page: Any, look: dict[str, Any], port: int, max_mb: float) -> None:
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse

    refusal = PlainTextResponse("this page is for its own address only", 403)
    page.launch(
        server_name=ADDRESS,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=int(max_mb * 2**20),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        app_kwargs={"middleware": [Middleware(OwnPage, hosts=own_hosts(port), refusal=refusal)]},
        **look,
    )


def sweep(folder: Path, age_s: float) -> None:
    """Delete the files below `folder` that nobody has written to for `age_s` seconds."""
    for path in folder.rglob("*"):
        with suppress(OSError):  # another thread was faster
            if path.is_file() and time.time() - path.stat().st_mtime > age_s:
                path.unlink()


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise VidpipeError(
                f"--port {port}: {error.strerror}; name another, or 0 for any free one"
            ) from None
        return int(probe.getsockname()[1])


def build(watch: Watching, guards: Guards[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The page (a Gradio Blocks), and how it looks: arguments of its `launch`."""
    try:
        import gradio as gr
    except ImportError:
        raise VidpipeError("demo: Gradio is missing; pip install 'vidpipe[demo]'") from None
    opened, clips = watch.opened, watch.people is None
    names = list(opened.predictor.models)

    def update(found: Answer) -> tuple[Any, ...]:
        said, frames, spatial, temporal, note = found
        pictures = (frames, spatial, temporal)
        visible = (gr.update(visible=picture is not None) for picture in pictures)
        return (said, *pictures, note, *visible)

    unchanged = (gr.skip(),) * 8
    """Of what `update` gives."""

    def answered(seen: Seen, name: str) -> tuple[Any, ...]:
        if seen.whole is not None:
            return update(answer(opened, name, seen.name, seen.whole))
        seconds = f": {seen.film.seconds:.1f} s" if seen.film else ""
        return update((*NOTHING[:4], f"{seen.name}{seconds}"))

    def dropped(upload: str | None, name: str) -> Iterator[tuple[Any, ...]]:
        """None for the upload, what is known, the film's value, and the rest of the page."""
        yield (None, None, None, *update(NOTHING))
        if upload is None:
            return
        path, seen, shown = Path(upload), None, False
        last = 0.0
        try:
            with suppress(OSError):
                os.utime(path)  # it may have waited for others, and be old
            for seen in watch.look(path, guards):
                if not shown:
                    shown = True
                    yield (None, seen, None, *answered(seen, name))
                elif time.monotonic() - last > EVERY_S:
                    last = time.monotonic()
                    yield (None, seen, watch.value(seen, name), *unchanged)
        except QuarantineError as error:
            yield (None, None, None, *update((*NOTHING[:4], refusal(path.name, error))))
            return
        finally:
            path.unlink(missing_ok=True)
        if seen is not None:
            yield (None, seen, watch.value(seen, name), *unchanged)

    def chosen(seen: Seen | None, name: str) -> tuple[Any, ...]:
        if seen is None:
            return (None, *update(NOTHING))
        return (watch.value(seen, name), *answered(seen, name))

    with gr.Blocks(title="vidpipe", analytics_enabled=False) as page:
        gr.Markdown("## What does the model see in a clip?")
        with gr.Row():
            with gr.Column(scale=2):
                limit = f"{opened.job.max_mb:g} MB"
                drop = gr.File(label=f"A video, up to {limit}", elem_id="drop", height=150)
                model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
                status = gr.Textbox(label="Clip", lines=2, interactive=False, elem_id="status")
                top = gr.Label(
                    num_top_classes=TOP, label=f"Top {TOP}", elem_id="top", visible=clips
                )
            with gr.Column(scale=3):
                film = gr.HTML(None, elem_id="film", apply_default_css=False, **template())
        rows, columns = [], []
        for heading, id_ in (
            ("Frames that the model gets", "frames"),
            ("Where it looks in each frame", "spatial"),
            ("Where it looks over time", "temporal"),
        ):
            with gr.Column(visible=False) as column:
                gr.Markdown(f"**{heading}**")
                row = gr.Image(
                    elem_id=id_, show_label=False, buttons=[], interactive=False, format="png"
                )
            rows.append(row)
            columns.append(column)
        held = gr.State(None)
        shown = [film, top, *rows, status, *columns]
        one_at_a_time: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "api_visibility": "private",
        }
        drop.upload(dropped, [drop, model], [drop, held, *shown], **one_at_a_time)
        model.change(chosen, [held, model], shown, **one_at_a_time)
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    return page, {"theme": theme, "css": CSS}


def refusal(name: str, error: QuarantineError) -> str:
    """Why a file cannot be used, as one line for the page."""
    detail = " ".join(error.detail.split())
    return f"{name} cannot be used: {error.reason.replace('_', ' ')} ({detail[:200]})"


def answer(opened: Opened, model: str, name: str, segment: Segment) -> Answer:
    """What the page shows of a clip: top classes, frames, two rows of overlays, and a line."""
    trained = opened.predictor.models[model]
    (probabilities,) = (found[model] for found in opened.predictor([segment]))
    said = dict(zip(trained.classes, probabilities.tolist(), strict=True))
    frames = opened.predictor.views(segment, trained)[0]
    note = f"{name}: {segment.end_s:.1f} s, {len(frames)} frames"
    if trained.task.has_thresholds:
        found = (trained.classes[i] for i in labels_said(probabilities, trained.thresholds, TOP))
        note += f"\nlabels: {', '.join(found) or 'none of the classes'}"
    spatial = temporal = None
    try:
        from vidpipe.viz.explain import overlay

        first, second, captions = overlay(trained, frames)
        spatial = _strip(first)
        if captions[1] != captions[0]:  # else this model has nothing that looks over time
            temporal = _strip(second)
        note += "\n" + "; ".join(dict.fromkeys(captions))
    except VidpipeError as error:
        note += f"\nno attention to show: {error}"
    return said, _strip(frames), spatial, temporal, note


def _strip(frames: Tensor) -> Picture:
    """(T, 3, h, w) uint8 -> one picture, left to right, COLUMNS a line."""
    size = min(frames.shape[-2:])
    if size < PICTURE:
        larger = size * -(-PICTURE // size)
        frames = F.resize(frames, [larger], interpolation=InterpolationMode.NEAREST)
    empty = COLUMNS - len(frames)
    if empty > 0:  # a short clip's frames are no larger than a long one's
        frames = torch.cat([frames, frames.new_full((empty, *frames.shape[1:]), 255)])
    picture: Picture = make_grid(frames, COLUMNS, padding=4, pad_value=255).permute(1, 2, 0).numpy()
    return picture
