"""Any value of any field is one line, or works: no traceback, no hang, no memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import moving
from moving_clips import T
from schema_fields import Leaf, extremes, leaves
from tiny import tiny_vit
from torch.utils.data import default_collate
from trainings import make, trainer
from videos import write_video

from vidpipe.backbones.input_card import completed
from vidpipe.config.overlay import deep_merge
from vidpipe.data import sampling
from vidpipe.data.mixing import PairMixer
from vidpipe.data.model_input import InputForm
from vidpipe.data.subset import subset_rows
from vidpipe.data.transforms import ClipTransform
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import MethodConfig
from vidpipe.methods.registry import build_method
from vidpipe.params import Params, parse_params
from vidpipe.profile import parameters
from vidpipe.training.metrics import BadReads
from vidpipe.video.extract import extract_one


def repeated(leaf: Leaf) -> bool:
    """A method's field that is the base class's own, which linear_probe's stands for."""
    inherited = MethodConfig.model_fields.get(leaf.name)
    if leaf.path[0] != "methods" or leaf.method == "linear_probe" or inherited is None:
        return False
    own = leaf.owner.model_fields[leaf.name]
    return (own.annotation, own.metadata) == (inherited.annotation, inherited.metadata)


LEAVES = [leaf for leaf in leaves() if not repeated(leaf)]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    write_video(path, moving(12))
    return path


def sample(params: Params) -> None:
    for length in (1, 2, 30):
        sampling.train_indices(length, params.sampling, np.full(params.sampling.num_frames, 0.999))
        indices = sampling.test_indices(length, params.sampling, params.evaluate.temporal_clips)
        assert indices.min() >= 0
        assert indices.max() < length


def augment(params: Params) -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 255, (2, 3, 24, 40), dtype=torch.uint8)
    transform = completed(params.transform, params.backbone)
    out, _ = ClipTransform(transform)(frames)
    assert out.shape[-2:] == InputForm.of(transform).sides
    mixer = PairMixer.of(params.transform, 0)
    if mixer is not None:
        for epoch in range(4):
            mixed = mixer(torch.rand(2, 3, 2, 8, 8), torch.tensor([0, 1]), [0, 1], epoch)
            assert mixed.video.isfinite().all()
            assert mixed.targets(3).isfinite().all()


def train(params: Params) -> None:
    """One step; processes and threads are limited by the schema, not started here."""
    values = params.train.model_dump() | {"threads": 1, "loader_workers": 0, "compile": False}
    run = trainer(make("linear_probe"), size=4, **values)
    clips = [run.train_set[key] for key in next(iter(run.batches))]
    run._step(default_collate(clips), BadReads(run.train_set, params.train.max_bad_reads, 4))


def extract(params: Params, video: Path) -> None:
    if params.extract.short_side > 512:
        return  # is large, and takes seconds
    row = extract_one(video, params.extract).row
    assert row["reason"] in ("", "too_large", "too_short"), row


def forward(params: Params, method: str) -> None:
    with torch.device("meta"):
        empty = build_method(method, tiny_vit(), 3, T, params.method(method))
    if parameters(empty) > 1e6:
        return  # is large, and takes seconds
    model = build_method(method, tiny_vit(), 3, T, params.method(method)).train()
    model.clip_keys.now = torch.arange(1)
    logits = model(torch.zeros(1, 3, T, 32, 32))
    assert logits.shape == (1, 3)


def uses(leaf: Leaf, video: Path) -> Callable[[Params], object] | None:
    """What is done with an accepted value of this field, where that is cheap."""
    if leaf.path[0] == "methods":
        return lambda params: forward(params, leaf.method)
    return {
        "sampling": sample,
        "evaluate": sample if leaf.name == "temporal_clips" else None,
        "transform": augment,
        "train": train,
        "extract": lambda params: extract(params, video),
        "subset": lambda params: subset_rows(["a", "b", "c"], [(0,), (0,), (1,)], params.subset),
    }.get(leaf.path[0])


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.key)
def test_an_extreme_value_is_one_line_or_works(leaf: Leaf, video: Path) -> None:
    use, accepted = uses(leaf, video), []
    for value in extremes(leaf):
        try:
            params = leaf.set(value)
            if use is None or params in accepted:
                continue
            accepted.append(params)
            use(params)
        except VidpipeError as error:
            line = str(error)
            assert "\n" not in line
            assert len(line) < 2000
            assert line.isprintable(), line


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extract": {"shard_mb": float("inf")}}, "extract.shard_mb: .*finite"),
        ({"extract": {"timeout_s": float("nan")}}, "extract.timeout_s: .*finite"),
        ({"methods": {"aim": {"lr": float("inf")}}}, "methods.aim.lr: .*finite"),
        ({"transform": {"color_jitter": {"hue": float("nan")}}}, "color_jitter.hue: .*finite"),
        ({"train": {"betas": [2, 3]}}, "train.betas.0: .*less than 1"),
        ({"transform": {"scale": [1, 0]}}, "transform.scale.1: "),
        ({"transform": {"scale": [0.9, 0.1]}}, r"transform.scale: expected \[low, high\]"),
        ({"transform": {"ratio": [0, 0]}}, "transform.ratio.0: "),
        ({"train": {"seed": -1}}, "train.seed: "),
        ({"train": {"seed": 2**64}}, "train.seed: "),
        ({"methods": {"aim": {"bottleneck_ratio": 1e9}}}, "methods.aim.bottleneck_ratio: "),
        *(({"train": {key: 10**9}}, f"train.{key}: ") for key in ("prefetch", "loader_workers")),
        *(({"train": {key: 10**9}}, f"train.{key}: ") for key in ("threads", "num_workers")),
        ({"tracking": {"uri": "nosuch://x"}}, "tracking.uri: no such kind of store: nosuch"),
        ({"data": {"classes": ["a", "b", "a"]}}, "data.classes: 'a' is named twice"),
        ({"methods": {"aim": {"blocks": [10**7]}}}, "methods.aim.blocks: .*at most 1,000,000"),
    ],
)
def test_what_once_passed_and_ended_in_a_traceback_is_refused(values: dict, message: str) -> None:
    from schema_fields import RAW

    with pytest.raises(VidpipeError, match=message):
        parse_params(deep_merge(RAW, values))


def test_large_values_that_make_sense_are_accepted() -> None:
    from schema_fields import RAW

    large = {
        "train": {"seed": 2**62, "batch_size": 4096, "epochs": 1000, "cache_mb": 500_000},
        "extract": {"num_workers": 256, "max_pixels": 2**30, "max_frames": 1_000_000},
        "transform": {"size": 1024},
    }
    assert parse_params(deep_merge(RAW, large)).train.seed == 2**62


def test_a_bottleneck_without_a_channel_is_refused_by_name() -> None:
    for method in ("aim", "st_adapter", "zeroi2v"):
        with pytest.raises(VidpipeError, match="bottleneck_ratio: 1e-09 of the width 48 leaves no"):
            make(method, bottleneck_ratio=1e-9)
