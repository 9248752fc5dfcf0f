"""`vidpipe demo`: a page on this machine to drop a clip on a model.

Nothing is fetched from the internet, nothing leaves the machine, and no other page may ask for anything;
uploads are limited in size, decoded in a process of their own, and deleted when they have been read.
"""

from __future__ import annotations

import logging
import os
import signal
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
from pipeline.tools.predict import Decoders, Job, Opened
from vidpipe.errors import VidpipeError
from vidpipe.inference.segments import Segment
from vidpipe.video.guard import Guards
from vidpipe.video.quarantine import QuarantineError

ADDRESS = "127.0.0.1"
TOP = 5
PICTURE = 224
"""Pixels a side that smaller frames are enlarged to."""
COLUMNS = 8
KEPT_S, SWEEP_S = 600, 60
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


def run(job: Job, port: int) -> None:
    """Serve the page on 127.0.0.1:`port` (0: any free one) until Ctrl-C or SIGTERM.

    Raises VidpipeError where Gradio is not installed, the port is taken or a model does not fit.
    """
    port = _free_port(port)
    opened = job.open()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="vidpipe-demo-") as folder, Decoders(opened) as held:
        os.environ.update(ENVIRONMENT, GRADIO_TEMP_DIR=folder)
        page, look = build(opened, held.guards)
        with served(page, look, port, job.max_mb):
            console.print(f"http://{ADDRESS}:{port} (Ctrl-C ends it)")
            while not stopped.wait(SWEEP_S):
                sweep(Path(folder), KEPT_S)


@contextmanager
def served(page: Any, look: dict[str, Any], port: int, max_mb: float) -> Iterator[None]:
    """Context manager that serves `page` from a thread of its own. Raises VidpipeError if it cannot."""
    from starlette.middleware import Middleware

    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        page.queue(max_size=16).launch(
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
            app_kwargs={"middleware": [Middleware(OwnPage, port=port)]},
            **look,
        )
        yield
    except OSError as error:
        raise VidpipeError(f"demo: {ADDRESS}:{port}: {error}") from None
    finally:
        page.close(verbose=False)


class OwnPage:
    """ASGI middleware: answers this page only, to whoever opened it under its own name.

    Any other Host is a name that somebody let point here (DNS rebinding): its page could read ours. Any
    other Origin is a page of somebody else that posts to ours.
    """

    def __init__(self, app: Any, port: int) -> None:
        self.app = app
        # Browsers leave out the port of http.
        end = "" if port == 80 else f":{port}"
        self.hosts = {f"{name}{end}" for name in (ADDRESS, "localhost")}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            given = [(key, value.decode("latin-1")) for key, value in scope["headers"]]
            hosts = {value for key, value in given if key == b"host"}
            origins = {value for key, value in given if key == b"origin"}
            if not hosts or hosts - self.hosts or origins - self.origins:
                from starlette.responses import PlainTextResponse

                refusal = PlainTextResponse("this page is for its own address only", 403)
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


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


def build(opened: Opened, guards: Guards[str, Segment]) -> tuple[Any, dict[str, Any]]:
    """The page (a Gradio Blocks), and how it looks: arguments of its `launch`."""
    try:
        import gradio as gr
    except ImportError:
        raise VidpipeError("demo: Gradio is missing; pip install 'vidpipe[demo]'") from None
    names = list(opened.predictor.models)

    def update(found: Answer) -> tuple[Any, ...]:
        said, frames, spatial, temporal, note = found
        pictures = (frames, spatial, temporal)
        visible = (gr.update(visible=picture is not None) for picture in pictures)
        return (said, *pictures, note, *visible)

    def dropped(upload: str | None, name: str) -> tuple[Any, ...]:
        if upload is None:
            return (None, None, *update(NOTHING))
        path = Path(upload)
        try:
            with suppress(OSError):
                os.utime(path)  # it may have waited for others, and be old
            segment = decode(path, guards)
        except QuarantineError as error:
            return (None, None, *update((*NOTHING[:4], refusal(path.name, error))))
        finally:
            path.unlink(missing_ok=True)
        held = (path.name, segment)
        return (None, held, *update(answer(opened, name, *held)))

    def chosen(held: tuple[str, Segment] | None, name: str) -> tuple[Any, ...]:
        return update(NOTHING if held is None else answer(opened, name, *held))

    with gr.Blocks(title="vidpipe", analytics_enabled=False) as page:
        gr.Markdown("## What does the model see in a clip?")
        with gr.Row():
            with gr.Column(scale=1):
                limit = f"{opened.job.max_mb:g} MB"
                drop = gr.File(label=f"A video, up to {limit}", elem_id="drop", height=150)
                model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
                status = gr.Textbox(label="Clip", lines=2, interactive=False, elem_id="status")
            with gr.Column(scale=1):
                top = gr.Label(num_top_classes=TOP, label=f"Top {TOP}", elem_id="top")
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
        shown = [top, *rows, status, *columns]
        one_at_a_time: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "api_visibility": "private",
        }
        drop.upload(dropped, [drop, model], [drop, held, *shown], **one_at_a_time)
        model.change(chosen, [held, model], shown, **one_at_a_time)
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    return page, {"theme": theme, "css": CSS}


def decode(path: Path, guards: Guards[str, Segment]) -> Segment:
    """The whole clip as one segment. Raises QuarantineError."""
    for event in guards.run([str(path)]):
        if isinstance(event.result, QuarantineError):
            raise event.result
        if isinstance(event.result, Segment):
            return event.result
    raise QuarantineError("undecodable", "no frame could be decoded")


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
