"""Two shapes a clip with their boxes, in AVA's form: what `demo_detection` is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.stages import synth
from vidpipe.data.boxes import PROPOSAL
from vidpipe.data.config import DataConfig
from vidpipe.data.layouts import list_items
from vidpipe.video import scenes
from vidpipe.video.config import SynthConfig


def test_the_boxes_are_where_the_shapes_are(tmp_path: Path) -> None:
    config = SynthConfig(
        scene="two",
        pairs=("horizontal",),
        clips_per_class=4,
        duration_s=(2.0, 2.2),
        size_px=(32, 40),
    )
    out = tmp_path / "synth"
    synth.run(config, out)
    synth.refuse_other(config, out)
    listing = list_items(
        DataConfig.model_validate({"root": str(out), "task": "detection", "layout": "ava"})
    )
    assert listing.classes == config.classes
    boxes = listing.boxes
    assert boxes is not None
    own = boxes.take(boxes.action != PROPOSAL)
    seen = 0
    for index, backwards, path in scenes.names(config):
        scene = scenes.render(config, index, backwards)
        number = next((i for i, video in enumerate(boxes.videos) if video == path), None)
        for second, box, label, _ in scenes.key_boxes(scene, config.fps):
            mine = (own.video == number) & (own.second == second)
            near = np.abs(own.boxes[mine] - box).max(1) < 1e-3
            assert near.any()
            actions = own.action[mine][near]
            assert listing.classes.index(label) in actions.tolist()
            frame = scene.frames[min(second * config.fps, len(scene.frames) - 1)]
            height, width = frame.shape[:2]
            x1, y1, x2, y2 = (box * [width, height, width, height]).round().astype(int)
            inside = frame[y1:y2, x1:x2].mean()
            half = frame[:, : width // 2] if x2 <= width // 2 else frame[:, width // 2 :]
            assert inside > half.mean(), "shapes are brighter than what is behind them"
            seen += 1
    assert seen >= 8
    found = boxes.take(boxes.action == PROPOSAL)
    assert len(found)
    for row in range(len(found)):
        same = (own.video == found.video[row]) & (own.second == found.second[row])
        assert np.abs(own.boxes[same] - found.boxes[row]).max(1).min() < 0.03
