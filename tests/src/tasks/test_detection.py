"""Task detection from AVA's files to trained boxes: layout, store, samples, loss, training, metric."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from people import ACTIONS, HEIGHT, WIDTH, people, people_config
from tiny import randomise, tiny_vit

from pipeline.stages import extract
from pipeline.stages.evaluate import scored
from vidpipe.data.boxes import PROPOSAL, read_box_rows
from vidpipe.data.config import SamplingConfig, SubsetConfig, TransformConfig
from vidpipe.data.dataset import Clips
from vidpipe.data.layouts import list_items
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.evaluation.compare import Evaluated
from vidpipe.evaluation.evaluate import Evaluator, predict
from vidpipe.evaluation.own_score import box_differences, own_difference
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.tasks.base import LossOptions
from vidpipe.tasks.clips import open_clips, open_train_set, open_views
from vidpipe.tasks.detection import frame_map
from vidpipe.tasks.detection.dataset import UNKNOWN, KeyFrames, box_transform
from vidpipe.tasks.detection.samples import ground_truth, proposals
from vidpipe.tasks.registry import TASKS
from vidpipe.training.loop import Trainer
from vidpipe.training.state import Checkpoints
from vidpipe.video.config import ExtractConfig
from vidpipe.video.store import FrameStore, manifest_sha256

TASK = TASKS["detection"]
SAMPLING = SamplingConfig(strategy="dense", num_frames=4, stride=3)
TRANSFORM = TransformConfig(size=(HEIGHT, WIDTH), crop="center")
EXTRACT = ExtractConfig(short_side=HEIGHT, crf=8, num_workers=1)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def store(root: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    out = tmp_path_factory.mktemp("store") / "store"
    extract.run(people_config(root), EXTRACT, out)
    return FrameStore(out, cache_mb=64)


def model_of(method: str = "st_adapter", **options: Any) -> Any:
    torch.manual_seed(0)
    vit = tiny_vit(img_size=(HEIGHT, WIDTH))
    config = METHODS[method].Config.model_validate({"lr": 1e-2, "head_dropout": 0.0, **options})
    return build_method(method, vit, len(ACTIONS), 4, config)


# -- layout and store -----------------------------------------------------------------------------


def test_a_layout_of_videos_with_boxes(root: Path) -> None:
    listing = list_items(people_config(root))
    assert listing.classes == ("rise", "sink", "bright")
    assert {item.split for item in listing.items} == {"train", "val"}
    assert len(listing.items) == 9
    boxes = listing.boxes
    assert boxes is not None
    assert boxes.evaluated == (0, 1, 2)
    assert len(np.unique(boxes.key_frames[boxes.action != PROPOSAL])) == 2 * 9 - 1, (
        "one is excluded"
    )
    assert len(set(boxes.videos)) == len(boxes.videos) == 9


def test_avas_own_names_of_files_and_its_sixty_of_eighty(root: Path, tmp_path: Path) -> None:
    for file in root.glob("*.mp4"):
        shutil.copy(file, tmp_path)
    for name in ("train", "val"):
        (tmp_path / f"ava_{name}_v2.2.csv").write_text((root / f"{name}.csv").read_text())
    text = (root / "action_list.pbtxt").read_text()
    (tmp_path / "ava_action_list_v2.2.pbtxt").write_text(text)
    counted = "\n".join(line for line in text.splitlines() if "sink" not in line)
    (tmp_path / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text(counted)
    found = list_items(people_config(tmp_path))
    assert found.classes == ("rise", "sink", "bright")
    assert found.boxes is not None
    assert found.boxes.evaluated == (0, 2)


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        (
            "val.csv",
            "val_0,1,.5,.1,.2,.9,1,0",
            r"val.csv: row \d+ \(val_0, second 1\): box .*x1 < x2",
        ),
        ("val.csv", "val_0,1,.5,.1,1.2,.9,1,0", "fractions of the frame"),
        ("val.csv", "val_0,1,.1,.1,.2,.9,3,0", "action 3; expected an id of action_list.pbtxt"),
        ("val.csv", "train_0,1,.1,.1,.2,.9,1,0", "train_0 is in split train and in val"),
        ("val_proposals.csv", "val_9,1,.1,.1,.2,.9,.9", "val_9, second 1: no such video; nearest"),
        ("val_proposals.csv", "val_0,1,.1,.1,.1,.9,.9", r"val_proposals.csv: row \d+ .*x1 < x2"),
        ("action_list.pbtxt", 'item { name: "again" id: 1 }', "id 1 occurs twice"),
    ],
)
def test_bad_rows(root: Path, tmp_path: Path, file: str, row: str, message: str) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_text((root / file).read_text() + row + "\n")
    with pytest.raises(VidpipeError, match=message):
        list_items(people_config(tmp_path))


def test_pickled_proposals_are_refused_and_parquet_is_read(root: Path, tmp_path: Path) -> None:
    import pandas as pd

    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "found.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(VidpipeError, match=r"a pickle.*convert-proposals"):
        list_items(people_config(tmp_path, proposals="found.pkl"))
    names = ["video", "timestamp", "x1", "y1", "x2", "y2", "score"]
    table = pd.read_csv(root / "val_proposals.csv", header=None, names=names)
    table.to_parquet(tmp_path / "found.parquet")
    (a, b) = (
        list_items(people_config(tmp_path, **more)).boxes
        for more in ({}, {"proposals": "found.parquet"})
    )
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.boxes, b.boxes)
    table.drop(columns="y2").to_parquet(tmp_path / "found.parquet")
    with pytest.raises(VidpipeError, match="no column 'y2'"):
        list_items(people_config(tmp_path, proposals="found.parquet"))


def test_layout_and_task_belong_together(root: Path) -> None:
    config = people_config(root)
    for wrong in ({"task": "single_label"}, {"layout": "folders"}):
        with pytest.raises(VidpipeError, match=r"data.task: \w+; layout \w+ is of task"):
            list_items(config.model_copy(update=wrong))


def test_a_second_that_the_video_lacks_is_named_and_left_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    late = "val_1,0007,.1,.1,.2,.9,1,0\n"
    (tmp_path / "val.csv").write_text((root / "val.csv").read_text() + late)
    extract.run(people_config(tmp_path), EXTRACT, tmp_path / "store")
    assert "left out key frame val_1.mp4, second 7: the video has 0 to 3" in capsys.readouterr().err
    assert len(open_clips(FrameStore(tmp_path / "store"), "val", tuple(ACTIONS.values()))) == 5
    strict = EXTRACT.model_copy(update={"max_bad_fraction": 0.01})
    with pytest.raises(VidpipeError, match=r"1 key frames lie outside .*data.detection.start_s"):
        extract.run(people_config(tmp_path), strict, tmp_path / "store")


def test_the_manifest_vouches_for_the_boxes(root: Path, store: FrameStore, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    text = (root / "train.csv").read_text().replace(",2,0", ",1,0")
    (tmp_path / "train.csv").write_text(text)
    extract.run(people_config(tmp_path), EXTRACT, tmp_path / "store")
    assert manifest_sha256(tmp_path / "store") != manifest_sha256(store.root)
    assert (
        read_box_rows(store.root).to_bytes()
        == (Path(str(store.root)) / "boxes.parquet").read_bytes()
    )


# -- samples --------------------------------------------------------------------------------------


def test_key_frames_are_those_of_the_files(root: Path, store: FrameStore) -> None:
    clips = open_clips(store, "val", store.classes)
    assert isinstance(clips, KeyFrames)
    truth = ground_truth(root / "val.csv", ACTIONS, root / "val_excluded_timestamps.csv")
    proposed = proposals(root / "val_proposals.csv", [f"val_{i}" for i in range(3)])
    by_name = {f"{k.video}@{k.second}": k for k in truth}
    proposed_by_name = {f"{k.video}@{k.second}": k for k in proposed}
    assert sorted(clips.ids) == sorted(by_name)
    assert clips.filled.sum() == len(clips.truth)
    for i, name in enumerate(clips.ids):
        begin, end = clips.starts[i : i + 2]
        own = clips.truth[begin:end]
        boxes, targets = by_name[name].boxes, by_name[name].targets
        np.testing.assert_array_equal(clips.boxes[begin:end][own], boxes.numpy())
        np.testing.assert_array_equal(clips.targets[begin:end][own], targets.numpy())
        found = sorted(clips.boxes[begin:end][~own].tolist())
        assert found == sorted(proposed_by_name[name].boxes.tolist())
        assert clips.labels[i].tolist() == targets.amax(0).tolist()
        label = clips.target(i)
        assert (label[: end - begin][~torch.from_numpy(own)] == UNKNOWN).all()
        assert (label[end - begin :] == UNKNOWN).all()


def test_threshold_and_enlarged_proposals(root: Path, store: FrameStore, tmp_path: Path) -> None:
    config = people_config(root, min_score=0.95, enlarge=0.5)
    extract.run(config, EXTRACT, tmp_path / "store")
    clips = open_clips(FrameStore(tmp_path / "store"), "val", store.classes)
    assert isinstance(clips, KeyFrames)
    assert (~clips.truth).sum() == len(clips), "of two people one is believed"
    raw, grown = clips.raw[~clips.truth], clips.boxes[~clips.truth]
    inner = (grown > 0).all(1) & (grown < 1).all(1)
    width = (raw[:, 2] - raw[:, 0])[inner]
    np.testing.assert_allclose((grown[:, 2] - grown[:, 0])[inner], 1.5 * width, rtol=1e-5)


def test_a_training_sample_keeps_boxes_on_the_people(store: FrameStore) -> None:
    clips = open_clips(store, "train", store.classes)
    crop = TransformConfig(size=(64, 128), crop="random_resized", scale=(0.6, 1.0), flip=True)
    own = open_train_set(clips, SAMPLING, crop, seed=3)
    seen = 0
    for epoch in range(3):
        for i in range(len(own)):
            sample = own[epoch, i]
            assert torch.equal(sample["boxes"], own[epoch, i]["boxes"]), "a function of its key"
            key = sample["video"][SAMPLING.num_frames // 2].float().mean(0)
            for box, label in zip(sample["boxes"], sample["label"], strict=True):
                if label[0] == UNKNOWN:
                    assert box.sum() == 0
                    continue
                x1, y1, x2, y2 = (box * torch.tensor([128, 64, 128, 64])).round().int().tolist()
                inside = key[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
                if inside.numel():
                    seen += 1
                    assert abs(inside.mean() - (250 if label[2] else 130)) < 30
    assert seen > 40


def test_a_mirrored_clip_has_mirrored_labels(store: FrameStore) -> None:
    clips = open_clips(store, "train", store.classes)
    plain = TransformConfig(size=(32, 64), crop="center", flip=True)
    pairs = plain.model_copy(update={"flip_pairs": (("rise", "sink"),)})
    a, b = (open_train_set(clips, SAMPLING, transform, 0) for transform in (plain, pairs))
    different = 0
    for i in range(len(a)):
        one, other = a[0, i], b[0, i]
        assert torch.equal(one["video"], other["video"])
        if torch.equal(one["label"], other["label"]):
            continue
        different += 1
        assert torch.equal(one["label"][:, [1, 0, 2]], other["label"])
    assert 0 < different < len(a)


def test_what_does_not_go_with_boxes_is_refused(store: FrameStore) -> None:
    with pytest.raises(VidpipeError, match=r"transform.mixup_alpha: not for task detection"):
        box_transform(TRANSFORM.model_copy(update={"mixup_alpha": 0.5}))
    with pytest.raises(VidpipeError, match="subset"):
        open_clips(store, "train", store.classes, SubsetConfig(fraction=0.5))
    with pytest.raises(VidpipeError, match="this looks at whole clips"):
        Clips(store, "val", store.classes)
    clips = open_clips(store, "val", store.classes)
    with pytest.raises(VidpipeError, match=r"evaluate.spatial_crops: 3"):
        open_views(clips, SAMPLING, TRANSFORM, 1, 3)


# -- loss -----------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_ground_truth_boxes_in_any_split() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(6, 4, 3), torch.randint(0, 2, (6, 4, 3)).float()
    for i, boxes in enumerate((1, 4, 2, 3, 1, 2)):
        target[i, boxes:] = UNKNOWN
    known = target[..., 0] >= 0
    options = LossOptions(boxes_per_clip=known.sum().item() / 6)
    whole = TASK.loss(logits, target, options)
    plain = F.binary_cross_entropy_with_logits(logits[known], target[known])
    torch.testing.assert_close(whole, plain)
    parts = [TASK.loss(logits[s], target[s], options) * 2 / 6 for s in (slice(0, 2), slice(2, 4))]
    parts.append(TASK.loss(logits[4:], target[4:], options) * 2 / 6)
    torch.testing.assert_close(sum(parts), whole)
    logits[~known] = 1e4
    torch.testing.assert_close(TASK.loss(logits, target, options), plain)
    nobody = torch.full((2, 4, 3), UNKNOWN)
    assert TASK.loss(logits[:2], nobody, options) == TASK.loss_sum(logits[:2], nobody) == 0
    assert TASK.correct(logits[:2], nobody).tolist() == [1, 1]


# -- training and metric --------------------------------------------------------------------------


def trainer(store: FrameStore, model: Any, **options: Any) -> Trainer:
    from trainings import settings

    clips = open_clips(store, "train", store.classes)
    config = settings(**{"epochs": 24, "batch_size": 4, **options.pop("config", {})})
    sets = (
        open_train_set(clips, SAMPLING, TRANSFORM, 0),
        open_views(open_clips(store, "val", store.classes), SAMPLING, TRANSFORM),
    )
    return Trainer(model, *sets, config, HALF, labels=clips.labels, task=TASK, **options)


def evaluated(store: FrameStore, model: Any) -> Any:
    views = open_views(open_clips(store, "val", store.classes), SAMPLING, TRANSFORM)
    return predict(Evaluator(model, views, HALF, batch_size=4, task=TASK))


def test_a_trained_detector_tells_two_people_apart(
    root: Path, store: FrameStore, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    model = model_of()
    history = trainer(store, model).run()
    assert history[-1].train_loss < 0.5 * history[0].train_loss
    found = evaluated(store, model)
    numbers = TASK.metrics(found, store.classes)
    assert numbers["map"] == numbers["map_proposals"]
    assert numbers["map_truth_boxes"] > 0.7
    assert numbers["clips"] == 5
    assert numbers["boxes"] == 10
    table = TASK.predictions_table(found, store.classes)
    assert len(table) == len(found.clips.truth)
    for truth, name in ((True, "map_truth_boxes"), (False, "map_proposals")):
        file = tmp_path / f"{name}.csv"
        lines = [
            f"{row.id.partition('@')[0]},{row.id.partition('@')[2]},{row.x1!r},{row.y1!r},{row.x2!r},"
            f"{row.y2!r},{action},{float(p)!r}"
            for row in table[table.truth == truth].itertuples()
            for action, p in zip(ACTIONS, row.probabilities, strict=True)
        ]
        file.write_text("\n".join(lines))
        files = (root / "val.csv", file, root / "action_list.pbtxt")
        expected = frame_map(*files, root / "val_excluded_timestamps.csv")
        assert numbers[name] == pytest.approx(expected["map"], abs=1e-12)
    for kept, name in ((table, "map_proposals"), (table[table.truth], "map_truth_boxes")):
        run = Evaluated(name, tuple(store.classes), kept, "detection")
        same = own_difference(run, run, 20)
        assert same.a == same.b == pytest.approx(numbers[name], abs=1e-12)
        assert same.groups == 3  # videos
        assert not same.values.any()
    classes = TASK.per_class_table(found, store.classes)
    assert classes.ap.mean() == pytest.approx(numbers["map"])
    assert TASK.calibration_table(found).clips.sum() == 10 * 3
    with pytest.raises(VidpipeError, match="reversed_pairs"):
        TASK.metrics(found, store.classes, [("rise", "sink")])


def test_merged_gives_the_same_probabilities(store: FrameStore) -> None:
    model = model_of("zeroi2v")
    randomise(model)
    before, after = (evaluated(store, m.eval()).probabilities for m in (model, model.merge()))
    assert before.std() > 0.05
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)


def test_a_class_that_does_not_count_is_left_out(store: FrameStore) -> None:
    model = model_of()
    randomise(model)
    found = evaluated(store, model.eval())
    clips = found.clips
    clips.annotated = replace(clips.annotated, evaluated=(0, 2))
    table = TASK.per_class_table(found, store.classes)
    assert scored(table) == ["rise", "bright"]
    rows = TASK.predictions_table(found, store.classes)
    run = Evaluated("run", tuple(store.classes), rows, "detection", None, ("rise", "bright"))
    assert own_difference(run, run, 2).a == pytest.approx(table.ap[[0, 2]].mean())
    by_class = box_differences(run, run)
    assert dict(zip(by_class["class"], by_class.a)) == pytest.approx(
        {"rise": table.ap[0], "bright": table.ap[2]}
    )
    counts = {"rise": table.boxes[0], "bright": table.boxes[2]}
    assert dict(zip(by_class["class"], by_class.boxes)) == counts
    with pytest.raises(VidpipeError, match="on other boxes"):
        own_difference(run, replace(run, table=rows[1:]))
    assert np.isnan(table.ap[1])
    assert TASK.metrics(found, store.classes)["map"] == pytest.approx(table.ap[[0, 2]].mean())


def test_stopped_and_resumed_has_the_bits_of_one_that_was_not(
    store: FrameStore, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    config = {"epochs": 2, "accumulate": 2, "focal_gamma": 1.0}
    whole = model_of("zeroi2v")
    trainer(store, whole, config=config).run()
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 4

    again = model_of("zeroi2v")
    saved = Checkpoints(tmp_path / "run")
    with pytest.raises(TrainingStopped):
        trainer(store, again, config=config, checkpoints=saved, stop=stop).run()
    resumed = model_of("zeroi2v")
    trainer(store, resumed, config=config, checkpoints=saved).run()
    for name, tensor in whole.adapter_state().items():
        assert torch.equal(tensor, resumed.adapter_state()[name]), name
