"""A training on kept features has the bits of one on frames, and no feature is kept for another."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cached_trainings import CPU, FIXED, assert_same_bits, params_of, shards_in, trained, trainer_of
from fsspec.implementations.memory import MemoryFileSystem
from matrix import MATRIX
from safetensors.torch import load_file, save_file
from small_store import small_project
from tiny import randomise, tiny_vit

from pipeline.infra.training_setup import TrainingSetup
from pipeline.infra.workspace import Workspace
from vidpipe.data.dataset import TrainSet, ViewSet
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.evaluate import Evaluator
from vidpipe.features.cache import FeatureCache, _part_sizes
from vidpipe.features.store import FeatureStore
from vidpipe.methods.base import VideoModel
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.methods.split import Split
from vidpipe.training.config import TrainConfig
from vidpipe.video.store import FrameStore

EXACT = (*FIXED, "train.cache_features=exact")
NAMES = (
    *("linear_probe", "attentional_pooling", "attentive_probe", "evl", "side4video"),
    *("st_adapter", "aim", "partial", "zeroi2v", "lora", "temporal_heads"),
)
ON_TOP = {
    "st_adapter": ("methods.st_adapter.blocks=[3]",),
    "aim": (
        "methods.aim.blocks=[2,3]",
        "methods.aim.temporal_embedding_at=first_adapted",
        "methods.aim.drop_path=0.3",
    ),
    **{
        name: (
            f"methods.{name}.blocks=[2,3]",
            f"methods.{name}.temporal_embedding_at=first_adapted",
        )
        for name in ("zeroi2v", "lora", "temporal_heads")
    },
    "side4video": ("methods.side4video.side_width=24",),
    "evl": ("methods.evl.num_layers=2",),
}


def options(name: str) -> tuple[str, ...]:
    """Adapters only on top, and noise, which belongs to the clip in both."""
    return (f"methods.{name}.head_dropout=0.3", *ON_TOP.get(name, ()))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clips to train, three to validate; batches of four and three."""
    root = tmp_path_factory.mktemp("project")
    small_project(root, epochs=3)
    return root


@pytest.fixture
def fresh(project: Path, tmp_path: Path) -> Path:
    """A copy without features."""
    shutil.copytree(project, tmp_path / "own", ignore=shutil.ignore_patterns("features"))
    return tmp_path / "own"


def frames_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a frame was read")

    monkeypatch.setattr(FrameStore, "read", refuse)


@pytest.mark.parametrize("name", NAMES)
def test_exact_has_the_bits_of_the_training_on_frames(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(trainer_of(project, name, *FIXED, *options(name)))
    cached = trainer_of(project, name, *EXACT, *options(name))
    frames_are_not_read(monkeypatch)
    assert_same_bits(trained(cached), plain)
    assert {m.val_top1 is not None for m in plain[0]} == {True}


def test_every_method_that_can_be_cut_is_tested_above() -> None:
    """The others train, or mix frames, from their first block on."""
    able = set()
    for name, given in MATRIX:
        torch.manual_seed(0)
        model = build_method(name, tiny_vit(), 3, 4, METHODS[name].Config.model_validate(given))
        with suppress(VidpipeError):
            Split(model)
            able.add(name)
    assert able - {"zero_shot"} <= set(NAMES)


@pytest.mark.parametrize(
    "sets",
    [
        ("train.accumulate=2",),
        ("train.batch_size=7",),
        ("train.drop_last=true", "train.ema_decay=0.9"),
        ("train.balance=sample", "train.batch_size=5"),
        ("train.loader_workers=2", "train.shuffle=shards"),
        ("train.activation_gb=0", "train.clip_grad_norm=0.1", "train.label_smoothing=0.1"),
        ("train.precision=bf16",),
    ],
    ids=lambda sets: sets[0],
)
def test_so_it_has_with_other_batches_and_options(sets: tuple[str, ...], project: Path) -> None:
    name = "aim"
    plain = trained(trainer_of(project, name, *FIXED, *options(name), *sets))
    cached = trained(trainer_of(project, name, *EXACT, *options(name), *sets))
    assert_same_bits(cached, plain)


def test_a_size_whose_bits_differ_has_rows_of_its_own(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on machines where the last bits depend on the shape of the batch: here by 2^-20 of its size."""
    frozen = Split.frozen

    def by_size(self: Split, video: torch.Tensor) -> Any:
        return tuple(x * (1 + len(video) * 2**-20) for x in frozen(self, video))

    def whole(self: VideoModel, video: torch.Tensor) -> torch.Tensor:
        split = SimpleNamespace(model=self, cut=-1)
        return Split.forward(split, by_size(split, video))  # type: ignore[arg-type]

    monkeypatch.setattr(Split, "frozen", by_size)
    monkeypatch.setattr(VideoModel, "forward", whole)
    plain = trained(trainer_of(fresh, "linear_probe", *FIXED))
    cached = trained(trainer_of(fresh, "linear_probe", *EXACT))
    assert_same_bits(cached, plain)
    (folder,) = (fresh / "features").glob("train-*")
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"batch-3", "batch-4"}


def test_equal_bits_share_their_rows(fresh: Path) -> None:
    trainer_of(fresh, "attentional_pooling", *EXACT)
    (folder,) = (fresh / "features").glob("train-*")
    (own,) = (p for p in folder.iterdir() if p.is_dir())
    assert own.name == "batch-4"
    assert json.loads((folder / "batch-3.json").read_text()) == {"as": 4}
    assert len(FeatureStore(own).places) == 7
    before = shards_in(fresh)
    trainer_of(fresh, "attentional_pooling", *EXACT, "train.seed=5", "train.epochs=9")
    assert shards_in(fresh) == before


def test_views_take_turns_by_epoch(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ("train.cache_features={views: 2}", "transform.flip=true", "train.warmup_epochs=0")
    trainer = trainer_of(fresh, "linear_probe", *sets)
    frames_are_not_read(monkeypatch)
    data: Any = trainer.train_set
    first, second, third = (data[epoch, 3]["features"][0] for epoch in range(3))
    assert first.dtype == torch.bfloat16
    assert not torch.equal(first, second)
    assert torch.equal(first, third)
    history, _ = trained(trainer)
    assert history[-1].train_loss < history[0].train_loss
    # Drawn by the clip's content, so that other seeds and folds share them.
    before = shards_in(fresh)
    monkeypatch.undo()
    trainer_of(fresh, "linear_probe", *sets, "train.seed=9")
    assert shards_in(fresh) == before
    trainer_of(fresh, "linear_probe", *sets, "train.cache_features={views: 3}")
    assert before.items() < shards_in(fresh).items()


def test_validation_is_exact_beside_random_views(fresh: Path) -> None:
    sets = ("train.epochs=2", "methods.linear_probe.lr=1e-9")
    plain = trainer_of(fresh, "linear_probe", *sets).run()
    views = trainer_of(fresh, "linear_probe", *sets, "train.cache_features={views: 1}").run()
    assert abs(plain[-1].val_loss - views[-1].val_loss) < 1e-6  # type: ignore[operator]


@pytest.mark.parametrize("name", ["linear_probe", "attentional_pooling", "aim", "zeroi2v"])
def test_tests_go_on_kept_views_and_their_orders(
    name: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = TrainingSetup.build(params_of(fresh, *EXACT, *options(name)), name, Workspace(fresh))
    model, backbone = setup.trained.model, setup.trained.backbone
    randomise(model)
    views = ViewSet(setup.val_set.clips, setup.params.sampling, setup.trained.transform, 1, 3)
    evaluator = Evaluator(model, views, (backbone.mean, backbone.std), batch_size=2)
    expected = evaluator(range(len(views)))
    split = Split(model)
    cache = FeatureCache(setup.features, split, backbone, setup.params.train, CPU)
    cache.test_views(views)
    frames_are_not_read(monkeypatch)
    kept = cache.test_views(views)
    assert [tuple(x.shape) for x in kept[0]["features"]] == [(3, *split.shapes[0])]
    found = replace(evaluator, views=kept, split=split)(range(len(kept)))
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, atol=1e-6, rtol=0)
    assert not torch.allclose(expected["probabilities"], expected["in_order"])
    if name != "attentional_pooling" and name != "linear_probe":
        assert not torch.allclose(expected["in_order"], expected["reversed"])


REFUSED = {
    "train.cache_features=exact": "train_frames: random, transform.crop: random_resized draws other",
    "transform.flip=true": "transform.flip: true draws",
    "transform.erase_probability=0.1": "transform.erase_probability draws",
    "transform.mixup_alpha=0.2": "transform.mixup_alpha mixes the pixels",
    "transform.crop=random": "but transform.crop: random draws",
    "train.patch_drop=0.5": "linear_probe needs every patch here: .* features of frames are all",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items())
def test_what_changes_by_epoch_is_refused(text: str, message: str, project: Path) -> None:
    sets = (text,) if "exact" in text else (*EXACT, text)
    with pytest.raises(VidpipeError, match=message) as refused:
        trainer_of(project, "linear_probe", *sets)
    assert "\n" not in str(refused.value)


def test_patches_of_kept_features_are_left_out_while_training(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = ("train.patch_drop=0.5", "train.patch_drop_until=0.5")
    run = trainer_of(project, "st_adapter", *EXACT, *options("st_adapter"), *half)
    frames_are_not_read(monkeypatch)
    tokens: list[tuple[bool, int]] = []
    run.model.view.blocks[3].norm1.register_forward_hook(
        lambda m, i, o: tokens.append((run.model.training, i[0].shape[-2]))
    )
    trained(run)
    assert [n for training, n in tokens if training][:1] == [1 + 8]
    assert [n for training, n in tokens if training][-1:] == [1 + 16]
    assert {n for training, n in tokens if not training} == {1 + 16}
    with pytest.raises(VidpipeError, match=r"train.*patch_drop_by: motion is seen in frames"):
        trainer_of(
            project,
            "st_adapter",
            *EXACT,
            *options("st_adapter"),
            *half,
            "train.patch_drop_by=motion",
        )


def test_clips_that_leave_no_choice_of_frames_need_no_other_sampling(project: Path) -> None:
    sets = ("sampling.num_frames=20", "transform.crop=center", "train.cache_features=exact")
    assert trainer_of(project, "linear_probe", *sets).run()


def test_a_method_that_trains_from_its_first_block_is_refused(project: Path) -> None:
    with pytest.raises(VidpipeError, match="method st_adapter trains, or mixes frames, from its"):
        trainer_of(project, "st_adapter", *EXACT)


# -- never a feature of something else --------------------------------------------------------


def test_other_weights_transforms_and_samplings_have_other_folders(fresh: Path) -> None:
    def folders(*sets: str) -> set[str]:
        trainer_of(fresh, "linear_probe", *EXACT, *sets)
        return {p.name for p in (fresh / "features").iterdir()}

    first = folders()
    assert folders("train.epochs=4", "methods.linear_probe.lr=1") == first
    weights = load_file(params_of(fresh).backbone.weights)
    weights["blocks.0.norm1.bias"] = weights["blocks.0.norm1.bias"] + 1e-3
    save_file(weights, fresh / "other.safetensors")
    seen = [first]
    for sets in (
        f"backbone.weights={fresh / 'other.safetensors'}",
        "transform.size=36",
        "sampling.num_frames=5",
        "sampling.rule=aim",
        "train.precision=bf16",
        "backbone.pool=avg",
    ):
        seen.append(folders(sets))
        assert len(seen[-1] - seen[-2]) == 2, sets  # of training and validation


def test_a_changed_video_is_computed_anew_and_alone(fresh: Path) -> None:
    trainer_of(fresh, "linear_probe", *EXACT)
    before = shards_in(fresh)
    table = pq.read_table(fresh / "data/store/manifest.parquet")
    rows: pd.DataFrame = table.to_pandas()
    rows.loc[2, "sha256"] = "of another file"  # its frames stand for it, in the manifest
    rows.loc[2, ["offset", "nbytes"]] = rows.loc[5, ["offset", "nbytes"]]
    schema = table.schema
    pq.write_table(
        pa.Table.from_pandas(rows, schema, preserve_index=False).replace_schema_metadata(
            schema.metadata
        ),
        fresh / "data/store/manifest.parquet",
    )
    plain = trained(trainer_of(fresh, "linear_probe", *FIXED))
    cached = trained(trainer_of(fresh, "linear_probe", *EXACT))
    assert_same_bits(cached, plain)
    after = shards_in(fresh)
    assert before.items() < after.items()
    new = {name for name in after.keys() - before.keys() if "batch-4" in name}
    assert [len(load_file(fresh / "features" / name)["0"]) for name in new] == [1]


def test_a_damaged_shard_is_made_again(fresh: Path) -> None:
    plain = trained(trainer_of(fresh, "linear_probe", *FIXED))
    trainer_of(fresh, "linear_probe", *EXACT)
    before = shards_in(fresh)
    for shard in (fresh / "features").rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-100])
    assert_same_bits(trained(trainer_of(fresh, "linear_probe", *EXACT)), plain)
    assert shards_in(fresh) == before


def test_a_disk_that_is_too_small_is_named_before_a_byte_is_written(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=5000)
    monkeypatch.setattr("vidpipe.features.store.shutil.disk_usage", lambda path: usage)
    with pytest.raises(VidpipeError, match=r"0\.0154 MB of frozen features do not fit.*0\.005 MB"):
        trainer_of(fresh, "linear_probe", *EXACT)
    assert not (fresh / "features").exists()


@pytest.fixture
def bucket() -> Iterator[str]:
    """An object store's URL; nothing of it lies on a disk."""
    yield "memory://bucket/features"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def objects() -> dict[str, bytes]:
    system = fsspec.filesystem("memory")
    return {path: system.cat_file(path) for path in system.find("/bucket")}


@pytest.mark.parametrize("kept", ["exact", "{views: 2}"])
def test_a_url_keeps_what_a_folder_does(
    kept: str, fresh: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = (*FIXED, f"train.cache_features={kept}", "train.loader_workers=0")
    here = trained(trainer_of(fresh, "attentional_pooling", *sets))
    at_url = trainer_of(fresh, "attentional_pooling", *sets, f"train.cache_folder={bucket}")
    frames_are_not_read(monkeypatch)
    assert_same_bits(trained(at_url), here)
    there = {name.removeprefix("/bucket/features/"): own for name, own in objects().items()}
    own = {f"{name}": content for name, content in shards_in(fresh).items()}
    assert {n: c for n, c in there.items() if n.endswith("tensors")} == {
        n: c for n, c in own.items() if n.endswith("tensors")
    }
    assert {*there} == {*own}
    # Another training, or machine: nothing is computed.
    again = trainer_of(fresh, "attentional_pooling", *sets, f"train.cache_folder={bucket}/")
    assert_same_bits(trained(again), here)


def test_a_url_goes_on_after_a_kill_and_makes_damaged_objects_again(
    fresh: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = (*EXACT, f"train.cache_folder={bucket}", "train.loader_workers=0")
    monkeypatch.setattr("vidpipe.features.store.SHARD_ROWS", 2)
    write, count = FeatureStore.write, []

    def killed(self: FeatureStore, *args: Any) -> None:
        if len(count) == 1:
            raise KeyboardInterrupt
        count.append(write(self, *args))

    monkeypatch.setattr(FeatureStore, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(fresh, "linear_probe", *sets)
    before = objects()
    assert sum(name.endswith("tensors") for name in before) == 1
    monkeypatch.setattr(FeatureStore, "write", write)
    trainer_of(fresh, "linear_probe", *sets)
    assert "3 of 7 views to compute" in capsys.readouterr().err
    whole = objects()
    assert before.items() < whole.items()
    name = next(name for name in before if name.endswith("tensors"))
    for content in (whole[name][:-3], whole[name][:20], b"", b"\xff" * 40):
        fsspec.filesystem("memory").pipe_file(name, content)
        trainer_of(fresh, "linear_probe", *sets)
        assert objects() == whole


def test_a_file_url_is_its_folder(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"train.cache_folder=file://{fresh}/features"
    usage = SimpleNamespace(free=5000)
    with monkeypatch.context() as small:
        small.setattr("vidpipe.features.store.shutil.disk_usage", lambda path: usage)
        with pytest.raises(VidpipeError, match="do not fit on the disk"):
            trainer_of(fresh, "linear_probe", *EXACT, url)
        assert not (fresh / "features").exists()
    trainer_of(fresh, "linear_probe", *EXACT)
    before = shards_in(fresh)
    frames_are_not_read(monkeypatch)
    assert trainer_of(fresh, "linear_probe", *EXACT, url).run()
    assert shards_in(fresh) == before


def test_a_url_that_refuses_is_one_line(
    fresh: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError("no such key\nin this account")

    trainer_of(fresh, "linear_probe", *EXACT, f"train.cache_folder={bucket}")  # is made
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    for url, line in (
        ("memory://bucket/other", "cannot be written (no such key)"),
        ("nowhere://bucket", "cannot be read (Protocol not known"),
    ):
        with pytest.raises(VidpipeError, match=re.escape(line)) as refused:
            trainer_of(fresh, "linear_probe", *EXACT, f"train.cache_folder={url}")
        assert str(refused.value).startswith(f"train.cache_folder: {url}")
        assert "\n" not in str(refused.value)


def test_the_size_is_said_before_it_is_written(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer_of(fresh, "attentional_pooling", *EXACT)
    said = capsys.readouterr().err
    tokens = 4 * 17 * 96 * 4
    assert f"7 of 7 views to compute, {7 * tokens / 1e6:.3g} MB in" in said
    assert "tokens behind block 4 of 4" in said
    trainer_of(fresh, "attentional_pooling", *EXACT)
    assert "to compute" not in capsys.readouterr().err


def test_an_unreadable_clip_is_replaced_as_it_is_on_frames(fresh: Path) -> None:
    shard = fresh / "data/store/shard-00000.bin"
    rows = FrameStore(fresh / "data/store").rows
    data = bytearray(shard.read_bytes())
    for i in (1, 4):
        start, size = int(rows.offset[i]), int(rows.nbytes[i])
        data[start : start + size] = bytes(size)
    shard.write_bytes(data)
    sets = ("train.max_bad_reads=1",)
    plain = trained(trainer_of(fresh, "linear_probe", *FIXED, *sets))
    cached = trained(trainer_of(fresh, "linear_probe", *EXACT, *sets))
    assert_same_bits(cached, plain)
    with pytest.raises(VidpipeError, match=r"more than train\.max_bad_reads"):
        trainer_of(fresh, "linear_probe", *EXACT, "train.max_bad_reads=0.1").run()


def test_folds_and_subsets_share_what_is_there(fresh: Path) -> None:
    store = FrameStore(fresh / "data/store")
    ids = store.rows.id.tolist()
    folds = [(ids[:6], ids[6:]), (ids[4:], ids[:4]), (ids[2:], ids[:2])]
    for train, val in folds:
        own = store.split_as(train, val)
        plain = trained(trainer_of(fresh, "linear_probe", *FIXED, store=own))
        assert_same_bits(trained(trainer_of(fresh, "linear_probe", *EXACT, store=own)), plain)
    (folder,) = (fresh / "features").glob("train-*")
    of_four = (len(load_file(p)["0"]) for p in (folder / "batch-4").glob("*.safetensors"))
    assert sum(of_four) == len(ids)  # each clip once


def test_clips_with_boxes_are_refused(project: Path) -> None:
    class Boxes(TrainSet):
        """Whose samples hold more than a view."""

    setup = TrainingSetup.build(params_of(project, *EXACT), "linear_probe", Workspace(project))
    boxes = object.__new__(Boxes)
    with pytest.raises(VidpipeError, match="cropped with them; set it to off"):
        replace(setup, train_set=boxes).trainer(CPU)


def test_a_rank_may_have_no_clip_of_the_last_batch() -> None:
    config = TrainConfig(epochs=1, batch_size=4, warmup_epochs=0)
    assert _part_sizes(9, config, 2) == {1, 2}
    assert _part_sizes(8, config.model_copy(update={"accumulate": 2}), 1) == {2}
