"""`vidpipe.fit`: a torch data set of one's own through the pipeline's trainer."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import vidpipe
from vidpipe.backbones.still import ARCHITECTURE, WEIGHTS
from vidpipe.errors import VidpipeError
from vidpipe.training.state import Checkpoints
from vidpipe.weights import state_sha256

T, CLASSES = 2, 3


def model(method: str = "st_adapter", seed: int = 0, **options: Any) -> vidpipe.VideoModel:
    torch.manual_seed(seed)
    sizes = {"num_classes": CLASSES, "num_frames": T, "weights": WEIGHTS}
    return vidpipe.create_model(method, ARCHITECTURE, **sizes, **options)


def clips(count: int = 6, seed: int = 0, height: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    size = (count, T, 3, height, 64)
    frames = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    return TensorDataset(frames, torch.arange(count) % CLASSES)


class Noisy(Dataset[Any]):
    """Draws from every global generator, as augmentation does."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        drawn = int(torch.randint(0, 80, ())), int(np.random.randint(80)), random.randrange(80)
        frames = np.full((T, 3, 50, 50), 10 * i, np.uint8)
        frames[0] += np.uint8(drawn[0])
        frames[1] += np.uint8(drawn[1])
        frames[:, :, :25] += np.uint8(drawn[2])
        return frames, i % CLASSES


def bits(trained: vidpipe.VideoModel) -> str:
    return state_sha256(trained.adapter_state())


def fitted(data: Dataset[Any], seed: int = 0, **options: Any) -> tuple[str, list[Any]]:
    own = model()
    options = {"epochs": 2, "batch_size": 2, "lr": 1e-2, "seed": seed, **options}
    return bits(own), [bits(own), vidpipe.fit(own, data, clips(3, 1), **options), bits(own)]


def test_it_learns_and_says_how(caplog: pytest.LogCaptureFixture) -> None:
    own, seen = model(), []
    frozen = state_sha256(own.backbone.vit.state_dict())
    with caplog.at_level("INFO", "vidpipe"):
        history = vidpipe.fit(
            own, clips(), clips(), epochs=12, batch_size=3, lr=3e-2, on_epoch=seen.append
        )
    assert seen == history
    assert [m.epoch for m in history] == list(range(1, 13))
    assert history[-1].train_loss < 0.5 * history[0].train_loss
    assert history[-1].val_top1 == 1.0
    assert "epoch 12 of 12" in caplog.text
    assert own.config.lr == 3e-2
    assert not own.training
    assert state_sha256(own.backbone.vit.state_dict()) == frozen
    logits = own(own.preprocess(clips().tensors[0]))
    assert (logits.argmax(1) == clips().tensors[1]).all()


def test_without_validation_there_are_no_numbers_of_one() -> None:
    (metrics,) = vidpipe.fit(model(), clips(), epochs=1)
    assert (metrics.val_loss, metrics.val_top1) == (None, None)
    assert "val_top1" not in metrics.numbers()


def test_a_training_is_a_function_of_its_arguments() -> None:
    start, [_, history, end] = fitted(Noisy())
    torch.manual_seed(123)
    np.random.seed(7)
    again = fitted(Noisy())
    assert again == (start, [start, history, end])
    assert fitted(Noisy(), seed=1)[1][2] != end
    assert fitted(Noisy(), loader_workers=2)[1][2] == end


def test_the_callers_random_numbers_go_on_as_if_nothing_was_trained() -> None:
    own = model("aim")
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    threads = torch.get_num_threads()
    vidpipe.fit(own, Noisy(), epochs=1, threads=1)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
    assert torch.get_num_threads() == threads


class PressesCtrlC(Dataset[Any]):
    """Sends this process SIGINT when it is asked for its `at`th clip; 0 never."""

    def __init__(self, at: int, data: TensorDataset | None = None) -> None:
        self.data, self.left = data or clips(), at

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return self.data[i]


@pytest.mark.parametrize("at", [3, 9])
def test_ctrl_c_ends_the_step_and_the_same_call_goes_on(tmp_path: Path, at: int) -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 2, "lr": 1e-2, "ema_decay": 0.5}
    whole = model()
    history = vidpipe.fit(whole, clips(), clips(), **options)
    first = model()
    with pytest.raises(KeyboardInterrupt, match=rf"stopped after step \d, saved in {tmp_path}"):
        vidpipe.fit(first, PressesCtrlC(at), clips(), **options, checkpoints=tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    (folder,) = tmp_path.iterdir()
    assert Checkpoints(folder).last() is not None
    second = model(seed=2)
    assert vidpipe.fit(second, clips(), clips(), **options, checkpoints=tmp_path) == history
    assert bits(second) == bits(whole)
    third = model(seed=3)  # finished: nothing is trained
    assert vidpipe.fit(third, PressesCtrlC(1), clips(), **options, checkpoints=tmp_path) == history
    assert bits(third) == bits(whole)
    vidpipe.fit(model(), clips(), clips(), **{**options, "lr": 2e-2}, checkpoints=tmp_path)
    vidpipe.fit(model(), clips(), clips(), **options, prefetch=3, checkpoints=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_folder_ctrl_c_leaves_a_whole_step() -> None:
    own = model()
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 1$"):
        vidpipe.fit(own, PressesCtrlC(1), epochs=1, batch_size=2)
    assert all(torch.isfinite(t).all() for t in own.adapter_state().values())
    assert bits(own) != bits(model())


def test_another_handler_of_the_signal_is_left_alone() -> None:
    called = []
    before = signal.signal(signal.SIGINT, lambda *_: called.append(1))
    try:
        vidpipe.fit(model(), PressesCtrlC(1), epochs=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert called == [1]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ()


class Own(Dataset[Any]):
    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> Any:
        return self.item


FRAMES = torch.zeros(T, 3, 48, 48, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (Endless(), {}, "train: a Endless, expected a data set with a length"),
        (TensorDataset(torch.zeros(0)), {}, "train: no clip in it"),
        (Own(FRAMES), {}, "expected \\(frames, label\\)"),
        (Own((FRAMES, "cat")), {}, "expected \\(frames, label\\).*invalid literal"),
        (
            Own((FRAMES.float(), 0)),
            {},
            r"train\[\d\]: frames: float32 \(2, 3, 48, 48\), expected uint8",
        ),
        (
            Own((FRAMES.permute(0, 2, 3, 1), 0)),
            {},
            r"uint8 \(2, 48, 48, 3\), expected uint8 \(T, 3",
        ),
        (Own((FRAMES[:1], 0)), {}, r"frames \(1, 3, 48, 48\), expected \(2, 3, H, W\)"),
        (Own((FRAMES, 3)), {}, r"label 3, expected 0 to 2: the model was made for 3 classes"),
        (clips(), {"num_workers": 2}, "num_workers: has no meaning for vidpipe.fit; several"),
        (clips(), {"bacth_size": 2}, "bacth_size: unknown key; nearest is batch_size"),
        (clips(), {"epochs": 0}, "epochs: Input should be greater than or equal to 1, got 0"),
        (clips(), {"lr": 0.0}, "lr: Input should be greater than 0, got 0.0"),
        (clips(), {"epochs": 1, "warmup_epochs": 2}, "warmup_epochs"),
    ],
)
def test_a_mistake_is_one_line(data: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(VidpipeError, match=says) as error:
        vidpipe.fit(model(), data, **{"epochs": 1, **options})
    assert len(str(error.value).splitlines()) == 1
    assert "--" not in str(error.value)


def test_a_bad_item_of_the_validation_is_named() -> None:
    with pytest.raises(VidpipeError, match=r"val\[0\]: label 9"):
        vidpipe.fit(model(), clips(), Own((FRAMES, 9)), epochs=1)


def test_a_data_sets_own_error_is_raised_as_it_is() -> None:
    class Broken(Own):
        def __getitem__(self, i: int) -> Any:
            raise FileNotFoundError("clip7.mp4")

    with pytest.raises(FileNotFoundError, match=r"clip7\.mp4"):
        vidpipe.fit(model(), Broken(None), epochs=1)


def test_only_a_model_of_ours_is_trained() -> None:
    for other in (torch.nn.Linear(1, 1), replace(model().backbone).vit):
        with pytest.raises(VidpipeError, match=r"expected one that vidpipe\.create_model made"):
            vidpipe.fit(other, clips())  # type: ignore[arg-type]
