"""`vidpipe init`: a project of the user's own, with a proposal for their videos and this machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.infra.console import console
from pipeline.infra.project_files import Ask, write_project
from pipeline.infra.survey import Survey, survey
from vidpipe.backbones.still import ARCHITECTURE, INPUT_SIZE, WEIGHTS
from vidpipe.errors import VidpipeError
from vidpipe.version import __version__

METHODS = ("linear_probe", "st_adapter", "aim", "zeroi2v")
"""The floor, and the three whose papers this is about."""
RENDERED_PAIRS = [["move_left", "move_right"], ["move_up", "move_down"]]
STEPS = {"cpu": 600, "cuda": 3000}
"""Of a training that is proposed, on each kind of device."""
HUB = "https://huggingface.co"
CPU_SIZE, SMALL_SIZE = 224, 112
"""Pixels that a CPU manages; and where the videos have no more than the second, that."""
PATCH = re.compile(r"patch(\d+)")


@dataclass(frozen=True)
class Choice:
    """A backbone that is proposed, and why."""

    backbone: str
    weights: str
    """As params.yaml names it: a file."""
    size: int | None
    short_side: int
    reason: str
    fetch: str | None = None
    """The command that brings the weights."""


def run(
    folder: Path, data: Path | None, weights: Path | None, backbone: str | None, ask: Ask
) -> list[str]:
    """Make a project in `folder`; returns the commands that come next.

    `data`: the user's videos; None: rendered clips, which need nothing. `weights` of `backbone`: a local
    file. Raises VidpipeError where the videos or the weights cannot be used, before anything is written.
    """
    if (weights is None) != (backbone is None):
        raise VidpipeError("--weights and --backbone: give both, or neither")
    place = folder.resolve()
    seen = None if data is None else survey(data, _named(data, place))
    choice = _choose(weights, backbone, place, seen)
    if seen is not None:
        console.print(f"{data}:")
        for line in seen.lines():
            console.print(f"  {line}")
    console.print(f"backbone: {choice.backbone}: {choice.reason}")
    values = _values(place, seen, choice)
    place.mkdir(parents=True, exist_ok=True)
    for file in write_project(place, values, ask):
        console.print(f"  {file.what:9} {file.name}")
    if choice.weights == _embedded():
        target = place / choice.weights
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(WEIGHTS, target)
    _repositories(place)
    return _next(folder, seen, choice)


def _named(data: Path, place: Path) -> str:
    """Relative where the videos lie in the project, so that it may move; else where they are."""
    absolute = data.resolve()
    return str(absolute.relative_to(place) if absolute.is_relative_to(place) else absolute)


def _embedded() -> str:
    return f"weights/{WEIGHTS.name}"


def _choose(weights: Path | None, backbone: str | None, place: Path, seen: Survey | None) -> Choice:
    """`seen`: None for rendered clips."""
    from vidpipe.device import choose_device

    gpu = choose_device("auto").type == "cuda"
    if weights is not None and backbone is not None:
        if not weights.is_file():
            raise VidpipeError(f"--weights {weights}: no such file")
        from vidpipe.backbones.config import BackboneConfig
        from vidpipe.backbones.input_card import input_card

        config = BackboneConfig.of(backbone, str(weights))
        own = min(_sides(input_card(config).size))
        size, reason = (None, "as given") if gpu else _for_a_cpu(backbone, own, seen)
        short = round((size or own) * 256 / 224)
        return Choice(backbone, _named(weights, place), size, short, reason)
    embedded = Choice(ARCHITECTURE, _embedded(), INPUT_SIZE, 64, "")
    if seen is None:
        return _because(embedded, "comes with the package, and has seen rendered stills only")
    if not _hub_answers():
        return _because(
            embedded,
            f"{HUB} does not answer, so that only the package's own is at hand, which has seen rendered "
            "stills only; for real videos give --backbone NAME --weights FILE",
        )
    name, tag = (
        ("vit_base_patch16_clip_quickgelu_224", "openai")
        if gpu
        else ("vit_small_patch14_dinov2", "lvd142m")
    )
    file = f"weights/{name}.safetensors"
    reason = f"fits {'this GPU' if gpu else 'a CPU'}; its weights come by the first command below"
    size = None if gpu else CPU_SIZE  # DINOv2's card says 518
    fetch = f"vidpipe fetch-weights {name} {file} --tag {tag}"
    return Choice(name, file, size, 256, reason, fetch)


def _for_a_cpu(backbone: str, own: int, seen: Survey | None) -> tuple[int | None, str]:
    """The size of the pictures, None for the weights' own, and why."""
    sides = sorted(min(size) for size in seen.sizes.elements()) if seen is not None else []
    middle = sides[len(sides) // 2] if sides else CPU_SIZE
    patch = PATCH.search(backbone)
    small = middle <= SMALL_SIZE < own and patch is not None and SMALL_SIZE % int(patch[1]) == 0
    size = SMALL_SIZE if small else CPU_SIZE
    if size >= own:
        return None, "as given"
    videos = f"the videos have {middle} px, and " if small else ""
    return size, f"as given, at {size} px: {videos}there is no GPU (its own size is {own} px)"


def _because(choice: Choice, reason: str) -> Choice:
    return Choice(choice.backbone, choice.weights, choice.size, choice.short_side, reason)


def _sides(size: Any) -> tuple[int, int]:
    from vidpipe.image_size import sides

    return sides(size)


def _hub_answers() -> bool:
    """Within three seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(os.environ.get("HF_ENDPOINT") or HUB, timeout=3):
            return True
    except urllib.error.HTTPError:  # it answers, if not this
        return True
    except (OSError, ValueError):
        return False


def _values(place: Path, seen: Survey | None, choice: Choice) -> dict[str, Any]:
    """What the templates ask for."""
    from vidpipe.device import choose_device

    device = choose_device("auto").type
    clips = seen.train_clips if seen is not None else 72
    batch = max(2, min(32, clips // 4))
    epochs = max(5, min(40, round(STEPS[device] * batch / clips)))
    config = seen.config if seen is not None else None
    default = {"path": "path", "label": "label", "split": "split"}
    columns = config.columns.model_dump() if config is not None else default
    return {
        "name": place.name or "project",
        "version": __version__,
        "methods": METHODS,
        "rendered": seen is None,
        "root": config.root if config is not None else "data/synth",
        "layout": config.layout if config is not None else "table",
        "annotations": config.annotations if config is not None else "labels.csv",
        "columns": {} if columns == default else columns,
        "group": config.group if config is not None else None,
        "short_side": choice.short_side,
        "num_frames": 8,
        "size": choice.size,
        "flip": seen is not None and not seen.has_sides,
        "backbone": choice.backbone,
        "weights": choice.weights,
        "epochs": epochs,
        "warmup": max(1, epochs // 10),
        "batch_size": batch,
        "pairs": RENDERED_PAIRS if seen is None else [],
    }


def _repositories(place: Path) -> None:
    """git's and DVC's, where there are none."""
    if shutil.which("git") is None:
        scm = ["--no-scm"]
    else:
        top = _git(place, "rev-parse", "--show-toplevel")
        if top is None:
            _git(place, "init", "-q")
            top = str(place)
        scm = [] if Path(top).resolve() == place else ["--subdir"]
    if any((folder / ".dvc").is_dir() for folder in (place, *place.parents)):
        return
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "init", "-q", *scm],
        cwd=place,
        capture_output=True,
        text=True,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise VidpipeError(f"{place}: the files are written, but `dvc init` failed: {said}")


def _git(place: Path, *words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=place, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _next(folder: Path, seen: Survey | None, choice: Choice) -> list[str]:
    commands = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    if choice.fetch is not None:
        commands.append(choice.fetch)
    if seen is not None:
        commands.append("vidpipe data check --videos")
    return [*commands, "dvc repro"]
