"""MixUp and CutMix: pairs, soft labels, and the same result for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as T
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_clips import HALF, Moving
from tiny import tiny_vit

from vidpipe.data.batches import EpochBatches
from vidpipe.data.config import TransformConfig
from vidpipe.data.mixing import Mixed, PairMixer
from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import MethodConfig
from vidpipe.tasks import single_label
from vidpipe.training.config import TrainConfig
from vidpipe.training.loop import Trainer


def batch(clips: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip i is constant i + 1, of class i % 3."""
    video = torch.tensor(clips).float().view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 8, 10) + 1
    return video.clone(), torch.tensor(clips) % 3


def mixed(clips: list[int], mixup: float = 0.0, cutmix: float = 0.0, epoch: int = 0) -> Mixed:
    video, labels = batch(clips)
    return PairMixer(mixup, cutmix, seed=3)(video, labels, clips, epoch)


def test_off_without_an_alpha() -> None:
    assert PairMixer.of(TransformConfig(size=32), 0) is None
    assert PairMixer.of(TransformConfig(size=32, cutmix_alpha=1.0), 0) is not None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=9, unique=True),
    st.sampled_from([(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)]),
)
def test_pixels_and_labels_have_the_same_shares(
    clips: list[int], alphas: tuple[float, float]
) -> None:
    result = mixed(clips, *alphas)
    targets = result.targets(3)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(clips)))
    original, labels = batch(clips)
    for i, clip in enumerate(clips):
        partner = clips[i ^ 1] if i ^ 1 < len(clips) else clip
        weight = float(result.weights[i])
        assert 0 <= weight <= 1
        # Of constant clips, the mean pixel tells the share.
        expected = weight * (clip + 1) + (1 - weight) * (partner + 1)
        assert float(result.video[i].mean()) == pytest.approx(expected, abs=1e-4)
        soft = weight * F.one_hot(labels[i], 3) + (1 - weight) * F.one_hot(
            torch.tensor(partner % 3), 3
        )
        torch.testing.assert_close(targets[i], soft.float())
        assert int(result.heavier[i]) == (clip if weight >= 0.5 else partner) % 3
    if len(clips) % 2:
        assert torch.equal(result.video[-1], original[-1])
        assert result.weights[-1] == 1


def test_both_of_a_pair_are_mixed_as_torchvision_mixes_two() -> None:
    """torchvision rolls the batch by one: with two clips, that is the pair's other clip."""
    video, labels = torch.rand(2, 3, 4, 8, 10), torch.tensor([0, 1])
    result = PairMixer(0.8, 0.0, seed=3)(video.clone(), labels, [4, 7], 0)
    theirs = T.MixUp(alpha=0.8, num_classes=2)
    weight = float(result.weights[0])
    params = {"labels": labels, "batch_size": 2, "lam": weight}
    torch.testing.assert_close(result.targets(2), theirs.transform(labels, params))
    flat = video.flatten(2, 3)  # theirs takes pictures
    torch.testing.assert_close(result.video.flatten(2, 3), theirs.transform(flat, params))


def test_cutmix_cuts_one_box_out_of_all_frames() -> None:
    sizes = set()
    for epoch in range(20):
        result = mixed([0, 1], cutmix=1.0, epoch=epoch)
        foreign = result.video[0] == 2
        assert torch.equal(foreign, foreign[:1, :1].expand_as(foreign))
        assert torch.equal(result.video[1] == 1, foreign)
        rows, columns = (torch.nonzero(foreign[0, 0].any(d)).flatten() for d in (1, 0))
        assert int(foreign[0, 0].sum()) == len(rows) * len(columns)
        assert 1 - foreign[0, 0].float().mean() == pytest.approx(float(result.weights[0]))
        sizes.add(len(rows) * len(columns))
    assert len(sizes) > 5


def test_with_both_alphas_each_has_half_of_the_pairs() -> None:
    result = mixed(list(range(400)), 1.0, 1.0)
    cut = [bool(((v - v.round()).abs() < 1e-6).all()) for v in result.video[::2]]
    assert 70 < sum(cut) < 130


def test_a_pair_is_mixed_alike_in_any_batch_and_anew_in_the_next_epoch() -> None:
    whole = mixed([5, 9, 2, 7, 1, 4], 0.8, 1.0)
    part = mixed([2, 7], 0.8, 1.0)
    assert torch.equal(whole.video[2:4], part.video)
    assert torch.equal(whole.weights[2:4], part.weights)
    assert not torch.equal(mixed([2, 7], 0.8, epoch=1).weights, mixed([2, 7], 0.8).weights)


def test_ranks_mix_what_one_worker_would_mix() -> None:
    def parts(rank: int, world: int) -> dict[int, torch.Tensor]:
        sampler = EpochBatches(16, 8, 0, rank, world, pairs=True)
        clips = [[i for _, i in b] for b in sampler]
        return {i: v for b in clips for i, v in zip(b, mixed(b, 0.8, 1.0).video)}

    alone = parts(0, 1)
    together = parts(0, 2) | parts(1, 2)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[i], together[i]) for i in alone)


def test_training_sees_soft_labels_and_counts_the_heavier(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant(VideoModel):
        """Says class 0 to even places of a batch and 1 to odd ones, and learns nothing."""

        name = "constant"

        def __init__(self) -> None:
            super().__init__(tiny_vit(), 2, 4, MethodConfig(lr=1e-9, weight_decay=0.0))
            self.declare()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.one_hot(torch.arange(len(x)) % 2, 2) + 0 * self.head.weight.sum()

    targets = []
    original = F.cross_entropy

    def spy(logits: torch.Tensor, target: torch.Tensor, **options: object) -> torch.Tensor:
        if logits.requires_grad:
            targets.append(target)
            assert options == {"label_smoothing": 0.1}
        return original(logits, target, **options)

    monkeypatch.setattr(single_label.F, "cross_entropy", spy)
    config = TrainConfig(epochs=1, batch_size=8, warmup_epochs=0, label_smoothing=0.1, seed=2)
    data = Moving(24, False)
    history = Trainer(
        Constant(), data, Moving(4, True), config, HALF, mixer=PairMixer(1.0, 0.0, seed=2)
    ).run()
    soft = torch.cat(targets)
    assert soft.shape == (24, 2)
    torch.testing.assert_close(soft.sum(1), torch.ones(24))
    assert ((soft > 0.01) & (soft < 0.99)).any()
    said = torch.arange(24) % 2  # batches of 8: even places are even here, too
    heavier = (soft.argmax(1) == said).float().mean()
    assert history[0].train_top1 == pytest.approx(float(heavier))
    # Which is not how often it is right about the clips' own classes.
    order = [i for batch in EpochBatches(24, 8, 2, 0, 1, pairs=True) for _, i in batch]
    assert float(heavier) != pytest.approx(np.mean(np.array(order) % 2 == said.numpy()))
