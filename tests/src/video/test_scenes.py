"""Scenes of several motions: what is labelled moves as it says, and backwards is the reverse."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from project import command

from pipeline.stages import synth
from vidpipe.video import scenes
from vidpipe.video.config import SynthConfig

CLEAN = {
    "noise": 0.0,
    "clips_per_class": 6,
    "fps": 8,
    "size_px": (48, 64),
    "duration_s": (1.0, 1.5),
}


def config(scene: str, **more: object) -> SynthConfig:
    return SynthConfig.model_validate({"scene": scene, **CLEAN, **more})


def every(scene: str, **more: object) -> list[scenes.Scene]:
    own = config(scene, **more)
    return [scenes.render(own, i, False) for i in range(scenes.count(own))]


@pytest.mark.parametrize("scene", ["two", "turns"])
def test_backwards_is_the_same_frames_and_every_motion_reversed(scene: str) -> None:
    own = config(scene)
    for index in range(4):
        forth, back = (scenes.render(own, index, backwards) for backwards in (False, True))
        assert (back.frames == forth.frames[::-1]).all()
        turned = [scenes.REVERSE[m.label] for m in forth.motions[::-1]]
        assert [m.label for m in back.motions] == turned
        for a, b in zip(forth.motions[::-1], back.motions, strict=True):
            assert (b.start, b.end) == (len(forth.frames) - a.end, len(forth.frames) - a.start)


def middle(boxes: np.ndarray, axis: int) -> np.ndarray:
    return boxes[:, [axis, axis + 2]].mean(1)


def area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


MOVES = {
    "move_left": lambda b: -np.diff(middle(b, 0)),
    "move_right": lambda b: np.diff(middle(b, 0)),
    "move_up": lambda b: -np.diff(middle(b, 1)),
    "move_down": lambda b: np.diff(middle(b, 1)),
    "grow": lambda b: np.diff(area(b)),
    "shrink": lambda b: -np.diff(area(b)),
}


@pytest.mark.parametrize("scene", ["two", "turns"])
def test_boxes_go_where_the_label_says(scene: str) -> None:
    seen = set()
    for found in every(scene, pairs=("horizontal", "vertical", "scale")):
        for motion in [*found.motions, *found.reversed().motions]:
            steps = MOVES[motion.label](motion.boxes[motion.start : motion.end])
            assert steps.sum() > 0.02, motion.label
            assert (steps > -0.03).all()  # a pixel
            seen.add(motion.label)
    assert seen == set(MOVES)


def test_two_shapes_keep_to_their_halves_and_some_stay_still() -> None:
    found = every("two", clips_per_class=20)
    moving = [len(scene.motions) for scene in found]
    assert set(moving) == {0, 1, 2}
    for scene in found:
        for motion in scene.motions:
            left = motion.boxes[:, 2] <= 0.5
            assert left.all() or (motion.boxes[:, 0] >= 0.5).all()
        halves = np.split(scene.frames.astype(int), 2, axis=2)
        changed = [bool((np.abs(np.diff(half, axis=0)) > 8).any()) for half in halves]
        assert sum(changed) == len(scene.motions)


def test_turns_do_not_overlap_and_nothing_moves_between_them() -> None:
    for scene in every("turns"):
        ends = [0, *(m.end for m in scene.motions)]
        starts = [*(m.start for m in scene.motions), len(scene.frames)]
        assert len(scene.motions) == scenes.TURNS
        for end, start in zip(ends, starts, strict=True):
            assert start - end >= 2
            still = scene.frames[end + 1 : start - 1].astype(int)
            assert not (np.abs(np.diff(still, axis=0)) > 1).any()


def test_turns_stay_in_the_frame() -> None:
    for scene in every("turns", clips_per_class=12):
        boxes = scene.motions[0].boxes
        assert (area(boxes) > 0.003).all()


@pytest.mark.parametrize(
    ("scene", "table", "header"),
    [
        ("two", "labels.csv", ["path", "label", "split"]),
        ("turns", "spans.csv", ["path", "start", "end", "label", "split"]),
    ],
)
def test_the_tables_are_those_of_the_layouts(
    tmp_path: Path, scene: str, table: str, header: list[str]
) -> None:
    own = config(scene, clips_per_class=2)
    counts = synth.run(own, tmp_path / "synth")
    with (tmp_path / "synth" / table).open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == header
    paths = {row[0] for row in rows[1:]}
    assert len(paths) == counts["clips"] == 2 * scenes.count(own)
    assert all((tmp_path / "synth" / path).is_file() for path in paths)
    of = {path: {row[-1] for row in rows[1:] if row[0] == path} for path in paths}
    for path, splits in of.items():  # a scene and its reverse are on one side
        assert splits == of[path.replace("forwards", "backwards")]
    assert {split for splits in of.values() for split in splits} == {"train", "val"}
    synth.refuse_other(own, tmp_path / "synth")


def test_a_folder_of_other_videos_is_not_rendered_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from small_store import small_project

    small_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "data/synth/mine.mp4"
    mine.parent.mkdir()
    mine.write_bytes(b"video")
    words = ("run", "--methods", "aim", "--set", "data.root=data/synth")
    assert command(monkeypatch, *words) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "data/synth/mine.mp4: not of the data set that is to be rendered there" in line
    assert mine.read_bytes() == b"video"
