"""Checkpoints at a URL: a machine is lost with its disk, and the training goes on elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fsspec
import pytest
from small_store import small_project
from trainings import make, trainer, weights

from pipeline.cli.app import main
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.training.loop import Trainer
from vidpipe.training.mirror import MARK, Mirror
from vidpipe.training.state import Checkpoints


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and a store that knows no folders, only names with slashes."""
    if request.param == "file":
        return f"file://{tmp_path}/bucket/run"
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/run"


def build(folder: Path, url: str | None) -> Trainer:
    model = make("st_adapter")
    checkpoints = Checkpoints(folder, url)
    return trainer(model, checkpoints=checkpoints, epochs=3, warmup_epochs=0.5, checkpoint_every=2)


def stop_after(run: Trainer, steps: int) -> None:
    left = iter([False] * (steps - 1) + [True] * 100)
    run.stop = lambda: next(left)
    with pytest.raises(TrainingStopped):
        run.run()


def test_a_training_goes_on_where_its_folder_is_lost(tmp_path: Path, url: str) -> None:
    whole = build(tmp_path / "whole", None)
    whole.run()
    run = build(tmp_path / "one", url)
    stop_after(run, 5)
    reached = run.progress.step
    assert reached >= 4
    shutil.rmtree(tmp_path / "one")
    again = build(tmp_path / "two", url)
    assert again.progress.step == reached
    again.run()
    for name, tensor in weights(whole.model).items():
        assert tensor.equal(weights(again.model)[name]), name
    assert again.progress.history == whole.progress.history
    # As in the folder itself.
    assert Mirror(url).names() == Checkpoints(tmp_path / "two").names()


def test_what_lies_here_is_gone_on_from_where_it_is_newer(tmp_path: Path, url: str) -> None:
    stop_after(build(tmp_path / "one", url), 4)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    stop_after(build(tmp_path / "copy", None), 3)
    ahead = Checkpoints(tmp_path / "copy").last()
    assert ahead is not None
    assert build(tmp_path / "copy", url).resumed_from == ahead


def test_a_copy_that_was_not_finished_does_not_count(tmp_path: Path, url: str) -> None:
    run = build(tmp_path / "one", url)
    stop_after(run, 5)
    mirror = Mirror(url)
    last = mirror.names()[-1]
    mirror.system.rm_file(f"{mirror.root}/{last}/{MARK}")
    assert last not in mirror.names()
    shutil.rmtree(tmp_path / "one")
    assert build(tmp_path / "two", url).progress.step < run.progress.step


def test_a_copy_that_was_changed_is_refused(tmp_path: Path, url: str) -> None:
    stop_after(build(tmp_path / "one", url), 4)
    mirror = Mirror(url)
    last = mirror.names()[-1]
    mirror.system.pipe_file(f"{mirror.root}/{last}/trained.safetensors", b"other")
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(VidpipeError, match=r"trained.safetensors is not what was saved there"):
        build(tmp_path / "two", url)
    assert not list((tmp_path / "two").glob("*"))


def test_a_name_in_the_card_cannot_leave_the_folder(tmp_path: Path, url: str) -> None:
    stop_after(build(tmp_path / "one", url), 4)
    mirror = Mirror(url)
    last = mirror.names()[-1]
    mirror.system.pipe_file(f"{mirror.root}/{last}/evil", b"x")
    card = {"../../evil": {"bytes": 1, "sha256": "0"}}
    mirror.system.pipe_file(f"{mirror.root}/{last}/{MARK}", json.dumps(card).encode())
    with pytest.raises(VidpipeError):
        mirror.pull(last, tmp_path / "deep" / "two")
    assert not (tmp_path / "evil").exists()


def test_a_store_that_refuses_is_one_line_and_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "bucket").write_text("a file where a folder should be")
    run = build(tmp_path / "one", f"file://{tmp_path}/bucket/run")
    with pytest.raises(VidpipeError, match=r"train.storage: file://.* cannot be written"):
        run.run()
    last = Checkpoints(tmp_path / "one").last()
    assert last is not None
    with pytest.raises(VidpipeError, match=r"train.storage: nothing://x cannot be opened"):
        Mirror("nothing://x")


def test_the_command_goes_on_from_the_url(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vidpipe.training.loop import Trainer as Loop

    small_project(in_folder)
    words = ["vidpipe", "train", "--method", "zeroi2v", "--set"]
    words.append(f"train.storage=file://{in_folder}/bucket")
    monkeypatch.setattr("sys.argv", words)

    def lost(self: Loop, timing: object) -> object:
        if self.progress.epoch == 2:
            raise VidpipeError("the machine is lost")
        return end_epoch(self, timing)

    end_epoch = Loop._end_epoch
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_end_epoch", lost)
        with pytest.raises(SystemExit):
            main()
    assert "the machine is lost" in capsys.readouterr().err
    (name,) = (p.name for p in (in_folder / "bucket").iterdir())
    assert name.startswith("zeroi2v-")
    shutil.rmtree(in_folder / "ray")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "goes on after step 4, from" in capsys.readouterr().err
    assert (in_folder / "models" / "zeroi2v" / "adapter" / "config.json").exists()
    assert not (in_folder / "bucket" / name).exists()  # of no more use
