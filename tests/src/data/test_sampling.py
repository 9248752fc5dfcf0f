"""Which frames make a clip, under each rule: tables worked out by hand, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpipe.data import sampling
from vidpipe.data.config import SamplingConfig

RULES = ["vidpipe", "aim", "st_adapter", "zeroi2v"]
PAPERS = RULES[1:]


def uniform(rule: str, frames: int = 4) -> SamplingConfig:
    return SamplingConfig.model_validate(
        {"strategy": "uniform", "num_frames": frames, "rule": rule}
    )


def dense(rule: str, short_clips: str = "loop", frames: int = 4, stride: int = 2) -> SamplingConfig:
    return SamplingConfig.model_validate(
        {"strategy": "dense", "num_frames": frames, "stride": stride, "rule": rule}
        | {"short_clips": short_clips}
    )


def drawn(length: int, config: SamplingConfig, u: float) -> list[int]:
    return sampling.train_indices(length, config, np.full(config.num_frames, u)).tolist()


def at_test(length: int, config: SamplingConfig, clips: int = 1) -> list[list[int]]:
    return sampling.test_indices(length, config, clips).tolist()


configs = st.builds(
    SamplingConfig,
    strategy=st.sampled_from(["uniform", "dense"]),
    num_frames=st.integers(1, 32),
    stride=st.integers(1, 16),
    short_clips=st.sampled_from(["loop", "repeat_last"]),
    rule=st.sampled_from(RULES),
)


@settings(max_examples=400, deadline=None)
@given(configs, st.integers(1, 500), st.integers(0, 2**31), st.integers(1, 5))
def test_indices_exist_and_keep_their_order(
    config: SamplingConfig, length: int, seed: int, clips: int
) -> None:
    uniforms = np.random.default_rng(seed).random(config.num_frames)
    train = sampling.train_indices(length, config, uniforms)[None]
    test = sampling.test_indices(length, config, clips)
    assert test.shape == (1 if config.strategy == "uniform" else clips, config.num_frames)
    for indices in (train, test):
        assert indices.dtype == np.int64
        assert indices.shape[1] == config.num_frames
        assert indices.min() >= 0
        assert indices.max() < length
        loops = config.short_clips == "loop" and config.rule != "st_adapter"
        if config.strategy == "uniform" or not loops or config.num_frames * config.stride <= length:
            assert (np.diff(indices, axis=1) >= 0).all()


# -- ours ---------------------------------------------------------------------------------------


def test_uniform_takes_the_middle_of_each_segment_and_dense_the_whole_range() -> None:
    assert at_test(40, uniform("vidpipe")) == [[5, 15, 25, 35]]
    ours = dense("vidpipe")
    assert at_test(11, ours, 3) == [[0, 2, 4, 6], [2, 4, 6, 8], [4, 6, 8, 10]]
    assert at_test(11, ours) == [[2, 4, 6, 8]]


def test_short_clips_loop_or_repeat() -> None:
    assert at_test(3, dense("vidpipe")) == [[0, 2, 1, 0]]
    assert at_test(3, dense("vidpipe", "repeat_last")) == [[0, 2, 2, 2]]


# -- uniform, of the three code bases -----------------------------------------------------------


@pytest.mark.parametrize("rule", PAPERS)
def test_uniform_training_draws_exactly_the_frames_between_the_rounded_borders(rule: str) -> None:
    # 11 frames: segments of 10 / 4 = 2.5, borders 0, 2.5 -> 2 (half to even), 5, 7.5 -> 8, 10.
    allowed = [{0, 1, 2}, {2, 3, 4, 5}, {5, 6, 7, 8}, {8, 9, 10}]
    draws = [drawn(11, uniform(rule), u) for u in np.linspace(0, 1, 97, endpoint=False)]
    assert [set(column) for column in zip(*draws)] == allowed
    # 4 frames: borders 0, 0.75, 1.5 -> 2, 2.25, 3: 0 1 2 2 3.
    draws = [drawn(4, uniform(rule), u) for u in np.linspace(0, 1, 97, endpoint=False)]
    assert [set(column) for column in zip(*draws)] == [{0, 1}, {1, 2}, {2}, {2, 3}]


@pytest.mark.parametrize(
    ("rule", "length", "expected"),
    [
        # (first + last) // 2 of the segments 0-2, 2-5, 5-8, 8-10
        ("aim", 11, [1, 3, 6, 9]),
        ("st_adapter", 11, [1, 3, 6, 9]),
        # first + int(2.5 / 2)
        ("zeroi2v", 11, [1, 3, 6, 9]),
        # 39 / 4 = 9.75: 0, 9.75 -> 10, 19.5 -> 20, 29.25 -> 29, 39
        ("aim", 40, [5, 15, 24, 34]),
        ("st_adapter", 40, [5, 15, 24, 34]),
        ("zeroi2v", 40, [4, 14, 24, 33]),
        # As long as the clip: 0 1 2 2 3
        ("aim", 4, [0, 1, 2, 2]),
        ("zeroi2v", 4, [0, 1, 2, 2]),
        # Shorter: 0, 0.25, 0.5, 0.75, 1 -> 0 0 0 1 1
        ("aim", 2, [0, 0, 0, 1]),
        ("st_adapter", 2, [0, 0, 0, 1]),
        ("zeroi2v", 2, [0, 0, 0, 1]),
        ("aim", 1, [0, 0, 0, 0]),
    ],
)
def test_uniform_test_frames(rule: str, length: int, expected: list[int]) -> None:
    assert at_test(length, uniform(rule)) == [expected]


# -- dense, of the three code bases (4 frames at stride 2) --------------------------------------


@pytest.mark.parametrize(
    ("rule", "length", "starts"),
    [
        # MMAction: a span of 4 * 2 = 8, so 11 - 8 + 1 = 4 starts; index 10 is never reached.
        ("aim", 11, range(4)),
        ("zeroi2v", 11, range(4)),
        # ST-Adapter: 11 - 2 * 3 = 5 starts.
        ("st_adapter", 11, range(5)),
        ("vidpipe", 11, range(5)),
        ("aim", 8, range(1)),
        ("st_adapter", 8, range(2)),
        ("st_adapter", 7, range(1)),
    ],
)
def test_every_start_is_reachable_and_no_other(rule: str, length: int, starts: range) -> None:
    draws = [drawn(length, dense(rule), u) for u in np.linspace(0, 1, 97, endpoint=False)]
    assert {draw[0] for draw in draws} == set(starts)
    assert all(draw == [draw[0] + 2 * k for k in range(4)] for draw in draws)


@pytest.mark.parametrize(
    ("rule", "short_clips", "length", "expected"),
    [
        ("aim", "loop", 7, [0, 2, 4, 6]),  # shorter than the span of 8, yet every frame is there
        ("aim", "loop", 5, [0, 2, 4, 1]),
        ("aim", "repeat_last", 6, [0, 2, 4, 4]),  # 4, not the video's last frame 5
        ("zeroi2v", "loop", 3, [0, 2, 1, 0]),
        ("zeroi2v", "repeat_last", 4, [0, 2, 2, 2]),
        ("st_adapter", "loop", 6, [0, 2, 4, 4]),  # its rule has no loop
        ("st_adapter", "repeat_last", 1, [0, 0, 0, 0]),
    ],
)
def test_training_on_clips_shorter_than_the_span(
    rule: str, short_clips: str, length: int, expected: list[int]
) -> None:
    for u in (0.0, 0.999):
        assert drawn(length, dense(rule, short_clips), u) == expected


@pytest.mark.parametrize(
    ("rule", "length", "clips", "starts"),
    [
        # AIM: the middles of n equal parts of 20 - 8 + 1 = 13 starts: 2.17, 6.5, 10.83
        ("aim", 20, 3, [2, 6, 10]),
        ("aim", 20, 1, [6]),
        ("aim", 7, 2, [0, 0]),
        # ZeroI2V, ST-Adapter: n starts from 0 to 20 - 7 = 13, of which 6.5 rounds to 6
        ("zeroi2v", 20, 3, [0, 6, 13]),
        ("zeroi2v", 20, 1, [6]),
        ("st_adapter", 20, 3, [0, 6, 13]),
        ("st_adapter", 20, 1, [6]),
        ("st_adapter", 22, 3, [0, 8, 15]),  # 7.5 rounds to 8
        ("zeroi2v", 5, 2, [0, 0]),
    ],
)
def test_starts_of_the_test_clips(rule: str, length: int, clips: int, starts: list[int]) -> None:
    assert [clip[0] for clip in at_test(length, dense(rule), clips)] == starts


def test_test_clips_shorter_than_the_span() -> None:
    assert at_test(6, dense("st_adapter")) == [[0, 2, 4, 5]]  # padded with the video's last frame
    assert at_test(6, dense("aim", "repeat_last")) == [[0, 2, 4, 4]]
    assert at_test(6, dense("aim")) == at_test(6, dense("zeroi2v")) == [[0, 2, 4, 0]]


def test_one_frame_clips_of_mmaction_1_sit_in_the_middles_of_equal_parts() -> None:
    assert at_test(10, dense("zeroi2v", frames=1), 3) == [[1], [5], [8]]  # 1.67, 5, 8.33
