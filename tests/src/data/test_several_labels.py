"""Several labels a video: how tables, label files and Charades say them, and what counts by class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from annotations import charades
from hypothesis import given, settings
from hypothesis import strategies as st
from listings import config, put, refused, rows, touch

from vidpipe.data.config import DataConfig, SubsetConfig
from vidpipe.data.labels import join_labels, split_labels, targets
from vidpipe.data.layouts import list_items
from vidpipe.data.stats import summarise
from vidpipe.data.subset import subset_rows
from vidpipe.video.store import read_manifest, write_manifest


def table(root: Path, text: str, **options: object) -> DataConfig:
    put(root, "index.csv", text)
    touch(root, *(f"{name}.mp4" for name in "abcd"))
    given = {"annotations": "index.csv", "task": "multilabel", **options}
    return config(root, "table", **given)


JOINED = (
    "path,label,split\n"
    "a.mp4,run;jump,train\nb.mp4,,train\nc.mp4, jump ;run;run,val\nd.mp4,run,val\n"
)


def test_a_separator_and_a_column_a_class_say_the_same(tmp_path: Path) -> None:
    joined = list_items(table(tmp_path, JOINED, separator=";"))
    assert joined.classes == ("jump", "run")
    assert rows(joined) == [
        ("a.mp4", "jump|run", "train"),
        ("b.mp4", "", "train"),
        ("c.mp4", "jump|run", "val"),
        ("d.mp4", "run", "val"),
    ]
    columns = "path,run,jump,split\na.mp4,1,yes,train\nb.mp4,0,,train\n"
    columns += "c.mp4,1.0,TRUE,val\nd.mp4,1,0,val\n"
    assert list_items(table(tmp_path, columns, separator=None)) == joined
    own = list_items(table(tmp_path, columns, separator=None, classes=["run", "jump"]))
    assert own.classes == ("run", "jump")
    assert own.items == joined.items


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "path,run,split\na.mp4,2,train\n",
            {"separator": None},
            "row 2: '2' in column 'run'; expected 1",
        ),
        ("path,split\na.mp4,train\n", {"separator": None}, "no column of a class"),
        ("path,split\na.mp4,train\n", {}, "no column 'label'.*see data.columns and data.separator"),
        (
            "path,label\na.mp4,x|y\nb.mp4,\n",
            {"separator": ","},
            "row 2: label 'x.y': .* cannot have",
        ),
        ("path,label\na.mp4,\nb.mp4,\n", {}, "no video has a label"),
        ("path,label\n,x\n", {}, "row 2 has no path"),
        (
            "path,label\na.mp4,x\nb.mp4,y|x\n",
            {"classes": ["x"]},
            "data.classes: label 'y' of b.mp4",
        ),
        (
            JOINED,
            {"layout": "kinetics"},
            "data.task: multilabel; layout kinetics is of task single_label",
        ),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, text: str, options: dict[str, object], message: str
) -> None:
    refused(
        table(tmp_path, text, **options)
        if "layout" not in options
        else config(tmp_path, "kinetics", task="multilabel"),
        message,
    )


def test_label_files_beside_the_videos(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.mp4", "x/2.mp4", "y/1.mp4")
    put(tmp_path, "x/1.txt", "run\n\njump\n")
    put(tmp_path, "x/labels.txt", "")
    put(tmp_path, "y/labels.txt", "run\n")
    wanted = config(tmp_path, "folders", task="multilabel", val_fraction=0.4)
    assert {i.path: i.label for i in list_items(wanted).items} == {
        "x/1.mp4": "jump|run",
        "x/2.mp4": "",
        "y/1.mp4": "run",
    }
    (tmp_path / "x/labels.txt").unlink()
    refused(wanted, r"x/2.mp4: no label file; expected 2.txt or labels.txt beside it")


def test_charades(tmp_path: Path) -> None:
    charades(tmp_path)
    listing = list_items(config(tmp_path, "charades"))
    assert listing.classes == ("Holding some clothes", "Putting clothes")
    assert rows(listing) == [
        ("Charades_v1_480/46GP8.mp4", "Holding some clothes|Putting clothes", "train"),
        ("Charades_v1_480/N11GT.mp4", "", "train"),
        ("YSKX3.mp4", "Holding some clothes", "val"),
    ]
    refused(
        config(tmp_path, "charades", task="single_label"), "layout charades is of task multilabel"
    )
    put(tmp_path, "Charades/Charades_v1_test.csv", "id,actions\nYSKX3,c009 0 1\n")
    refused(config(tmp_path, "charades"), "row 2: expected actions of the class file, got 'c009'")
    put(tmp_path, "Charades/Charades_v1_test.csv", "id,actions\nYSKX3,c000\n")
    refused(config(tmp_path, "charades"), "row 2: expected columns id and actions")


def test_a_drawn_split_leaves_every_class_some_of_its_videos(tmp_path: Path) -> None:
    sets = ["run", "run|jump", "jump", "", "run|wave", "wave|jump"] * 20
    lines = "".join(f"{i}.mp4,{label}\n" for i, label in enumerate(sets))
    put(tmp_path, "index.csv", "path,label\n" + lines)
    touch(tmp_path, *(f"{i}.mp4" for i in range(len(sets))))
    wanted = config(
        tmp_path, "table", annotations="index.csv", task="multilabel", val_fraction=0.25
    )
    listing = list_items(wanted)
    for split, low, high in (("val", 0.15, 0.35), ("train", 0.65, 0.85)):
        own = [i for i in listing.items if i.split == split]
        counts = Counter(name for i in own for name in split_labels(i.label) or ("none",))
        for name, total in (("run", 60), ("jump", 60), ("wave", 40), ("none", 20)):
            assert low <= counts[name] / total <= high, (split, name)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcd")), max_size=8))
def test_targets_say_what_the_text_says(sets: list[set[str]]) -> None:
    texts = [join_labels(sorted(own)) for own in sets]
    found = targets(texts, "abcd", several=True)
    assert found.shape == (len(sets), 4)
    assert [{c for c, y in zip("abcd", row) if y} for row in found] == sets


def test_a_clip_of_several_classes_counts_for_each_but_once_among_clips(tmp_path: Path) -> None:
    base = {"status": "ok", "reason": "", "fps": 10.0, "frames": 20, "source_bytes": 1, "nbytes": 1}
    labels = ["run|jump", "", "run", "jump"]
    listed = [
        {**base, "id": str(i), "path": str(i), "label": label, "split": "train" if i < 3 else "val"}
        for i, label in enumerate(labels)
    ]
    write_manifest(tmp_path, listed, ("jump", "run"), task="multilabel")
    found = summarise(read_manifest(tmp_path))
    assert found["clips"] == {"train": 3, "val": 1}
    assert found["per_class"] == {"jump": {"train": 1, "val": 1}, "run": {"train": 2, "val": 0}}


def test_a_fraction_is_of_the_clips_and_has_a_clip_of_each_class() -> None:
    ids = [f"c{i}" for i in range(100)]
    sets = [("often", "seldom") if i % 10 == 0 else ("often",) if i % 2 else () for i in range(100)]
    sets[3] = ("rare",)
    small, large = (
        set(subset_rows(ids, sets, SubsetConfig(fraction=f)).tolist()) for f in (0.1, 0.3)
    )
    assert 10 <= len(small) <= 13
    assert 30 <= len(large) <= 33
    assert small <= large
    assert 3 in small
    shots = subset_rows(ids, sets, SubsetConfig(per_class=4)).tolist()
    counts = Counter(name for i in shots for name in sets[i])
    assert counts["seldom"] >= 4
    assert counts["often"] >= 4
    assert counts["rare"] == 1
