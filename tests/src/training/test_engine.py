"""What the engine promises of a step: each option against the plain arithmetic it stands for."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from moving_clips import HALF, Moving
from torch._dynamo.utils import counters
from trainings import CPU, assert_near, first_gradients, make, settings, trainer, weights

from vidpipe.data.mixing import PairMixer
from vidpipe.data.model_input import to_input
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS
from vidpipe.training.metrics import BadReads
from vidpipe.training.optim import lr_factor, trained_parameters
from vidpipe.training.state import Checkpoints, load_result


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_give_the_gradient_of_the_whole_batch(parts: int) -> None:
    whole = first_gradients(make(), label_smoothing=0.1)
    divided = first_gradients(make(), label_smoothing=0.1, accumulate=parts)
    assert all(g.abs().max() > 1e-6 for g in whole.values())
    assert_near(divided, whole, 1e-6)


def test_micro_batches_of_unequal_size_weigh_by_their_clips() -> None:
    whole = first_gradients(make(), size=7)
    divided = first_gradients(make(), size=7, accumulate=2)  # 4 and 3 clips
    assert_near(divided, whole, 1e-6)


def test_the_last_batch_has_the_clips_that_are_left_and_weighs_as_any() -> None:
    seen: list[int] = []
    run = trainer(make(), size=19, epochs=1, on_step=lambda info: seen.append(info.step))
    history = run.run()
    assert seen == [1, 2, 3]
    assert history[0].train_top1 * 19 == pytest.approx(round(history[0].train_top1 * 19))
    trainer(make(), size=19, epochs=1, drop_last=True, on_step=lambda i: seen.append(-i.step)).run()
    assert seen == [1, 2, 3, -1, -2]

    def last(**config: Any) -> dict[str, torch.Tensor]:
        model = make()
        run = trainer(model, size=19, epochs=1, **config)
        run.batches.epoch, run.batches.start_batch, run.progress.batch = 0, 2, 2
        (batch,) = run.loader
        run._step(batch, BadReads(run.train_set, 1, 19))
        x = to_input(batch["video"], *HALF)
        model.load_state_dict(make().state_dict())
        alone = torch.nn.functional.cross_entropy(model(x), batch["label"])
        expected = torch.autograd.grad(alone, list(run.trained.values()))
        found = {n: p.grad for n, p in run.trained.items() if p.grad is not None}
        assert_near(found, dict(zip(run.trained, expected, strict=True)), 1e-6)
        return found

    assert_near(last(accumulate=4), last(), 1e-6)  # 3 clips in parts for up to 8


def test_micro_batches_keep_pairs_and_soft_labels() -> None:
    def mixed(**config: Any) -> dict[str, torch.Tensor]:
        mixer = PairMixer(0.4, 0.4, 3)
        return first_gradients(make(), mixer=mixer, label_smoothing=0.2, **config)

    assert_near(mixed(accumulate=4), mixed(), 1e-6)
    assert_near(mixed(accumulate=8), mixed(), 1e-6)  # 8 parts would be clips: they become pairs


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_nearly_as_fp32(precision: str) -> None:
    whole, half = make(), make()
    expected = trainer(whole, epochs=6).run()
    seen = []
    run = trainer(half, epochs=6, precision=precision, on_step=lambda info: seen.append(info))
    found = run.run()
    assert run.scaler.is_enabled() == (precision == "fp16")
    assert found[-1].train_loss == pytest.approx(expected[-1].train_loss, abs=0.1)
    # Without unscaling, norms would be 65536 times as large.
    assert seen[0].grad_norm == pytest.approx(expected[0].grad_norm, rel=1)
    assert all(p.dtype == torch.float32 for p in trained_parameters(half).values())


def test_fp16_leaves_out_a_step_that_overflows_and_goes_on() -> None:
    model = make()
    run = trainer(model, precision="fp16")
    run.scaler._init_scale = 1e38  # overflows the gradients, not the loss
    before, seen = weights(model), []
    run.on_step = lambda info: seen.append((info.grad_norm, weights(model)))
    run.run()
    assert not math.isfinite(seen[0][0])
    assert_near(seen[0][1], before, 0)
    assert run.progress.history[0].grad_norm is None or math.isfinite(
        run.progress.history[0].grad_norm
    )
    assert run.scaler.get_scale() < 1e38


def test_the_average_is_of_trained_weights_and_is_what_is_evaluated_and_published(
    tmp_path: Path,
) -> None:
    plain, model = make(), make()
    trajectory: list[dict[str, torch.Tensor]] = []
    trainer(plain, on_step=lambda info: trajectory.append(weights(plain))).run()
    average, decay = weights(make()), 0.6
    for step, now in enumerate(trajectory, 1):
        d = min(decay, (1 + step) / (10 + step))
        average = {n: d * average[n] + (1 - d) * now[n] for n in now}
    checkpoints = Checkpoints(tmp_path)
    run = trainer(model, ema_decay=decay, checkpoints=checkpoints)
    run.run()
    assert run.ema is not None
    assert set(run.ema.average) == model.trained_names
    assert_near(weights(model), average, 1e-6)
    published = make()
    last = checkpoints.last()
    assert last is not None
    load_result(last, published)
    assert_near(weights(published), average, 1e-6)
    # What was validated at the end is the average: the same numbers as from the published weights.
    from vidpipe.training.validate import validate

    loss, *_ = validate(published, Moving(8, True), settings(), HALF, CPU)
    assert run.progress.history[-1].val_loss == pytest.approx(loss, rel=1e-6)
    other, *_ = validate(plain, Moving(8, True), settings(), HALF, CPU)
    assert abs(other - loss) > 1e-4


@pytest.mark.parametrize("clips", [1, 7, 8])
def test_a_score_is_the_same_however_many_workers(
    clips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidpipe.tasks.registry import TASKS
    from vidpipe.training import validate as module

    task = TASKS["multilabel"]
    logits, labels = torch.randn(clips, 3), torch.arange(3 * clips).view(clips, 3) % 2
    each = list(zip(logits.split(1), labels.split(1), strict=True))
    for workers in (1, 2, 3):
        everyone = [item for rank in range(workers) for item in each[rank::workers]]
        monkeypatch.setattr(module, "gathered", lambda own, all_=everyone: all_)
        assert module._score(task, [], clips, workers) == task.score_of(logits, labels)
    empty = [(one, torch.zeros(1, 3)) for one in logits.split(1)]
    monkeypatch.setattr(module, "gathered", lambda own: empty)
    assert module._score(task, [], clips, 1) is None, "no clip has a class"


def test_steps_in_place_of_epochs_end_in_the_middle_of_one() -> None:
    model, seen = make(), []
    run = trainer(model, steps=5, warmup_epochs=1.5, on_step=seen.append)  # 2 batches an epoch
    history = run.run()
    assert [m.step for m in history] == [2, 4, 5]
    assert [m.epoch for m in history] == [1, 2, 3]
    assert [info.lr for info in seen] == [1e-2 * lr_factor(s, 3, 5) for s in range(5)]
    assert history[-1].val_top1 is not None
    with pytest.raises(VidpipeError, match=r"1\.5 epochs are 3 steps, and there are 3 in all"):
        trainer(make(), steps=3, warmup_epochs=1.5)


def test_the_rate_of_the_recipes_schedule_reaches_the_optimizer() -> None:
    seen: list[float] = []
    config = {"warmup_from": 0.1, "lr_schedule": "cosine_by_epoch", "warmup_epochs": 1.5}
    run = trainer(make(), epochs=4, **config)  # 2 batches an epoch
    run.on_step = lambda info: seen.append(run.optimizer.param_groups[0]["lr"])
    run.run()
    expected = [1e-2 * lr_factor(s, 3, 8, start=0.1, epoch=2) for s in range(8)]
    assert seen == pytest.approx(expected)
    assert seen[0] == pytest.approx(1e-3)
    assert seen[4] == seen[5] == pytest.approx(0.5e-2)


def test_clipping_bounds_the_gradient_and_reports_it_unclipped() -> None:
    free = trainer(make("zeroi2v"), epochs=1, warmup_epochs=0).run()
    clipped = trainer(make("zeroi2v"), epochs=1, warmup_epochs=0, clip_grad_norm=1e-3)
    norms = []
    original = clipped.scaler.step

    def step(optimizer: torch.optim.Optimizer) -> None:
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in clipped.trained.values()]))
        original(optimizer)

    clipped.scaler.step = step
    history = clipped.run()
    assert max(norms) <= 1.001e-3
    assert history[0].grad_norm is not None
    assert history[0].grad_norm > 10e-3
    assert free[0].grad_norm is not None


# -- what ends a training -------------------------------------------------------------------------


def test_a_frozen_weight_with_a_gradient_is_an_error() -> None:
    model = make("st_adapter")
    model.vit.blocks[1].mlp.fc1.weight.requires_grad_(True)
    with pytest.raises(VidpipeError, match=r"vit\.blocks\.1\.mlp\.fc1\.weight is frozen and rec"):
        trainer(model).run()


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"zero_shot"}))
def test_no_frozen_weight_has_a_gradient_or_changes(name: str) -> None:
    options = {"num_layers": 2} if name == "evl" else {}
    model = make(name, **options)
    frozen = {n: p.clone() for n, p in model.named_parameters() if n not in model.trained_names}
    before = weights(model)
    trainer(model, epochs=1, warmup_epochs=0).run()
    for key, parameter in model.named_parameters():
        if key in frozen:
            assert parameter.grad is None
            assert torch.equal(parameter, frozen[key]), key
    assert any(not torch.equal(before[key], now) for key, now in weights(model).items())


def test_a_loss_that_is_not_finite_leaves_the_state_before_it(tmp_path: Path) -> None:
    model, checkpoints = make(), Checkpoints(tmp_path)
    run = trainer(model, checkpoints=checkpoints)
    at_two: dict[str, torch.Tensor] = {}

    def poison(info: Any) -> None:
        if info.step == 2:
            at_two.update(weights(model))
            run.normalisation = ((math.nan,) * 3, (0.5,) * 3)

    run.on_step = poison
    run.config = settings(eval_every=2)
    with pytest.raises(VidpipeError, match=r"^loss is nan at step 2 \(clips clip\d+, .*/failed$"):
        run.run()
    failed = make()
    progress = load_result(tmp_path / "failed", failed)
    assert progress.step == 2
    assert_near(weights(failed), at_two, 0)
    assert checkpoints.last() != tmp_path / "failed"
    assert "NaN" not in json.dumps(json.loads((tmp_path / "failed/state.json").read_text()))


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    model = make()
    run = trainer(model)
    name = "head.weight"
    run.trained[name].register_hook(lambda grad: grad / 0)
    with pytest.raises(VidpipeError, match=r"^gradient norm is (inf|nan) at step 0 \(clips"):
        run.run()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_compiled_model_trains_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really traced and differentiated, with dropout and adapters under checkpointing, as one graph.
    Inductor then writes C++, which takes minutes on two cores: it runs in `make test-long`."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    counters.clear()
    a, b = (make("zeroi2v", adapter_dropout=0.3) for _ in range(2))
    trainer(a, epochs=1).run()
    trainer(b, epochs=1, compile=True).run()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert_near(weights(a), weights(b), 1e-5)
