"""Detection heads on every method, and samples whose boxes follow the pixels."""

import numpy as np
import pytest
import torch
from tiny import randomise, tiny_vit

import vidpipe
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.tasks.detection.detector import Detector
from vidpipe.tasks.detection.samples import BoxTransform, frames_around, ground_truth, proposals
from vidpipe.tasks.registry import TASKS

WITH_BOXES = ["linear_probe", "st_adapter", "aim", "zeroi2v", "lora", "full_finetune"]
NAMES = {1: "stand", 3: "run"}
BOXES = torch.tensor([[0, 0, 0, 0.5, 1], [0, 0.5, 0, 1, 1], [1, 0.1, 0.2, 0.7, 0.9]])


def detector(method: str, **vit: object) -> Detector:
    torch.manual_seed(0)
    model = build_method(method, tiny_vit(**vit), 5, 4, METHODS[method].Config())
    randomise(model)
    return Detector(model.eval()).eval()


@pytest.mark.parametrize("method", WITH_BOXES)
@torch.no_grad()
def test_a_box_sees_its_own_place(method):
    """On a picture that is not square; a probe's other box does not see what is changed elsewhere."""
    own, video = detector(method, img_size=(32, 64)), torch.randn(2, 3, 4, 32, 64)
    before = own(video, BOXES)
    assert before.shape == (3, 5)
    assert len(before.unique(dim=0)) == 3
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(own(video, BOXES[order]), before[order], atol=1e-5)
    video[1] += torch.randn(3, 4, 32, 64)
    after = own(video, BOXES)
    assert torch.allclose(after[:2], before[:2], atol=1e-5)
    assert not torch.allclose(after[2], before[2], atol=1e-3)


@torch.no_grad()
def test_feature_map_lies_as_the_picture():
    """Without blocks, a patch changes its own cell only: rows and columns are not swapped."""
    own, video = detector("linear_probe", depth=0, img_size=(32, 64)), torch.randn(1, 3, 4, 32, 64)
    before = own.feature_map(video)
    assert before.shape == (1, 48, 4, 8)
    video[..., 8:16, 40:48] += 1
    changed = (own.feature_map(video) - before).abs().sum(1)[0] > 1e-4
    assert changed.nonzero().tolist() == [[1, 5]]


@torch.no_grad()
def test_merged_equals_unmerged():
    own, video = detector("zeroi2v"), torch.randn(2, 3, 4, 32, 32)
    assert torch.allclose(own.merge().eval()(video, BOXES), own(video, BOXES), atol=1e-4)


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


THREE = torch.tensor(
    [
        [[0.0, 0.1, 0.3, 1.0], [0.35, 0.0, 0.65, 0.9], [0.7, 0.2, 1.0, 1.0]],
        [[0.0, 0.0, 0.5, 0.5], [0.25, 0.3, 0.75, 1.0], [0.6, 0.1, 0.9, 0.6]],  # these overlap
    ]
)


@pytest.mark.parametrize("method", WITH_BOXES)
@torch.no_grad()
def test_three_people_of_a_frame_have_scores_of_their_own(method):
    """(B, 3, C) whatever their order, and whoever else is asked about."""
    own, video = detector(method, img_size=(32, 64)), torch.randn(2, 3, 4, 32, 64)
    found = own(video, THREE)
    assert found.shape == (2, 3, 5)
    assert len(found.flatten(0, 1).unique(dim=0)) == 6
    for order in ([2, 0, 1], [1, 0, 2]):
        close(own(video, THREE[:, order]), found[:, order])
    for person in range(3):
        alone = own(video, THREE[:, person : person + 1])
        close(alone[:, 0], found[:, person])
        others = torch.rand(2, 3, 2, 2).sort(2).values.flatten(2)
        others[:, person] = THREE[:, person]
        close(own(video, others)[:, person], found[:, person])
    if own.model.not_mergeable is None:
        close(own.merge().eval()(video, THREE), found, 1e-4)


def test_three_people_who_do_different_things_are_told_apart():
    """Three squares of different brightness, in any order: each box learns its own label."""
    own = detector("st_adapter", img_size=(32, 96)).train()
    generator = torch.Generator().manual_seed(0)

    def frames(count):
        """Clips, (count, 3, 4) boxes and (count, 3) which of three labels each has."""
        videos = 0.1 * torch.randn(count, 3, 4, 32, 96, generator=generator)
        labels = torch.rand(count, 3, generator=generator).argsort(1)
        left = torch.randint(0, 16, (count, 3), generator=generator) + 32 * torch.arange(3)
        for b in range(count):
            for person in range(3):
                x = int(left[b, person])
                videos[b, :, :, 8:24, x : x + 16] += float(labels[b, person]) * 2 - 2
        edges = [left / 96, torch.full_like(left, 0.25, dtype=torch.float32)]
        boxes = torch.stack([*edges, (left + 16) / 96, edges[1] + 0.5], 2)
        return videos, boxes, labels

    optimizer = torch.optim.AdamW(own.model.parameter_groups(lr=1e-2))
    for _ in range(40):
        videos, boxes, labels = frames(8)
        target = torch.nn.functional.one_hot(labels, 5).float()
        optimizer.zero_grad()
        TASKS["detection"].loss(own(videos, boxes), target).backward()
        optimizer.step()
    videos, boxes, labels = frames(16)
    with torch.no_grad():
        found = own.eval()(videos, boxes)
    assert (found.argmax(2) == labels).float().mean() > 0.9
    assert TASKS["detection"].score_of(found, torch.nn.functional.one_hot(labels, 5)) > 0.95
    with torch.no_grad():
        swapped = own(videos, boxes[:, [1, 2, 0]])
    assert (swapped.argmax(2) == labels[:, [1, 2, 0]]).float().mean() > 0.9
    assert (swapped.argmax(2) == labels).float().mean() < 0.5, "the box decides, not its number"


def test_merged_keeps_its_input():
    """Of a model that create_model made: preprocessing goes on working."""
    model = vidpipe.create_model("zeroi2v", tiny_vit(), num_classes=5, num_frames=4)
    merged = Detector(model).merge().model
    assert merged.form == model.form
    assert merged.preprocess(torch.zeros(4, 3, 40, 60, dtype=torch.uint8)).shape == (
        1,
        3,
        4,
        32,
        32,
    )


def test_gradients_reach_the_adapters():
    own = detector("st_adapter").train()
    own(torch.randn(2, 3, 4, 32, 32), BOXES).sum().backward()
    got = {name for name, p in own.model.named_parameters() if p.grad is not None}
    assert own.model.trained_names - got <= {"vit.norm.weight", "vit.norm.bias"}
    assert "head.weight" in got


@torch.no_grad()
def test_program_with_boxes():
    own, video = detector("zeroi2v"), torch.randn(2, 3, 4, 32, 32)
    shapes = {"video": None, "boxes": {0: torch.export.Dim("boxes", min=1, max=64)}}
    program = torch.export.export(own, (video, BOXES), dynamic_shapes=shapes).module()
    for boxes in (BOXES, BOXES[:2]):
        assert torch.allclose(program(video, boxes), own(video, boxes), atol=1e-5)


@pytest.mark.parametrize("method", ["evl", "attentional_pooling", "zero_shot"])
def test_methods_of_whole_clips_are_refused(method):
    with pytest.raises(VidpipeError, match=f"task detection: {method}"):
        detector(method, depth=4)


def test_ground_truth_is_multi_hot(tmp_path):
    path = tmp_path / "gt.csv"
    path.write_text(
        "a,1,.1,.1,.5,.9,1,0\na,1,.6,.1,.9,.9,3,1\na,1,.1,.1,.5,.9,3,0\nb,2,0,0,1,1,1,0\n"
    )
    first, second = ground_truth(path, NAMES)
    assert (first.video, first.second, second.video, second.second) == ("a", 1, "b", 2)
    assert first.targets.tolist() == [[1, 1], [0, 1]]
    assert first.boxes[1].tolist() == pytest.approx([0.6, 0.1, 0.9, 0.9])
    (tmp_path / "ex.csv").write_text("a,1\n")
    assert [k.video for k in ground_truth(path, NAMES, tmp_path / "ex.csv")] == ["b"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,.5,.1,.2,.9,1", r"row 1 \(a, second 1\): box 0.5, .*x1 < x2"),
        ("a,1,.5,.1,1.2,.9,1", "fractions of the frame"),
        ("a,1,.1,.1,.5,.9,2", "action 2; expected an id of the label map"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    (tmp_path / "gt.csv").write_text(row + "\n")
    with pytest.raises(VidpipeError, match=message):
        ground_truth(tmp_path / "gt.csv", NAMES)


def test_proposals(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("a,1,.4,.4,.6,.6,.9\na,1,0,0,.1,.1,.5\n")
    (frame,) = proposals(path, ["a"], threshold=0.8, enlarge=0.5)
    assert frame.boxes.flatten().tolist() == pytest.approx([0.35, 0.35, 0.65, 0.65])
    with pytest.raises(VidpipeError, match="no such video"):
        proposals(path, ["b"])
    with pytest.raises(VidpipeError, match="a pickle"):
        proposals(tmp_path / "dense_proposals.pkl", ["a"])


def test_frames_around_a_second():
    assert frames_around(2, 10, 50, 4, 3).tolist() == [14, 17, 20, 23]
    assert frames_around(0, 10, 50, 4, 3).tolist() == [0, 0, 0, 3]
    assert frames_around(902, 10, 50, 4, 10, start=900).tolist() == [0, 10, 20, 30]
    assert frames_around(5, 10, 50, 4, 3).tolist() == [44, 47, 49, 49]
    with pytest.raises(VidpipeError, match="the video has 0 to 5"):
        frames_around(6, 10, 50, 4, 3)


@pytest.mark.parametrize("seed", range(12))
def test_boxes_follow_the_pixels(seed):
    """A bright rectangle lies in its box after jitter, crop and flip."""
    frames = torch.zeros(2, 3, 80, 160, dtype=torch.uint8)
    frames[..., 20:60, 48:96] = 255
    torch.manual_seed(seed)
    video, boxes, kept, _ = BoxTransform((40, 60), scale=(0.6, 1.0))(
        frames, torch.tensor([[0.3, 0.25, 0.6, 0.75], [0.0, 0.0, 0.01, 0.01]])
    )
    assert video.shape == (2, 3, 40, 60)
    rows, columns = np.nonzero(video[0, 0].numpy() > 127)
    if 0 not in kept:
        assert len(rows) < 0.4 * 40 * 60
        return
    found = columns.min() / 60, rows.min() / 40, (columns.max() + 1) / 60, (rows.max() + 1) / 40
    assert boxes[kept.tolist().index(0)].tolist() == pytest.approx(found, abs=0.04)


@torch.no_grad()
def test_onnx_with_boxes(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    own, video = detector("st_adapter"), torch.randn(1, 3, 4, 32, 32)
    file, boxes = tmp_path / "detector.onnx", BOXES[:2]
    shapes = {"video": None, "boxes": {0: torch.export.Dim("boxes", min=1, max=64)}}
    torch.onnx.export(own, (video, boxes), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    for asked in (boxes, boxes[:1], BOXES[:2].flip(0)):
        (found,) = session.run(None, dict(zip(names, (video.numpy(), asked.numpy()), strict=True)))
        assert np.allclose(found, own(video, asked).numpy(), atol=1e-4)


@torch.no_grad()
def test_boxes_are_fractions_of_width_and_height():
    """What lies in one box changes that box only, on a picture twice as wide as high."""
    own, video = detector("linear_probe", depth=0, img_size=(32, 64)), torch.randn(1, 3, 4, 32, 64)
    boxes = torch.tensor([[0, 0.55, 0.05, 0.95, 0.45], [0, 0.05, 0.55, 0.45, 0.95]])
    before = own(video, boxes)
    video[..., 8:16, 40:56] += 3
    changed = (own(video, boxes) - before).abs().amax(1) > 1e-3
    assert changed.tolist() == [True, False]
