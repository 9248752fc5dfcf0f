"""`vidpipe explain`: what a trained method looks at, clip by clip. Nothing heavy at the top."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.infra.workspace import Workspace
    from vidpipe.params import Params


def run(params: Params, method: str, workspace: Workspace, options: dict[str, Any]) -> list[Path]:
    """A strip and an animated file a clip, in models/METHOD/explanation and in MLflow."""
    from pipeline.infra.console import progress
    from pipeline.infra.mlflow.tracking import tracked_run
    from pipeline.infra.workspace import data_hash, folder_hash, open_store
    from vidpipe.config.identity import config_hash
    from vidpipe.cpu import use_cpu
    from vidpipe.data.dataset import Clips, ViewSet
    from vidpipe.explain import explain_clip
    from vidpipe.explain.attention import block_index
    from vidpipe.files import atomic_folder
    from vidpipe.trained.package import open_model
    from vidpipe.viz.explain import plot_strip, write_animation

    use_cpu(params.train.threads)
    model_folder = workspace.adapter(method)
    if not model_folder.exists() and workspace.package(method).exists():
        model_folder = workspace.package(method)  # all that a deployed model has
    trained = open_model(model_folder, params.backbone.weights)
    block_index(trained.model, options["block"])  # refuses before there is a run
    target = _class_index(trained.classes, "--target", options["target"])
    source = Clips(open_store(workspace, params), options["split"], trained.classes)
    chosen = _choose(source, options)
    views = ViewSet(source, trained.sampling, trained.transform)
    data = data_hash(workspace, params)
    identity = config_hash(options, folder_hash(model_folder), data, trained.sampling)
    folder = workspace.root / "models" / method / "explanation"
    names = []
    with tracked_run(params.tracking, "explain", method, identity) as tracked:
        tracked.params({"explain": options, "method": method})
        with progress() as bar, atomic_folder(folder) as temporary:
            task = bar.add_task(f"explain {method}", total=len(chosen), info="")
            for i in chosen:
                sample, id_ = views[i], source.name(i)
                frames = sample["video"][0]
                found = explain_clip(trained, frames, options["block"], options["grad_cam"], target)
                best = int(found.probabilities.argmax())
                answer = f"{trained.classes[best]} ({float(found.probabilities[best]):.1%})"
                titles = [f"{method}: {answer}", f"label {trained.classes[sample['label']]}"]
                name = safe_name(id_)
                title = ", ".join([*titles, f"clip {id_}"])
                plot_strip(found, title, temporary / f"{name}.png")
                write_animation(found, "\n".join(titles), temporary / f"{name}.gif")
                names += [f"{name}.png", f"{name}.gif"]
                bar.advance(task)
        for name in names:
            tracked.artifact(folder / name, "explanation")
    return [folder / name for name in names]


def safe_name(id_: str) -> str:
    """A file name for the id of a clip; where characters had to go, a hash keeps it unique."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", id_).lstrip(".")
    if name == id_ and len(name) <= 100:
        return name
    return f"{name[:80]}-{hashlib.sha256(id_.encode()).hexdigest()[:8]}"


def _class_index(classes: list[str], option: str, name: str | None) -> int | None:
    from vidpipe.config.messages import nearest
    from vidpipe.errors import VidpipeError

    if name is not None and name not in classes:
        raise VidpipeError(f"{option} {name}: no such class{nearest(name, classes)}")
    return None if name is None else classes.index(name)


def _choose(source: Any, options: dict[str, Any]) -> list[int]:
    """As `vidpipe data show` chooses: some of the clips, or of one class's, in their order."""
    import numpy as np

    from vidpipe.errors import VidpipeError

    wanted = np.arange(len(source))
    own = _class_index(list(source.classes), "--class", options["class"])
    if own is not None:
        wanted = np.flatnonzero(source.labels == own)
    if len(wanted) == 0:
        raise VidpipeError(
            f"--class {options['class']}: no usable clip of it in split {options['split']}"
        )
    chosen = np.random.default_rng(options["seed"]).permutation(wanted)[: options["clips"]]
    return [int(i) for i in np.sort(chosen)]
