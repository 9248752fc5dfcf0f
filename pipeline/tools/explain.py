"""`vidpipe explain`: what a trained method looks at, clip by clip."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.infra.console import progress
from pipeline.infra.mlflow.tracking import tracked_run
from pipeline.infra.model_facts import identity_of
from pipeline.infra.workspace import Workspace, data_hash, folder_hash, open_store
from pipeline.tools.choose_clips import choose_clips, class_index
from vidpipe.config.identity import config_hash
from vidpipe.cpu import use_cpu
from vidpipe.device import choose_device
from vidpipe.explain import explain_clip
from vidpipe.explain.attention import block_index
from vidpipe.files import atomic_folder
from vidpipe.params import Params
from vidpipe.tasks.clips import open_clips, open_views
from vidpipe.trained.package import open_model
from vidpipe.viz.explain import plot_strip, write_animation

MOST_BOXES = 4
"""Of a key frame, of task detection."""


@dataclass(frozen=True)
class Request:
    """Which clips to explain, and how."""

    clips: int
    class_name: str | None
    split: str
    grad_cam: bool
    target: str | None
    """The class that Grad-CAM explains; None: the predicted one."""
    block: int
    seed: int


def run(params: Params, method: str, workspace: Workspace, request: Request) -> list[Path]:
    """A strip and an animated file a clip, or ground-truth box, in models/METHOD/explanation and in
    MLflow."""
    use_cpu(params.train.threads)
    device = choose_device(params.train.use_gpu)
    model_folder = workspace.adapter(method)
    if not model_folder.exists() and workspace.package(method).exists():
        model_folder = workspace.package(method)  # all that a deployed model has
    trained = open_model(model_folder, params.backbone.weights)
    block_index(trained.model, request.block)  # refuses before there is a run
    trained.model.to(device)
    target = (
        None if request.target is None else class_index(trained.classes, "--target", request.target)
    )
    source = open_clips(open_store(workspace, params), request.split, trained.classes)
    chosen = choose_clips(source, request.class_name, request.clips, request.seed, request.split)
    views = open_views(source, trained.sampling, trained.transform)
    data = data_hash(workspace, params)
    identity = config_hash(asdict(request), folder_hash(model_folder), data, trained.sampling)
    folder = workspace.root / "models" / method / "explanation"
    names = []
    model = identity_of(model_folder) if model_folder == workspace.adapter(method) else None
    with tracked_run(params.tracking, "explain", method, identity, model) as tracked:
        tracked.params({"explain": asdict(request), "method": method})
        with progress() as bar, atomic_folder(folder) as temporary:
            task = bar.add_task(f"explain {method}", total=len(chosen), info="")
            for i in chosen:
                sample, id_ = views[i], source.name(i)
                frames, options = sample["video"][0], (request.block, request.grad_cam, target)
                for number, label, box in asked(sample):
                    found = explain_clip(trained, frames, *options, box)
                    best = int(found.probabilities.argmax())
                    answer = f"{trained.classes[best]} ({float(found.probabilities[best]):.1%})"
                    titles = [f"{method}: {answer}", f"label {label_text(label, trained.classes)}"]
                    name = safe_name(id_) + (f"-box{number}" if number else "")
                    title = ", ".join([*titles, f"clip {id_}"])
                    plot_strip(found, title, temporary / f"{name}.png")
                    write_animation(found, "\n".join(titles), temporary / f"{name}.gif")
                    names += [f"{name}.png", f"{name}.gif"]
                bar.advance(task)
        for name in names:
            tracked.artifact(folder / name, "explanation")
        for name in names[:2]:
            tracked.picture(folder / name)
    return [folder / name for name in names]


def asked(sample: dict[str, Any]) -> list[tuple[int, Any, Tensor | None]]:
    """What is explained of a clip: (0, label, None), or of each of its first ground-truth boxes (number,
    label, box)."""
    if "boxes" not in sample:
        return [(0, sample["label"], None)]
    known = (sample["label"][:, 0] >= 0).nonzero()[:MOST_BOXES, 0].tolist()
    return [(i + 1, sample["label"][i], sample["boxes"][i]) for i in known]


def label_text(label: Any, classes: Sequence[str]) -> str:
    """Of a class index, or (C,) 1 where there is the class."""
    if isinstance(label, int):
        return classes[label]
    return ", ".join(classes[i] for i in (label > 0).nonzero()[:, 0].tolist()) or "none"


def safe_name(id_: str) -> str:
    """A file name for the id of a clip; where characters had to go, a hash keeps it unique."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", id_).lstrip(".")
    if name == id_ and len(name) <= 100:
        return name
    return f"{name[:80]}-{hashlib.sha256(id_.encode()).hexdigest()[:8]}"
