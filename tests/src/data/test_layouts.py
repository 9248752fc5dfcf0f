"""Every layout on a small copy of its annotation format: the data sets' own shapes, invented rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from annotations import COPIES, IDS, diving48, hmdb51, kinetics, ssv2, ucf101
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from listings import SEVERAL_LABELS, config, put, refused, rows, touch

from vidpipe.data.labels import label_sets
from vidpipe.data.layouts import LAYOUTS, list_items
from vidpipe.errors import VidpipeError


def test_kinetics(tmp_path: Path) -> None:
    kinetics(tmp_path)
    listing = list_items(config(tmp_path, "kinetics"))
    assert listing.classes == ("abseiling", "riding a bike", "tying, slowly")
    assert rows(listing) == [
        (f"{IDS[2]}_000120_000130.webm", "abseiling", "train"),
        (f"train/riding_a_bike/{IDS[0]}_000025_000035.mp4", "riding a bike", "train"),
        (f"train/tying, slowly/{IDS[1]}.mkv", "tying, slowly", "train"),
        (f"val/abseiling/{IDS[3]}_000007_000017.mp4", "abseiling", "val"),
    ]


def test_kinetics_takes_the_labelled_test_rows_where_there_is_no_validation(tmp_path: Path) -> None:
    kinetics(tmp_path)
    (tmp_path / "annotations/validate.csv").unlink()
    refused(config(tmp_path, "kinetics"), "test.csv: no row has a label")
    put(
        tmp_path,
        "annotations/test.csv",
        "label,youtube_id,time_start,time_end,split\n"
        f"abseiling,{IDS[4]},0,10,test\n,{IDS[5]},0,10,test\n",
    )
    held_out = [r for r in rows(list_items(config(tmp_path, "kinetics"))) if r[2] == "val"]
    assert held_out == [(f"test/{IDS[4]}_000000_000010.mp4", "abseiling", "val")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("abseiling,#NAME?,0,10,val,0", r"validate.csv: row 3: expected label,youtube_id"),
        (f"abseiling,{IDS[4]},10,5,val,0", "row 3: expected"),
        (f"abseiling,{IDS[4]},ten,20,val,0", "row 3: expected"),
        (f",{IDS[4]},0,10,val,0", "row 3: expected"),
        (f"abseiling,{IDS[4]},0,10,val,0,more", "validate.csv: not a readable table .*line 3"),
        (f"abseilling,{IDS[4]},0,10,val,0", "row 3: label 'abseilling' .*nearest is abseiling"),
        (f"abseiling,{IDS[3]},7,17,val,0", "row 3: .* is listed more than once; first at .*row 2"),
        (
            f"abseiling,{IDS[2]},120,130,val,0",
            "validate.csv: row 3: .* first at .*train.csv: row 4",
        ),
    ],
)
def test_bad_rows_of_kinetics(tmp_path: Path, row: str, message: str) -> None:
    kinetics(tmp_path)
    with (tmp_path / "annotations/validate.csv").open("a") as file:
        file.write(row + "\n")
    refused(config(tmp_path, "kinetics"), message)


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_ssv2_under_both_names_of_its_files(tmp_path: Path, prefix: str) -> None:
    ssv2(tmp_path)
    for file in list((tmp_path / "labels").iterdir()):
        file.rename(tmp_path / "labels" / f"{prefix}{file.name}")
    listing = list_items(config(tmp_path, "ssv2", annotations="labels"))
    assert listing.classes == ("Dropping something onto something", "Holding something")
    assert rows(listing) == [
        ("20bn-something-something-v2/78687.webm", "Holding something", "train"),
        ("42326.mp4", "Dropping something onto something", "train"),
        ("74225.webm", "Holding something", "val"),
    ]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.json", {"a": "0", "b": "2"}, "labels.json: expected .*some are missing or twice"),
        ("labels.json", {"a": "0", "b": "²"}, "labels.json: row 2: expected"),
        ("labels.json", [1], "labels.json: expected"),
        ("train.json", {"id": "1"}, "train.json: expected a list"),
        ("train.json", [{"id": "1", "template": 3}], "train.json: row 1: expected"),
        ("train.json", [7], "train.json: row 1: expected .*got '7'"),
        ("train.json", "[{", "train.json: not valid JSON"),
        ("train.json", "[" * 100_000, "train.json: not valid JSON"),
        (
            "train.json",
            [{"id": "1", "template": "Holding [it]"}],
            "row 1: label 'Holding it' .*list",
        ),
        ("train.json", [{"id": "../1", "template": "Holding [something]"}], "leaves data.root"),
        ("train.json", [{"id": "/1", "template": "Holding [something]"}], "leaves data.root"),
        ("train.json", '[{"id": "\\ud800", "template": "Holding [something]"}]', "not printable"),
        ("train.json", '[{"id": "a\\u0000", "template": "Holding [something]"}]', "not printable"),
        ("train.json", [], "no video in split 'train'"),
    ],
)
def test_bad_files_of_ssv2(tmp_path: Path, file: str, content: object, message: str) -> None:
    ssv2(tmp_path)
    put(tmp_path, f"labels/{file}", content)
    refused(config(tmp_path, "ssv2"), message)


def test_diving48_prefers_version_2_and_takes_version_1_alone(tmp_path: Path) -> None:
    diving48(tmp_path)
    listing = list_items(config(tmp_path, "diving48"))
    assert listing.classes == ("Reverse_Dive_NoTwis_PIKE", "Back_15som_05Twis_FREE")
    assert rows(listing) == [
        ("rgb/_8Vy3dlHg2w_00000.mp4", "Back_15som_05Twis_FREE", "train"),
        ("rgb/_8Vy3dlHg2w_00001.mp4", "Back_15som_05Twis_FREE", "val"),
    ]
    (tmp_path / "Diving48_V2_test.json").unlink()
    refused(config(tmp_path, "diving48"), "no Diving48_V2_test.json here")  # never half of each
    (tmp_path / "Diving48_V2_train.json").unlink()
    listing = list_items(config(tmp_path, "diving48"))
    assert {item.label for item in listing.items} == {"Reverse_Dive_NoTwis_PIKE"}


@pytest.mark.parametrize("label", [2, -1, True, "1", None])
def test_a_label_that_is_no_index_into_the_vocabulary(tmp_path: Path, label: object) -> None:
    diving48(tmp_path)
    put(tmp_path, "Diving48_V2_train.json", [{"vid_name": "a", "label": label}])
    refused(config(tmp_path, "diving48"), r"Diving48_V2_train.json: row 1: .*(vocab|index)")


@pytest.mark.parametrize("split", [1, 2, 3])
def test_ucf101(tmp_path: Path, split: int) -> None:
    ucf101(tmp_path)
    listing = list_items(config(tmp_path, "ucf101", split_number=split))
    assert listing.classes == ("YoYo", "HandstandPushups")  # by number, not by name
    assert rows(listing) == [
        (
            "UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi",
            "HandstandPushups",
            "train",
        ),
        (f"UCF-101/YoYo/v_YoYo_g0{split}_c01.avi", "YoYo", "train"),
        ("UCF-101/YoYo/v_YoYo_g09_c01.mp4", "YoYo", "val"),  # converted: found by its stem
    ]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classInd.txt", "1 YoYo\n1 Other\n", "classInd.txt: row 2: .*twice"),
        ("classInd.txt", "one YoYo\n", "classInd.txt: row 1: expected a number and a name"),
        ("trainlist01.txt", "YoYo/a.avi\n", "trainlist01.txt: row 1: expected Class/name.avi and"),
        ("trainlist01.txt", "YoYo/a.avi 2\n", "row 1: expected number 1 for YoYo"),
        ("testlist01.txt", "\nYoyo/a.avi\n", "row 2: label 'Yoyo' .*nearest is YoYo"),
        ("testlist01.txt", "YoYo/../../a.avi\n", "leaves data.root"),
    ],
)
def test_bad_files_of_ucf101(tmp_path: Path, file: str, content: str, message: str) -> None:
    ucf101(tmp_path)
    put(tmp_path, f"ucfTrainTestlist/{file}", content)
    refused(config(tmp_path, "ucf101", max_missing_fraction=1), message)


def test_hmdb51_reads_the_chosen_split_and_tells_equal_names_apart(tmp_path: Path) -> None:
    hmdb51(tmp_path)
    first = list_items(config(tmp_path, "hmdb51"))
    assert first.classes == ("brush_hair", "wave")
    assert rows(first) == [
        ("brush_hair/b_wave_2.avi", "brush_hair", "train"),
        ("wave/#20_wave_u_1.avi", "wave", "val"),
        ("wave/(Rad)A!_wave_f_0.avi", "wave", "train"),
    ]
    second = rows(list_items(config(tmp_path, "hmdb51", split_number=2)))
    assert ("wave/b_wave_2.avi", "wave", "val") in second
    put(tmp_path, "testTrainMulti_7030_splits/wave_test_split1.txt", "a.avi 1\nb.avi 3\n")
    refused(config(tmp_path, "hmdb51"), "wave_test_split1.txt: row 2: expected name.avi and 1")


# -- what holds for all -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", COPIES)
def test_a_missing_annotation_file_is_named(tmp_path: Path, layout: str) -> None:
    refused(config(tmp_path, layout), rf"no \S+(csv|json|txt) .*layout {layout} needs it: set")
    what = "file" if layout == "activitynet" else "folder; layout"
    refused(config(tmp_path, layout, annotations="nowhere"), f"nowhere: no such {what}")
    refused(config(tmp_path, layout, annotations="../.."), "leaves data.root")


def videos(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.suffix in (".mp4", ".avi", ".webm", ".mkv"))


@pytest.mark.parametrize("layout", COPIES)
def test_absent_videos_stay_listed_up_to_a_fraction(tmp_path: Path, layout: str) -> None:
    COPIES[layout](tmp_path)
    complete = list_items(config(tmp_path, layout))
    for file in videos(tmp_path):
        file.unlink()
    missing = list_items(config(tmp_path, layout, max_missing_fraction=1))
    assert sorted(i.label for i in missing.items) == sorted(i.label for i in complete.items)
    assert not any((tmp_path / item.path).exists() for item in missing.items)
    n = len(complete.items)
    refused(
        config(tmp_path, layout),
        rf"{n} of {n} listed videos are missing \(first .*max_missing_fraction 0.1; check data.root",
    )


@pytest.mark.parametrize("layout", COPIES)
def test_two_files_for_one_video_are_not_chosen_from_by_chance(tmp_path: Path, layout: str) -> None:
    COPIES[layout](tmp_path)
    for file in videos(tmp_path):
        touch(tmp_path, f"copy/{file.relative_to(tmp_path)}")
    refused(config(tmp_path, layout), "are both video .*; leave one of them")


@pytest.mark.parametrize("layout", ["ssv2", "hmdb51"])
def test_annotations_that_link_out_of_the_root_are_refused(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "root"
    COPIES[layout](root)
    for file in [p for p in root.rglob("*") if p.suffix in (".json", ".txt")]:
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    refused(config(root, layout), "leaves data.root")


def test_the_class_list_of_params_goes_before_the_data_sets_own(tmp_path: Path) -> None:
    kinetics(tmp_path)
    mine = ["tying, slowly", "abseiling", "riding a bike"]
    assert list_items(config(tmp_path, "kinetics", classes=mine)).classes == tuple(mine)
    refused(
        config(tmp_path, "kinetics", classes=[*mine[1:], "tying slowly"]),
        "data.classes: label 'tying, slowly' .* nearest is tying slowly",
    )


def test_hidden_files_and_linked_folders_are_no_videos(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{c}/{i}.mp4" for c in "ab" for i in range(2)))
    touch(tmp_path, "a/._0.mp4", "a/.cache/9.mp4", "top.mp4", ".git/x.mp4")
    (tmp_path / "a" / "circle").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "broken.mp4").symlink_to(tmp_path / "nothing")
    listing = list_items(config(tmp_path, "folders"))
    assert [item.path for item in listing.items] == ["a/0.mp4", "a/1.mp4", "b/0.mp4", "b/1.mp4"]


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.mp4", "b/1.mp4")
    try:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.mp4"))).write_bytes(b"")
    except OSError:
        pytest.skip("this file system refuses such names")
    refused(config(tmp_path, "folders"), "is not printable UTF-8 text")


def test_options_that_a_layout_does_not_have(tmp_path: Path) -> None:
    refused(config(tmp_path, "table"), "layout table needs a CSV or Parquet file")
    refused(config(tmp_path, "folders", annotations="a.csv"), "layout folders has none; set it to")
    refused(config(tmp_path, "ssv2", keep={"val": {"a": "b"}}), "data.keep: only for layout table")


# -- anything at all ----------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
keyed = st.fixed_dictionaries(
    {},
    optional={
        key: json_values | st.sampled_from(["1", "a/b", "Holding [something]", 0, 1])
        for key in ("id", "template", "vid_name", "label")
    },
)
names = ["label", "youtube_id", "time_start", "time_end", "split", "path", "train", "test", "YoYo"]
signs = [",", "\n", "\r", "\t", "\0", " ", '"', "0", "1", "1e9", "-1", "/", "..", ".avi", "é"]
words = st.sampled_from(names + signs)
contents = st.one_of(
    st.binary(max_size=200),
    (json_values | st.lists(keyed, max_size=4)).map(lambda v: json.dumps(v).encode()),
    st.lists(words, max_size=40).map(lambda w: "".join(w).encode()),
    st.tuples(
        st.just("label,youtube_id,time_start,time_end,split\npath,label,split\n"),
        st.lists(words, max_size=20).map("".join),
    ).map(lambda parts: "".join(parts).encode()),
)


@pytest.mark.parametrize("layout", [*COPIES, "table"])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_the_annotations_hold_there_is_a_listing_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, layout: str, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("any")
    options: dict = {"max_missing_fraction": data.draw(st.sampled_from([0, 1]))}
    if layout == "table":
        options["annotations"] = data.draw(st.sampled_from(["index.csv", "index.parquet"]))
        put(root, options["annotations"], "")
    else:
        COPIES[layout](root)
    annotations = [p for p in root.rglob("*") if p.suffix in (".csv", ".json", ".txt", ".parquet")]
    victim = data.draw(st.sampled_from(sorted(annotations)))
    victim.write_bytes(data.draw(contents))
    try:
        listing = list_items(config(root, layout, **options))
    except VidpipeError as error:
        message = str(error)
    else:
        message = ""
    assert len(message.splitlines()) <= 1
    if message:
        return
    several = layout in SEVERAL_LABELS
    assert len(listing.classes) >= (1 if several else 2)
    sets = label_sets([item.label for item in listing.items], several)
    assert {label for own in sets for label in own} <= set(listing.classes)
    assert all((root / item.path).resolve().is_relative_to(root) for item in listing.items)


def test_every_layout_of_the_schema_is_read() -> None:
    from typing import get_args

    from vidpipe.data.config import Layout

    assert set(LAYOUTS) == set(get_args(Layout)) == {*COPIES, "table", "folders", "ava", "segments"}
