"""Explanations of task detection: of one box, by the patches in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from people import HEIGHT, WIDTH, small_detector

from vidpipe.data.model_input import to_input
from vidpipe.errors import VidpipeError
from vidpipe.explain import explain_clip
from vidpipe.explain.clip import patches_in
from vidpipe.trained.trained_model import TrainedModel

LEFT, RIGHT = torch.tensor([0.0, 0, 0.5, 1]), torch.tensor([0.5, 0, 1, 1])
WHOLE = torch.tensor([0.0, 0, 1, 1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return small_detector(tmp_path_factory.mktemp("weights"), "zeroi2v")


def frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (4, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)


def test_the_answer_is_that_of_the_box_and_the_maps_are_of_its_patches(
    trained: TrainedModel,
) -> None:
    clip = to_input(frames(), trained.backbone.mean, trained.backbone.std)[None]
    found = {}
    for name, box in (("left", LEFT), ("right", RIGHT), ("whole", WHOLE)):
        found[name] = explain_clip(trained, frames(), -1, True, None, box)
        with torch.no_grad():
            logits = trained.task.network(trained.model)(clip, box[None, None])[0, 0]
        torch.testing.assert_close(found[name].probabilities, logits.sigmoid())
    left, right, whole = (found[name] for name in ("left", "right", "whole"))
    assert not torch.allclose(left.probabilities, right.probabilities)
    assert [view.kind for view in whole.views] == ["spatial", "temporal", "temporal", "grad_cam"]
    for i in range(3):
        # The mean over the queries of all patches is that over both halves.
        both = (left.views[i].maps + right.views[i].maps) / 2
        torch.testing.assert_close(both, whole.views[i].maps)
        assert not torch.allclose(left.views[i].maps, right.views[i].maps)
    assert left.views[-1].maps.any()
    changed = (left.frames != frames()).any(1)
    assert changed[:, :, 0].all(), "the box is drawn"
    assert not changed[:, 2:-2, WIDTH // 2 + 2 :].any()


def test_a_box_touches_at_least_a_patch(trained: TrainedModel) -> None:
    rows, columns = trained.model.view.grid
    assert patches_in(WHOLE, trained.model).tolist() == list(range(rows * columns))
    assert patches_in(torch.tensor([1.0, 1, 1, 1]), trained.model).tolist() == [rows * columns - 1]
    assert patches_in(torch.tensor([0.01, 0.01, 0.02, 0.02]), trained.model).tolist() == [0]


def test_without_a_box_it_is_one_line(trained: TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(VidpipeError, match="answers of a box; give one"):
        explain_clip(trained, frames())
