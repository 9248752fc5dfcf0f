"""Faithful small copies of the data sets' annotations: their own shapes, invented rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from listings import put, touch

IDS = ["-aBcDeFgHiJ", "_0123456789", "abcdefghijk", "ABCDEFGHIJK", "zzzzzzzzzzz", "yyyyyyyyyyy"]


TEMPLATES = {"Holding something": "1", "Dropping something onto something": "0"}


def kinetics(root: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    put(
        root,
        "annotations/train.csv",
        header
        + f"riding a bike,{IDS[0]},25,35,train,0\n"
        + f'"tying, slowly",{IDS[1]},0,10,train,0\n'
        + f"abseiling,{IDS[2]},120,130,train,1\n",
    )
    put(root, "annotations/validate.csv", header + f"abseiling,{IDS[3]},7,17,val,0\n")
    put(root, "annotations/test.csv", f"youtube_id,time_start,time_end,split\n{IDS[4]},0,10,test\n")
    touch(
        root,
        f"train/riding_a_bike/{IDS[0]}_000025_000035.mp4",
        f"train/tying, slowly/{IDS[1]}.mkv",
        f"{IDS[2]}_000120_000130.webm",
        f"val/abseiling/{IDS[3]}_000007_000017.mp4",
        f"test/{IDS[4]}_000000_000010.mp4",
    )


def ssv2(root: Path) -> None:
    put(root, "labels/labels.json", TEMPLATES)
    record = {"label": "holding a cup", "placeholders": ["a cup"]}
    held, dropped = "Holding [something]", "Dropping [something] onto [something]"
    put(
        root,
        "labels/train.json",
        [{"id": "78687", "template": held, **record}, {"id": "42326", "template": dropped}],
    )
    put(root, "labels/validation.json", [{"id": "74225", "template": held, **record}])
    put(root, "labels/test.json", [{"id": "1420"}])
    touch(root, "20bn-something-something-v2/78687.webm", "42326.mp4", "74225.webm", "1420.webm")


def diving48(root: Path) -> None:
    put(
        root,
        "Diving48_vocab.json",
        [["Reverse", "Dive", "NoTwis", "PIKE"], ["Back", "15som", "05Twis", "FREE"]],
    )
    for version, label in (("_V2", 1), ("", 0)):  # version 2 corrected the labels
        for part, name in (("train", "_8Vy3dlHg2w_00000"), ("test", "_8Vy3dlHg2w_00001")):
            record = {"vid_name": name, "label": label, "start_frame": 0, "end_frame": 165}
            put(root, f"Diving48{version}_{part}.json", [record])
    touch(root, "rgb/_8Vy3dlHg2w_00000.mp4", "rgb/_8Vy3dlHg2w_00001.mp4")


def ucf101(root: Path) -> None:
    put(root, "ucfTrainTestlist/classInd.txt", "1 YoYo\r\n2 HandstandPushups\r\n\r\n")
    for n in (1, 2, 3):
        put(
            root,
            f"ucfTrainTestlist/trainlist0{n}.txt",
            f"YoYo/v_YoYo_g0{n}_c01.avi 1\nHandstandPushups/v_HandStandPushups_g08_c01.avi 2\n",
        )
        put(root, f"ucfTrainTestlist/testlist0{n}.txt", "YoYo/v_YoYo_g09_c01.avi\n")
        touch(root, f"UCF-101/YoYo/v_YoYo_g0{n}_c01.avi")
    touch(root, "UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi")
    touch(root, "UCF-101/YoYo/v_YoYo_g09_c01.mp4")


def hmdb51(root: Path) -> None:
    splits = "testTrainMulti_7030_splits"
    for n in (1, 2, 3):
        used = {1: "1 2 0", 2: "1 0 2", 3: "2 1 0"}[n].split()
        names = ["(Rad)A!_wave_f_0.avi", "#20_wave_u_1.avi", "b_wave_2.avi"]
        lines = "".join(f"{name} {use} \n" for name, use in zip(names, used, strict=True))
        put(root, f"{splits}/wave_test_split{n}.txt", lines)
        put(root, f"{splits}/brush_hair_test_split{n}.txt", "b_wave_2.avi 1 \n")
    touch(root, *(f"wave/{name}" for name in names), "brush_hair/b_wave_2.avi")


def charades(root: Path) -> None:
    put(
        root,
        "Charades/Charades_v1_classes.txt",
        "c000 Holding some clothes\nc001 Putting clothes\n",
    )
    header = (
        "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
    )
    put(
        root,
        "Charades/Charades_v1_train.csv",
        header
        + '46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking.",food;stove,,'
        + "c001 11.90 21.20;c000 0.00 12.60;c001 22 23,24.83\n"
        + "N11GT,0KZ7,Stairs,6,7,Yes,Going upstairs.,,,,18.33\n",
    )
    put(root, "Charades/Charades_v1_test.csv", header + "YSKX3,X,Y,6,7,Yes,,,,c000 0 2.5,9\n")
    touch(root, "Charades_v1_480/46GP8.mp4", "Charades_v1_480/N11GT.mp4", "YSKX3.mp4")


def activitynet(root: Path) -> None:
    database = {
        "video1": {
            "subset": "training",
            "annotations": [
                {"segment": [0.5, 4.0], "label": "Long jump"},
                {"segment": [5, 9.25], "label": "Cricket"},
            ],
        },
        "video2": {
            "subset": "validation",
            "annotations": [{"segment": [0, 2], "label": "Cricket"}],
        },
    }
    put(root, "anet.json", {"version": "1.3", "database": database})
    touch(root, "v_video1.mp4", "videos/video2.mp4")


COPIES: dict[str, Callable[[Path], None]] = {
    "kinetics": kinetics,
    "ssv2": ssv2,
    "diving48": diving48,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "charades": charades,
    "activitynet": activitynet,
}
