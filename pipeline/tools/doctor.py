"""`vidpipe doctor`: whether this machine and this project can do the work, a line each."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from vidpipe.errors import VidpipeError
from vidpipe.params import Params, load_params

Verdict = Literal["ok", "warning", "missing"]
FREE_GB = 5
"""Disk that a project of some size needs at least."""


@dataclass(frozen=True)
class Check:
    verdict: Verdict
    what: str
    detail: str


def run(file: Path, workspace: Path, overlays: Sequence[Mapping[str, Any]] = ()) -> list[Check]:
    """All checks of the machine, and of the project whose parameters `file` holds."""
    params, first = _params(file, overlays)
    checks = [first, _python(), _gpu(), _memory(), _ffmpeg(), _disk(workspace), _tools(), _ray()]
    if params is not None:
        checks += [_data(params), _weights(params), _mlflow(params), *_packages(params)]
    return checks


def _params(file: Path, overlays: Sequence[Mapping[str, Any]]) -> tuple[Params | None, Check]:
    if not file.exists():
        return None, Check("warning", "parameters", f"{file}: none here; `vidpipe init` makes one")
    try:
        return load_params(file, list(overlays)), Check("ok", "parameters", f"{file} is valid")
    except VidpipeError as error:
        return None, Check("missing", "parameters", str(error))


def _python() -> Check:
    names = ("torch", "timm", "ray", "mlflow", "dvc")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return Check("ok", "versions", f"Python {platform.python_version()}, {found}")


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        free, total = (part / 2**30 for part in torch.cuda.mem_get_info())
        name = torch.cuda.get_device_name()
        return Check("ok", "GPU", f"{name}, {free:.1f} of {total:.1f} GiB free")
    if torch.version.cuda is None:
        return Check("warning", "GPU", "this torch is built without CUDA; trainings use the CPU")
    return Check("warning", "GPU", "torch sees none; trainings use the CPU")


def _memory() -> Check:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    verdict: Verdict = "ok" if free > 2 else "warning"
    return Check(verdict, "memory", f"{free:.1f} GiB free, {os.cpu_count()} CPUs")


def _ffmpeg() -> Check:
    import av

    missing = [f"{name} ({mode})" for name, mode in CODECS if not _has(name, mode)]
    libraries = av.library_versions.get("libavcodec", ())
    told = f"PyAV {version('av')}, libavcodec {'.'.join(map(str, libraries))}"
    if missing:
        return Check("missing", "FFmpeg", f"{told} has no {', '.join(missing)}; pip install av")
    return Check("ok", "FFmpeg", f"{told}, reads and writes H.264")


CODECS: tuple[tuple[str, Literal["r", "w"]], ...] = (
    ("h264", "r"),
    ("libx264", "w"),
    ("hevc", "r"),
    ("vp9", "r"),
)


def _has(name: str, mode: Literal["r", "w"]) -> bool:
    import av

    try:
        av.codec.Codec(name, mode)
    except Exception:  # PyAV's class of this has another name in each version
        return False
    return True


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Check("missing", "disk", f"{folder.resolve().name}: not writable")
    verdict: Verdict = "ok" if free >= FREE_GB else "warning"
    return Check(verdict, "disk", f"{free:.0f} GB free here")


def _tools() -> Check:
    lacking = [name for name in ("git", "dvc") if shutil.which(name) is None]
    if lacking:
        return Check("warning", "commands", f"not on the path: {', '.join(lacking)}")
    return Check("ok", "commands", "git and dvc are on the path")


def _ray() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return Check(
            "ok", "Ray", "none is running that RAY_ADDRESS names; it starts where asked for"
        )
    from pipeline.infra.ray.connection import refuse_silence

    try:
        refuse_silence(address)
    except OSError as error:
        why = error.strerror or str(error)
        return Check("missing", "Ray", f"RAY_ADDRESS {address}: no Ray answers ({why})")
    return Check("ok", "Ray", f"RAY_ADDRESS {address}")


def _data(params: Params) -> Check:
    root = Path(params.data.root)
    if root.is_dir():
        return Check("ok", "videos", f"{root}")
    return Check("warning", "videos", f"data.root: {root}: no such folder yet")


def _weights(params: Params) -> Check:
    from vidpipe.weights import read_header

    backbone = params.backbone
    file = Path(backbone.weights)
    if backbone.hub_tag is not None:
        return Check("ok", "weights", f"{backbone.name} from the hub, when they are first needed")
    if not file.is_file():
        fetch = f"`vidpipe fetch-weights {backbone.name} {file}` fetches them"
        return Check("missing", "weights", f"backbone.weights: {file}: no such file; {fetch}")
    if file.suffix != ".safetensors":
        return Check("ok", "weights", f"{file}")
    try:
        tensors = read_header(file)
    except VidpipeError as error:
        return Check("missing", "weights", str(error))
    count = sum(tensor.numel() for tensor in tensors.values())
    return Check("ok", "weights", f"{file}: {count / 1e6:.1f} M numbers of {backbone.name}")


def _mlflow(params: Params) -> Check:
    from pipeline.infra.mlflow import journal
    from pipeline.infra.mlflow.server import server_at, tracking_uri
    from pipeline.infra.mlflow.sqlite_store import file_of

    own = file_of(tracking_uri(params.tracking))
    if own is not None and not own.exists():
        return Check("ok", "MLflow", f"{own.name} is made by the first command that logs")
    try:
        server = server_at(tracking_uri(params.tracking))
        server.ask(lambda client: client.search_experiments(max_results=1))
    except VidpipeError as error:
        verdict: Verdict = "missing" if params.tracking.required else "warning"
        return Check(verdict, "MLflow", str(error))
    unsent = len(journal.kept())
    if unsent:
        return Check("warning", "MLflow", f"{unsent} runs wait; `vidpipe sync` sends them")
    return Check("ok", "MLflow", f"{server.name} answers")


def _packages(params: Params) -> Iterator[Check]:
    """Of formats and readers that the parameters name and a plain install lacks."""
    wanted: list[tuple[bool, str, str]] = [
        ("onnx" in params.export.formats, "onnxruntime", "export.formats: onnx"),
        (params.data.reader == "torchcodec", "torchcodec", "data.reader: torchcodec"),
        (params.data.reader == "decord", "decord", "data.reader: decord"),
    ]
    for asked, package, why in wanted:
        if asked and not _installed(package):
            yield Check("missing", "package", f"{why} needs {package}; pip install {package}")


def _installed(package: str, find: Callable[[str], str] = version) -> bool:
    try:
        find(package)
    except PackageNotFoundError:
        return False
    return True
