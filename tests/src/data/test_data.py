"""Layouts: what is listed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidpipe.data.config import DataConfig
from vidpipe.data.layouts import list_items
from vidpipe.errors import VidpipeError


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def test_folder_per_class(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{c}/{i}.mp4" for c in ("walk", "run") for i in range(10)), "run/notes.txt")
    items = list_items(DataConfig(root=str(tmp_path))).items
    assert len(items) == 20
    held_out = [item for item in items if item.split == "val"]
    assert sorted(item.label for item in held_out) == ["run"] * 2 + ["walk"] * 2
    touch(tmp_path, "walk/new.mp4")
    again = {item.path: item.split for item in list_items(DataConfig(root=str(tmp_path))).items}
    moved = [item for item in items if again[item.path] != item.split]
    assert len(moved) <= 1  # adding a video reshuffles nothing


def csv_root(tmp_path: Path, text: str) -> DataConfig:
    (tmp_path / "index.csv").write_text(text)
    return DataConfig(root=str(tmp_path), annotations="index.csv")


def test_csv_with_splits_and_a_rule_for_rows_to_keep(tmp_path: Path) -> None:
    config = csv_root(
        tmp_path,
        "path,label,mirrored,split\na.mp4,x,0,train\nb.mp4,y,1,train\nc.mp4,x,0,val\nd.mp4,y,1,val\n",
    ).model_copy(update={"keep": {"val": {"mirrored": "0"}}})
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    assert [item.path for item in list_items(config).items] == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.mp4,x\n", "no column 'path'"),
        ("path,label,split\n../a.mp4,x,train\n", "path '../a.mp4' leaves data.root"),
        ("path,label,split\n/etc/a.mp4,x,train\n", "leaves data.root"),
        ("path,label,split\na.mp4,x,train\na.mp4,y,val\n", "a.mp4 is listed more than once"),
        ("path,label,split\na.mp4,x,train\nb.mp4,x,val\n", r"only one class \('x'\)"),
        ("path,label,split\na.mp4,x,train\nb.mp4,y,train\n", "no video in split 'val'"),
        ("path,label,split\na.mp4,x,dev\n", "split 'dev' of a.mp4; expected train or val"),
        ("path,label,split\na.mp4,,train\n", "no path or no label"),
        ("path,label,split\n", "no videos found"),
    ],
)
def test_bad_annotations_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(VidpipeError, match=message) as caught:
        list_items(csv_root(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_label_outside_the_class_list_is_named_with_its_nearest(tmp_path: Path) -> None:
    config = csv_root(tmp_path, "path,label,split\na.mp4,jump,train\nb.mp4,walks,val\n")
    with pytest.raises(VidpipeError, match=r"label 'walks' .* not in the list; nearest is walk"):
        list_items(config.model_copy(update={"classes": ("jump", "walk")}))


def test_missing_root() -> None:
    with pytest.raises(VidpipeError, match=r"data.root: .*no such folder"):
        list_items(DataConfig(root="nowhere/at/all"))
