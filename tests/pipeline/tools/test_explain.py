"""`vidpipe explain`: pictures of clips, written and tracked."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from people import HEIGHT, people, people_config, small_detector
from small_store import small_project
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.infra.workspace import Workspace
from pipeline.stages import extract
from pipeline.tools import explain as tool
from pipeline.tools.explain import Request, label_text, safe_name
from vidpipe.errors import VidpipeError
from vidpipe.new_model import new_model
from vidpipe.params import load_params
from vidpipe.trained.adapter import save_adapter
from vidpipe.video.config import ExtractConfig
from vidpipe.video.store import FrameStore


def test_names_of_files_are_safe_and_unique() -> None:
    assert safe_name("clip_01.a-b") == "clip_01.a-b"
    names = {safe_name(id_) for id_ in ("a/b", "a_b", "a b", "../a_b", ".a_b", "x" * 300)}
    assert len(names) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) for name in names)


def explain(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["explain", *arguments])
    if result.exception:
        raise result.exception
    return result.stdout.splitlines()


def test_the_command_writes_and_tracks_pictures_of_clips(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{in_folder}/mlflow.db")
    small_project(in_folder)
    with pytest.raises(VidpipeError, match=r"models/zeroi2v/adapter/config\.json: no such file"):
        explain("--method", "zeroi2v")
    trained = new_model(load_params(Path("params.yaml"), []), "zeroi2v", ["a", "b"])
    for tensor in trained.model.adapter_state().values():
        tensor += 0.05 * torch.randn_like(tensor)
    save_adapter(Path("models/zeroi2v/adapter"), trained, {})

    command = ("--method", "zeroi2v", "--clips", "2", "--grad-cam")
    printed = explain(*command)
    folder = Path("models/zeroi2v/explanation")
    assert sorted(map(Path, printed)) == sorted(folder.iterdir())
    ids = {Path(path).stem for path in printed}
    assert len(ids) == 2
    assert ids < {"c7", "c8", "c9"}  # the store's val clips
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert explain(*command) == printed
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first

    client = MlflowClient(f"sqlite:///{in_folder}/mlflow.db")
    experiment = client.get_experiment_by_name("vidpipe")
    assert experiment is not None
    explained = "tags.`vidpipe.stage` = 'explain'"
    (run,) = client.search_runs(
        [experiment.experiment_id], explained
    )  # the second found the first's
    assert run.data.tags["vidpipe.stage"] == "explain"
    logged = client.list_artifacts(run.info.run_id, "explanation")
    assert {Path(file.path).name for file in logged} == set(first)

    printed = explain("--method", "zeroi2v", "--class", "b", "--clips", "9")
    assert [Path(path).name for path in printed] == ["c7.png", "c7.gif", "c9.png", "c9.gif"]
    shown = set(folder.iterdir())
    for wrong, message in (
        (("--class", "bb"), "--class bb: no such class; nearest is b"),
        (("--split", "test"), "expected train or val"),
        (("--target", "a"), "add --grad-cam"),
        (("--block", "4"), "blocks are 0..3"),
    ):
        with pytest.raises(VidpipeError, match=re.escape(message)):
            explain("--method", "zeroi2v", *wrong)
    assert set(folder.iterdir()) == shown  # what failed left the folder as it was


class NoRun:
    """A run of MLflow that is nowhere."""

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> NoRun:
        return self

    def __exit__(self, *_: object) -> None: ...

    def params(self, *_: Any) -> None: ...

    artifact = picture = params


def test_each_box_of_a_key_frame_is_explained(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = people_config(people(in_folder / "people", train=1, val=1))
    extract.run(data, ExtractConfig(short_side=HEIGHT, crf=8, num_workers=1), Path("data/store"))
    save_adapter(Path("models/st_adapter/adapter"), small_detector(in_folder), {})
    small = SimpleNamespace(threads=1, use_gpu="never")
    params: Any = SimpleNamespace(
        data=data.model_copy(update={"store": "data/store"}),
        train=small,
        tracking=None,
        backbone=SimpleNamespace(weights=str(in_folder / "vit.safetensors")),
    )
    monkeypatch.setattr(tool, "tracked_run", NoRun)
    monkeypatch.setattr(tool, "choose_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(tool, "open_store", lambda *_: FrameStore("data/store"))
    asked = Request(4, None, "val", False, None, -1, 0)
    written = tool.run(params, "st_adapter", Workspace(Path()), asked)
    # One key frame of two: the other is excluded; two people, each as strip and animation.
    assert [re.sub(r"-\w{8}-", "-", path.name) for path in written] == [
        f"val_0_1-box{number}.{kind}" for number in (1, 2) for kind in ("png", "gif")
    ]
    assert len({path.read_bytes() for path in written}) == 4


def test_labels_as_text() -> None:
    classes = ["run", "jump"]
    assert label_text(1, classes) == "jump"
    assert label_text(torch.tensor([1, 1]), classes) == "run, jump"
    assert label_text(torch.tensor([0, 0]), classes) == "none"
