"""`data.group`: columns and patterns, in listings, splits and stores."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from clips import moving
from hypothesis import example, given, settings
from hypothesis import strategies as st
from listings import config, put, refused, touch
from small_store import small_store
from videos import CONFIG, write_video

from pipeline.stages import extract
from vidpipe.config.identity import config_hash, deciding
from vidpipe.data.config import DataConfig
from vidpipe.data.folds import grouped_folds
from vidpipe.data.group_pattern import compiled, group_in
from vidpipe.data.groups import store_clips
from vidpipe.data.layouts import list_items
from vidpipe.errors import VidpipeError
from vidpipe.params import parse_params
from vidpipe.video.store import SCHEMA, read_manifest

PEOPLE = ("ann", "bob", "eve", "ida", "leo")


@pytest.mark.parametrize(
    ("pattern", "path", "group"),
    [
        ("*/{*}_*", "bend/daria_bend.mp4", "daria"),
        ("*/{*}_*", "bend/daria_bend_mirror.mp4", "daria"),
        ("*/{*}_*", "bend/deep/daria_bend.mp4", ""),
        ("*/{*}_*", "bend/daria.mp4", ""),
        ("*/{*}_*", "bend/_bend.mp4", ""),  # nothing between
        ("**/{*}_*", "daria_bend.mp4", "daria"),
        ("**/{*}_*", "a/b/daria_bend.mp4", "daria"),
        ("**_g{??}_c*", "a/v_g_golf_g08_c01.avi", "08"),
        ("{*}/**", "cam3/2024/x.mp4", "cam3"),
        ("{**}/*", "cam3/2024/x.mp4", "cam3/2024"),
        ("{*}/**/{*}_take*", "lab/x/ann_take2.mp4", "lab/ann"),
        ("**/{???????????}_??????_??????.mp4", "run/-a_b.c(d)e+_000001_000011.mp4", "-a_b.c(d)e+"),
        ("*.{mp4}", "a+b.mp4", "mp4"),
        ("*.{mp4}", "a+bxmp4", ""),
        ("{*}", "é" * 5000, ""),
    ],
)
def test_patterns(pattern: str, path: str, group: str) -> None:
    assert group_in(path, pattern) == group


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*/{*_*", "expected {braces}"),
        ("*/*}_*", "braces stand in pairs"),
        ("{a{*}}", "none within another"),
        ("}{", "braces stand in pairs"),
        ("**/{**}", r"expected \*\* at most once"),
        ("{" + "*" * 200 + "}", "expected at most 200 characters"),
        ("", "at least 1 character"),
    ],
)
def test_bad_patterns_are_refused_with_the_key(pattern: str, message: str) -> None:
    with pytest.raises(VidpipeError, match=f"data.group: .*{message}") as error:
        parse_params({"data": {"root": "x", "group": pattern}})
    assert "\n" not in str(error.value)


@settings(max_examples=200, deadline=None)
@example("a*b*bc", "aababbcbc")
@given(st.text("ab*?", max_size=6), st.text("ab/", max_size=12))
def test_a_pattern_matches_what_backtracking_would(pattern: str, path: str) -> None:
    """Stars end at the first place that fits and never go back; nothing is lost by it."""
    pattern = "{" + re.sub(r"\*+", "*", pattern) + "}"
    plain = re.escape(pattern.strip("{}")).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    assert bool(compiled(pattern).match(path)) == bool(re.fullmatch(plain, path))


@pytest.mark.parametrize("pattern", ["*a" * 90 + "{*}b", "**" + "*a" * 90 + "{*}b", "{**}b*c"])
def test_no_path_takes_long(pattern: str) -> None:
    """They take milliseconds; were stars to go back, the first two would never end."""
    assert group_in("a" * 4000, pattern) == ""


def videos_of_people(root: Path) -> None:
    touch(root, *(f"{c}/{p}_{n}.mp4" for c in ("run", "walk") for p in PEOPLE for n in range(3)))


@pytest.mark.parametrize("fraction", [0.2, 0.4])
def test_a_drawn_split_keeps_groups_whole(tmp_path: Path, fraction: float) -> None:
    videos_of_people(tmp_path)
    options = {"group": "*/{*}_*", "val_fraction": fraction}
    items = list_items(config(tmp_path, "folders", **options)).items
    assert {item.group for item in items} == set(PEOPLE)
    sides = {(item.group, item.split) for item in items}
    assert len(sides) == len(PEOPLE)
    assert sum(split == "val" for _, split in sides) == len(PEOPLE) * fraction
    assert {i.label for i in items if i.split == "val"} == {"run", "walk"}
    seeds = {
        tuple(i.split for i in list_items(config(tmp_path, "folders", seed=seed, **options)).items)
        for seed in range(9)
    }
    assert len(seeds) > 1


def test_a_class_of_one_person_is_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    videos_of_people(tmp_path)
    touch(tmp_path, "swim/zoe_0.mp4", "swim/zoe_1.mp4")
    with caplog.at_level(logging.WARNING):
        items = list_items(config(tmp_path, "folders", group="*/{*}_*")).items
    assert {i.split for i in items if i.label == "swim"} == {"train"}
    assert "1 classes are in a single group" in caplog.text
    put(tmp_path, "few/index.csv", "path,label,who\na,x,ann\nb,y,ann\n")
    refused(
        config(tmp_path / "few", "table", annotations="index.csv", group="who"),
        "data.group: who: none of 1 groups can be held out",
    )


TABLE = "path,label,subject\n" + "".join(
    f"{c}_{n}.mp4,{c},{PEOPLE[n % 5]}\n" for c in ("run", "walk") for n in range(10)
)


def test_a_column_of_the_table(tmp_path: Path) -> None:
    put(tmp_path, "index.csv", TABLE)
    touch(tmp_path, *(line.split(",")[0] for line in TABLE.splitlines()[1:]))
    items = list_items(config(tmp_path, "table", annotations="index.csv", group="subject")).items
    assert len({(item.group, item.split) for item in items}) == len(PEOPLE)
    assert next(i.group for i in items if i.path == "walk_7.mp4") == "eve"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "subjekt"}, "no column 'subjekt'; nearest is subject; data.group is a column"),
        ({"group": "other"}, r"row 3 has no other \(data.group\)"),
        (
            {"group": "{*}-*"},
            r"data.group: {\*}-\* finds no group in 'a.mp4' and 1 more of 2 paths",
        ),
        ({"group": "odd"}, r"data.group: odd: 'x\\x07' is not printable"),
        (
            {"group": "subject", "layout": "folders", "annotations": None},
            "data.group: subject: only layout table has columns, not folders",
        ),
    ],
)
def test_groups_that_cannot_be_found(tmp_path: Path, options: dict, message: str) -> None:
    text = "path,label,subject,other,odd\na.mp4,x,ann,1,x\x07\nb.mp4,y,bob,,y\n"
    put(tmp_path, "index.csv", text)
    settings = {"layout": "table", "annotations": "index.csv", "max_missing_fraction": 1}
    refused(config(tmp_path, **(settings | options)), message)  # type: ignore[arg-type]


@pytest.mark.parametrize("group", ["subject", "{*}-*"])
def test_a_store_knows_its_groups(tmp_path: Path, group: str) -> None:
    root, store = tmp_path / "videos", tmp_path / "store"
    table = "path,label,subject\n"
    for i in range(6):
        name = f"{'anb'[i % 3]}-{i}.mp4"
        root.mkdir(exist_ok=True)
        write_video(root / name, np.roll(moving(12 + i), 5 * i, 2))
        table += f"{name},{'xy'[i // 3]},{'anb'[i % 3]}\n"
    put(root, "index.csv", table)
    plain = config(root, "table", annotations="index.csv")
    extract.run(plain.model_copy(update={"group": group}), CONFIG, store)
    assert set(read_manifest(store).rows.columns) == {*SCHEMA.names, "group"}
    for asked in (group, None):
        clips = store_clips(store, plain.model_copy(update={"group": asked}))
        assert dict(zip(clips.ids, clips.groups, strict=True)) == {
            f"{g}-{i}": g for i, g in enumerate("anbanb")
        }
    with pytest.raises(VidpipeError, match=r"data.group: camera: .* was extracted with"):
        store_clips(store, plain.model_copy(update={"group": "camera"}))
    other = store_clips(store, plain.model_copy(update={"group": "*-{*}.mp4"}))
    assert other.group_names() == tuple("012345")
    assert [fold.test_groups for fold in grouped_folds(clips, "leave_one_out")] == [
        ("a",),
        ("b",),
        ("n",),
    ]


def test_a_store_without_groups_is_as_it_was(tmp_path: Path) -> None:
    small_store(tmp_path)
    assert read_manifest(tmp_path).rows.columns.tolist() == SCHEMA.names
    plain = config(tmp_path, "folders")
    assert store_clips(tmp_path, plain).groups == tuple(f"c{i}.mp4" for i in range(10))
    with pytest.raises(VidpipeError, match=r"data.group: subject: .*extracted with none"):
        store_clips(tmp_path, plain.model_copy(update={"group": "subject"}))


def test_no_group_is_no_part_of_an_identity() -> None:
    plain = DataConfig(root="x")
    assert "group" not in deciding(plain)
    grouped = {config_hash(DataConfig(root="x", group=group)) for group in ("a", "{*}/*")}
    assert len({config_hash(plain), *grouped}) == 3
