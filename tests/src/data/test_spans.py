"""Spans of files: layouts, refusals, the rows of a manifest, and one decode a file."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bad_decoders import counted
from listings import config, put, refused, touch

from pipeline.stages import extract
from vidpipe.data.dataset import Clips
from vidpipe.data.layouts import list_items
from vidpipe.data.spans import windows
from vidpipe.video.config import ExtractConfig, SynthConfig
from vidpipe.video.rendered import render_clip, write_clip
from vidpipe.video.store import FrameStore, read_manifest

HEADER = "path,start,end,label,split\n"
GOOD = (
    HEADER
    + "a.mp4,0.5,1,run,train\na.mp4,1,2,jump,train\nb.mp4,0,1.5,run,val\nb.mp4,1.5,2,jump,val\n"
)


def listed(root: Path, text: str, **options: object) -> object:
    put(root, "spans.csv", text)
    touch(root, "a.mp4", "b.mp4")
    return config(root, "segments", annotations="spans.csv", **options)


def test_a_table_of_spans(tmp_path: Path) -> None:
    found = list_items(listed(tmp_path, GOOD))
    assert [(i.path, i.start_s, i.end_s, i.label, i.split) for i in found.items] == [
        ("a.mp4", 0.5, 1.0, "run", "train"),
        ("a.mp4", 1.0, 2.0, "jump", "train"),
        ("b.mp4", 0.0, 1.5, "run", "val"),
        ("b.mp4", 1.5, 2.0, "jump", "val"),
    ]
    assert found.classes == ("jump", "run")
    assert list_items(listed(tmp_path, GOOD, background="none")).classes == ("jump", "run", "none")
    whole = list_items(
        listed(tmp_path, GOOD.replace(",train", "").replace(",val", "").replace(",split", ""))
    )
    of = {path: {i.split for i in whole.items if i.path == path} for path in ("a.mp4", "b.mp4")}
    assert sorted(map(tuple, of.values())) == [("train",), ("val",)]  # files are not parted


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.mp4,1,1,run,train", "row 2: from '1' to '1'; expected seconds, 0 <= start < end"),
        ("a.mp4,2,1,run,train", "row 2: from '2' to '1'"),
        ("a.mp4,-1,1,run,train", "row 2: from '-1' to '1'"),
        ("a.mp4,x,1,run,train", "row 2: from 'x' to '1'"),
        ("a.mp4,0,1,,train", "row 2: expected path, start, end, label"),
        (
            "a.mp4,0,2,run,train\na.mp4,1.5,3,jump,train",
            r"row 3: 1.5 to 3 s of a.mp4 overlaps 0 to 2 s of row 2",
        ),
        (
            "a.mp4,0,1,run,train\na.mp4,1,2,jump,val",
            "row 3: a.mp4 is in split 'train' and in 'val'",
        ),
        ("../a.mp4,0,1,run,train", "leaves data.root"),
    ],
)
def test_spans_that_cannot_be_are_named_by_file_and_row(
    tmp_path: Path, row: str, message: str
) -> None:
    refused(listed(tmp_path, f"{HEADER}{row}\n"), message)


def test_of_several_labels_equal_spans_are_one(tmp_path: Path) -> None:
    text = GOOD + "a.mp4,0.5,1,wave|run,train\n"
    found = list_items(listed(tmp_path, text, task="multilabel"))
    assert [i.label for i in found.items] == ["run|wave", "jump", "run", "jump"]


def test_activitynet(tmp_path: Path) -> None:
    entry = {"duration": 9.0, "resolution": "320x240", "url": "x"}
    database = {
        "abc": {
            **entry,
            "subset": "training",
            "annotations": [{"segment": [1.5, 2], "label": "run"}],
        },
        "def": {
            **entry,
            "subset": "validation",
            "annotations": [{"segment": [0, 3.25], "label": "sit"}],
        },
        "ghi": {**entry, "subset": "testing", "annotations": []},
    }
    put(tmp_path, "activity_net.json", {"version": "1.3", "database": database})
    touch(tmp_path, "v_abc.mp4", "clips/def.mp4")
    found = list_items(config(tmp_path, "activitynet"))
    assert [(i.path, i.start_s, i.end_s, i.label, i.split) for i in found.items] == [
        ("clips/def.mp4", 0.0, 3.25, "sit", "val"),
        ("v_abc.mp4", 1.5, 2.0, "run", "train"),
    ]
    database["abc"]["annotations"][0]["segment"] = [2, 1]
    put(tmp_path, "activity_net.json", {"database": database})
    refused(config(tmp_path, "activitynet"), "abc, annotation 1: from '2' to '1'; expected seconds")
    put(tmp_path, "activity_net.json", json.dumps({"database": {"abc": {"subset": "x"}}}))
    refused(config(tmp_path, "activitynet"), "abc: expected an object with subset")


def test_the_store_has_each_file_once_and_reads_any_span(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    synth = SynthConfig(fps=10, size_px=(48, 48), duration_s=(2.0, 2.0), noise=0.0)
    for name, label in (("a", "move_left"), ("b", "grow")):
        write_clip(root / f"{name}.mp4", render_clip(synth, label, 0), 10, 14)
    text = GOOD + "b.mp4,2.4,2.6,run,val\n"
    put(root, "spans.csv", text + "b.mp4,3,4,run,val\n")
    data = config(root, "segments", annotations="spans.csv", background="still")

    settings = ExtractConfig(short_side=48, num_workers=1, max_bad_fraction=0.5)
    counts = extract.run(data, settings, tmp_path / "store", partial(counted, tmp_path / "calls"))
    assert sorted((tmp_path / "calls").read_text().split()) == ["a.mp4", "b.mp4"]
    assert counts["clips"] == 5
    assert counts["quarantined_outside_file"] == 2
    bad = read_manifest(tmp_path / "store").rows.query("status != 'ok'")
    assert "row 7: 3 to 4 s, and the video ends at 2.000 s" in bad.detail.iloc[1]
    store = FrameStore(tmp_path / "store")
    assert store.has_spans
    rows = store.rows.set_index("id")
    assert rows.label.to_dict() == {
        "a@0-0.5": "still",
        "a@0.5-1": "run",
        "a@1-2": "jump",
        "b@0-1.5": "run",
        "b@1.5-2": "jump",
    }
    assert rows[["first", "frames", "file_frames"]].loc["a@1-2"].tolist() == [10, 10, 20]
    assert rows.groupby("shard").offset.nunique().sum() == 2
    whole = store.with_rows(store.rows.assign(first=0, frames=store.rows.file_frames))
    for cached in (False, True):
        own = FrameStore(tmp_path / "store", cache_mb=16 if cached else 0)
        for i in range(len(own)):
            first, count = int(own.rows["first"][i]), own.num_frames(i)
            assert (own.read(i, [0, count - 1]) == whole.read(i, [first, first + count - 1])).all()
            with pytest.raises(IndexError):
                FrameStore(tmp_path / "store").read(i, [count])
    clips = Clips(store, "train", store.classes)
    assert [store.classes[y] for y in clips.labels] == ["still", "run", "jump"]
    parts = windows(store, "val", 0.8, 0.4, "run")
    assert parts.rows["first"].tolist() == [0, 4, 8, 12]
    assert parts.rows.frames.tolist() == [8] * 4
    assert np.allclose(parts.rows.end_s, [0.8, 1.2, 1.6, 2.0])
