"""Dropout by clip: the right rate, and a mask that nothing but clip, layer and element decides."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import assert_near, first_gradients, make

from vidpipe.methods.noise import ClipDropout, ClipDropPath, ClipNoise, Keys

CPU = torch.device("cpu")
NOISY = {
    "st_adapter": {"head_dropout": 0.5},
    "aim": {"drop_path": 0.5, "head_dropout": 0.3},
    "zeroi2v": {"adapter_dropout": 0.3},
    "evl": {"num_layers": 2, "mlp_dropout": 0.5},
}


def layer(
    kind: type[ClipNoise], rate: float, keys: torch.Tensor | None, number: int = 0
) -> ClipNoise:
    made = kind(rate)
    made.keys, made.number = Keys(), number
    made.keys.now = keys
    return made.train()


def some_keys(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2**32, (count,), generator=torch.Generator().manual_seed(seed))


@given(rate=st.floats(0.02, 0.98), number=st.integers(0, 200), seed=st.integers(0, 1000))
def test_the_rate_is_the_rate_and_the_mean_stays(rate: float, number: int, seed: int) -> None:
    x = torch.ones(16, 4096)
    y = layer(ClipDropout, rate, some_keys(16, seed), number)(x)
    sigma = (rate * (1 - rate) / x.numel()) ** 0.5
    assert (y == 0).float().mean().item() == pytest.approx(rate, abs=5 * sigma)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - rate)))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_of_clips_layers_epochs_and_neighbours_are_independent(rate: float) -> None:
    """Correlation of any two masks of 2^17 elements within 5 standard deviations of none."""
    size = 2**17
    masks = []
    for number, keys in ((0, torch.arange(4)), (1, torch.arange(4)), (1, some_keys(2))):
        masks += list(layer(ClipDropout, rate, keys, number)(torch.ones(len(keys), size)) != 0)
    masks += [masks[0].roll(1), masks[0].roll(768), masks[0].roll(768 * 197)]
    for a, b in itertools.combinations(masks, 2):
        correlation = torch.corrcoef(torch.stack([a, b]).float())[0, 1].item()
        assert abs(correlation) < 5 / size**0.5


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_no_shift_of_a_mask_resembles_it_or_another(rate: float) -> None:
    """Correlation at every lag, by Fourier transforms: of 2^18 numbers without any, the largest is at
    about five standard deviations. Two elements share a word, and neighbouring words count up."""
    size, worst = 2**18, 0.0
    keys = torch.tensor([0, 1, 2, 0x9E3779B9, *some_keys(4).tolist()])
    masks = [layer(ClipDropout, rate, keys, number).kept(8, size, CPU) for number in (0, 1, 5)]
    spectra = torch.fft.rfft((torch.cat(masks).double() - (1 - rate)) / (rate * (1 - rate)) ** 0.5)
    for i, one in enumerate(spectra):
        for j, other in enumerate(spectra[i:], start=i):
            lags = torch.fft.irfft(one * other.conj()) / size**0.5
            worst = max(worst, lags[1 if i == j else 0 :].abs().max().item())
    assert 5 < worst < 7  # of 300 pairs, each at 262,144 lags


def test_a_mask_costs_a_few_narrow_passes() -> None:
    """Bytes that all operations of a dropout put out, an element; of fp32, the result itself is four."""
    written = 0

    class Written(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal written
            out = func(*args, **(kwargs or {}))
            written += out.numel() * out.itemsize if isinstance(out, torch.Tensor) else 0
            return out

    drop, x = layer(ClipDropout, 0.1, some_keys(2)), torch.ones(16, 197, 192)
    with Written():
        drop(x)
    assert written / x.numel() < 64


@pytest.mark.parametrize("kind", [ClipDropout, ClipDropPath])
def test_a_clips_mask_is_its_own_wherever_it_is(kind: type[ClipNoise]) -> None:
    keys, x = some_keys(6), torch.rand(6 * 8, 5, 7) + 1  # 8 frames a clip

    def noisy(keys: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        before = [torch.zeros_like(x)] if kind is ClipDropPath else []
        return layer(kind, 0.5, keys)(*before, x)

    whole = noisy(keys, x).unflatten(0, (6, 8))
    order = torch.tensor([4, 0, 3])
    part = noisy(keys[order], x.unflatten(0, (6, 8))[order].flatten(0, 1))
    assert torch.equal(part.unflatten(0, (3, 8)), whole[order])
    assert len({str((clip != 0).tolist()) for clip in whole}) == 6


def test_drop_path_takes_whole_frames() -> None:
    x, branch = torch.zeros(32 * 8, 3, 4), torch.ones(32 * 8, 3, 4)
    drop = layer(ClipDropPath, 0.5, some_keys(32))
    y = drop(x, branch).flatten(1)
    assert set(y.sum(1).tolist()) == {0.0, 24.0}
    assert 0.3 < (y[:, 0] == 0).float().mean() < 0.7
    assert torch.equal(drop(x + 3, branch, 0.5).flatten(1), 3 + 0.5 * y)
    assert torch.equal(drop.eval()(x + 3, branch, 0.5), x + 3.5)


def test_without_keys_it_is_torchs_own_chance() -> None:
    x = torch.ones(4, 100)
    free = layer(ClipDropout, 0.5, None)
    torch.manual_seed(1)
    a, b = free(x), free(x)
    torch.manual_seed(1)
    assert torch.equal(free(x), a)
    assert not torch.equal(a, b)
    assert torch.equal(free.eval()(x), x)
    assert torch.equal(layer(ClipDropout, 0.0, None)(x), x)


@pytest.mark.parametrize("name", NOISY)
def test_no_two_layers_of_a_model_share_a_mask(name: str) -> None:
    model = make(name, **NOISY[name])
    layers = [m for m in model.modules() if isinstance(m, ClipNoise)]
    assert sorted(m.number for m in layers) == list(range(len(layers)))
    assert all(m.keys is model.clip_keys for m in layers)


@pytest.mark.parametrize("name", NOISY)
def test_parts_of_a_batch_see_the_noise_of_the_whole(name: str) -> None:
    whole = first_gradients(make(name, **NOISY[name]))
    divided = first_gradients(make(name, **NOISY[name]), accumulate=4)
    assert_near(divided, whole, 1e-5)
    other = first_gradients(make(name, **NOISY[name]), seed=1)
    assert any(not torch.allclose(other[key], whole[key], atol=1e-4) for key in whole)
