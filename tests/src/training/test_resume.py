"""A training that stops anywhere and goes on ends with the same bits; its checkpoints never tear."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_clips import HALF, Moving
from safetensors import SafetensorError
from trainings import make, settings, trainer, weights

from vidpipe.data.mixing import PairMixer
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.files import read_json
from vidpipe.training import state as state_module
from vidpipe.training.loop import Trainer
from vidpipe.training.state import VERSION, Checkpoints, Progress, load_result

UNEQUAL = np.arange(16) % 8 // 7  # two of sixteen
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"options": {"head_dropout": 0.5}, "accumulate": 2},
    "ema": {"ema_decay": 0.9, "clip_grad_norm": 0.1},
    "fp16": {"precision": "fp16"},
    "steps": {"steps": 7, "checkpoint_every": 2},
    "mixed": {"mixer": PairMixer(0.4, 0.4, 1), "shuffle": "shards", "checkpoint_every": 1},
    "partial": {"size": 19, "accumulate": 4, "checkpoint_every": 1},
    "sample": {"balance": "sample", "labels": UNEQUAL, "checkpoint_every": 1},
    "weights": {"balance": "weights", "labels": UNEQUAL, "accumulate": 2},
    "loaders": {"loader_workers": 1, "checkpoint_every": 1},
}


def build(folder: Path | None, variant: str, **more: Any) -> Trainer:
    config = {**VARIANTS[variant], "epochs": 3, "warmup_epochs": 0.5, **more}
    model = make("st_adapter", **config.pop("options", {}))
    run = trainer(model, checkpoints=Checkpoints(folder) if folder else None, **config)
    if config.get("precision") == "fp16":
        # Doubled within this run; and never the same as at a fresh start.
        run.scaler.set_growth_interval(2)
    return run


def ended(run: Trainer) -> tuple[dict[str, torch.Tensor], list[Any]]:
    return weights(run.model), run.progress.history


def assert_same(a: tuple[Any, Any], b: tuple[Any, Any]) -> None:
    assert a[1] == b[1]
    for name in a[0]:
        assert torch.equal(a[0][name], b[0][name]), name


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_stopped_at_every_step_it_ends_with_the_same_bits(tmp_path: Path, variant: str) -> None:
    whole = build(None, variant)
    whole.run()
    starts, folder = 0, tmp_path / "run"
    while True:
        run = build(folder, variant)
        begun = run.progress.step
        # Other random numbers than an uninterrupted process would have come to.
        torch.manual_seed(starts)
        np.random.seed(starts)
        asked = iter([False, True] if starts % 2 else [True])
        run.stop = lambda: next(asked, True)  # noqa: B023
        try:
            run.run()
            break
        except TrainingStopped:
            starts += 1
            assert begun <= run.progress.step <= begun + 2
            run.stop = lambda: False
        if starts > 40:  # stopped in each validation: let it pass
            build(folder, variant).run()
            break
        if run.progress.batch == len(run.batches) or run.progress.step == run.total_steps:
            # Stopped before a validation, which a resumed run repeats: let it end.
            again = build(folder, variant)
            again.on_epoch = lambda *_: setattr(again, "stop", lambda: True)  # noqa: B023
            try:
                again.run()
                break
            except TrainingStopped:
                pass
    assert starts >= 3
    final = build(folder, variant)
    assert final.progress.finished
    final.run()
    assert_same(ended(final), ended(whole))


def test_the_state_in_the_middle_of_an_epoch_has_its_running_sums(tmp_path: Path) -> None:
    run = build(tmp_path, "plain", epochs=1, warmup_epochs=0)
    run.stop = lambda: True
    with pytest.raises(TrainingStopped):
        run.run()
    last = run.checkpoints.last() if run.checkpoints else None
    assert last is not None
    progress = Progress.read(last)
    assert (progress.step, progress.epoch, progress.batch) == (1, 0, 1)
    assert progress.sums.clips == 8
    assert sorted(p.name for p in last.iterdir()) == [
        "optimizer.safetensors",
        "state.json",
        "trained.safetensors",
    ]


def test_a_finished_training_trains_nothing(tmp_path: Path) -> None:
    build(tmp_path, "plain").run()
    again = build(tmp_path, "plain")
    again._step = None  # type: ignore[assignment]
    assert len(again.run()) == 3


@pytest.mark.parametrize("keep_best", [False, True])
def test_the_best_is_kept_where_it_is_of_use(
    tmp_path: Path, keep_best: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.5, 0.9, 0.9, 0.7])
    monkeypatch.setattr("vidpipe.training.loop.validate", lambda *a: (1.0, next(accuracies), None))
    run = build(tmp_path / "run", "plain", epochs=4)
    mirror = f"file://{tmp_path}/mirror"
    run.checkpoints = kept = Checkpoints(tmp_path / "run", mirror, keep_best)
    run.run()
    best = "00000004-0002"
    assert kept.names() == [*([best] if keep_best else []), "00000008-0004"]
    assert kept.mirror is not None
    assert kept.mirror.names() == kept.names()
    assert kept.best() == (tmp_path / "run" / best if keep_best else None)
    # On another machine, all that is of use comes back.
    elsewhere = Checkpoints(tmp_path / "elsewhere", mirror, keep_best)
    elsewhere.fetch()
    assert elsewhere.names() == kept.names()


def test_leftovers_of_a_kill_go(tmp_path: Path) -> None:
    for name in (".00000002-0001.abc", ".00000001-0000.gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{")
    build(tmp_path, "plain").run()
    assert not list(tmp_path.glob(".*"))


# -- what a disk may do ---------------------------------------------------------------------------


def bad_save(error: BaseException, at: int) -> Any:
    count, original = 0, state_module.save_file

    def save(tensors: Any, file: Path) -> None:
        nonlocal count
        count += 1
        if count >= at:
            file.write_bytes(b"half")
            raise error
        original(tensors, file)

    return save


@pytest.mark.parametrize("at", [4, 5, 6])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, at: int
) -> None:
    whole = build(None, "plain")
    whole.run()
    with monkeypatch.context() as full:
        full.setattr(state_module, "save_file", bad_save(error, at))
        with pytest.raises(
            VidpipeError, match=r"No space left on device.*is intact; make room"
        ) as e:
            build(tmp_path, "plain").run()
        assert str(tmp_path) in str(e.value)
        assert "\n" not in str(e.value)
    again = build(tmp_path, "plain")
    assert again.progress.step > 0
    again.run()
    assert_same(ended(again), ended(whole))
    assert not list(tmp_path.glob(".*"))


def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    """A tmpfs with room for half a checkpoint; then for all of it."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        whole = build(None, "plain")
        whole.run()
        first = build(tmp_path, "plain")
        first._save()
        name = first.checkpoints.last().name
        used, ballast = shutil.disk_usage(tmp_path), tmp_path / "ballast"
        ballast.write_bytes(bytes(used.free - used.used // 2))
        with pytest.raises(VidpipeError, match=rf"No space left.*{name} is intact; make room"):
            first.run()
        ballast.unlink()
        again = build(tmp_path, "plain")
        assert again.resumed_from == tmp_path / name
        again.run()
        assert_same(ended(again), ended(whole))
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_limit_on_file_sizes_is_one_line(tmp_path: Path) -> None:
    """The kernel's own refusal, in the middle of a tensors file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run = build(tmp_path, "plain")
    run._save()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(VidpipeError, match=r"could not be written .*00000000-0000 is intact"):
            run.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert build(tmp_path, "plain").progress.step == 0


def test_a_read_only_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Monkeypatched: tests may run as root, whom no permission stops."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("vidpipe.files._beside", refuse)
    with pytest.raises(
        VidpipeError, match=r"Read-only file system\), there is none yet; make room"
    ):
        build(tmp_path, "plain").run()


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    build(tmp_path, "plain").run()
    last = Checkpoints(tmp_path).last()
    assert last is not None
    with pytest.raises(VidpipeError, match=r"missing|unexpected|holds moments"):
        Trainer(
            make("aim"),
            Moving(16, False),
            Moving(8, True),
            settings(),
            HALF,
            checkpoints=Checkpoints(tmp_path),
        )
    tensors = last / "trained.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(VidpipeError, match=r"not a readable checkpoint .* remove"):
        load_result(last, make())
    card = read_json(last / "state.json")
    (last / "state.json").write_text(json.dumps({**card, "version": 9}))
    with pytest.raises(VidpipeError, match=f"version 9, expected {VERSION}"):
        build(tmp_path, "plain")


def test_no_pickle(tmp_path: Path) -> None:
    build(tmp_path, "ema").run()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".safetensors", ".json"}
