"""The loop, the checkpoint and the package, on tiny real clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_clips import HALF, SIZE, Moving, T
from safetensors.torch import load_file, save_file
from shallow import NAME
from tiny import randomise, tiny_vit

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import architecture, load_backbone
from vidpipe.data.batches import shard_order
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.export.packaging import inference_model, save_package
from vidpipe.export.parity import prove_parity
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.trained.adapter import load_adapter, save_adapter
from vidpipe.trained.package import open_model
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.training.config import TrainConfig
from vidpipe.training.loop import Trainer
from vidpipe.training.optim import lr_factor


def train(name: str = "st_adapter", **config: object):
    torch.manual_seed(0)
    options = {"lr": 1e-2, "head_dropout": 0.0, **({"drop_path": 0.0} if name == "aim" else {})}
    vit = tiny_vit()
    model = build_method(name, vit, 2, T, METHODS[name].Config.model_validate(options))
    settings = {"epochs": 10, "batch_size": 8, "warmup_epochs": 1, "threads": 1, **config}
    history = Trainer(
        model, Moving(32, False), Moving(16, True), TrainConfig.model_validate(settings), HALF
    ).run()
    return model, history


@pytest.mark.parametrize("name", ["st_adapter", "aim", "zeroi2v"])
def test_learns_the_direction_of_time(name: str) -> None:
    _, history = train(name)
    assert history[-1].train_loss < 0.5 * history[0].train_loss
    assert history[-1].val_top1 == 1.0


def test_linear_probe_cannot_learn_it() -> None:
    _, history = train("linear_probe")
    assert history[-1].val_top1 == 0.5


def test_the_same_seed_gives_the_same_weights_and_history() -> None:
    torch.set_num_threads(1)
    (a, first), (b, second) = train(epochs=2), train(epochs=2)
    assert first == second
    for name, tensor in a.adapter_state().items():
        assert torch.equal(tensor, b.adapter_state()[name]), name


def test_a_loss_that_is_not_finite_names_step_and_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vidpipe.data.model_input.to_input",
        lambda v, *_: v.float().transpose(1, 2) * torch.nan,
    )
    with pytest.raises(VidpipeError, match=r"loss is nan at step 0 \(clips clip\d+, "):
        train(epochs=2)


def test_unreadable_clips_beyond_the_allowed_end_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Moving.__getitem__

    def third_is_bad(self: Moving, key: object) -> dict:
        item = original(self, key)
        return {**item, "replaced": item["index"] % 3 == 0}  # 11 of 32

    monkeypatch.setattr(Moving, "__getitem__", third_is_bad)
    train("linear_probe", epochs=2, max_bad_reads=0.35)  # each epoch counts anew
    with pytest.raises(
        VidpipeError, match=r"^1[01] of an epoch's 32 clips could not be read \(clip"
    ):
        train("linear_probe", epochs=2, max_bad_reads=0.3)


def test_shuffle_shards_reads_in_the_order_of_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = np.arange(32) // 2
    seen = []
    original = Moving.__getitem__

    def watched(self: Moving, key: object) -> dict:
        if isinstance(key, tuple):
            seen.append(key[1])
        return original(self, key)

    monkeypatch.setattr(Moving, "__getitem__", watched)
    train("linear_probe", epochs=2, shuffle="shards")
    assert seen == [*shard_order(shards, 0, 0), *shard_order(shards, 0, 1)]


def test_schedule_warms_up_and_ends_at_zero() -> None:
    factors = [lr_factor(step, 10, 100) for step in range(100)]
    assert max(factors) == pytest.approx(1.0)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 1e-3
    assert lr_factor(0, 0, 1) == 1.0
    assert lr_factor(0, 10, 100) == 0
    assert lr_factor(5, 10, 100, start=0.1) == pytest.approx(0.55)


def test_the_schedules_are_those_of_the_codes_schedulers() -> None:
    """ST-Adapter's LambdaLR by its own formula; ZeroI2V's by torch's LinearLR and CosineAnnealingLR."""
    each, epochs, warm = 8, 6, 2.5
    ours = [lr_factor(s, 2 * each, epochs * each) for s in range(epochs * each)]
    for step, factor in enumerate(ours):
        at = step / each
        theirs = at / 2 if at < 2 else 0.5 + 0.5 * np.cos((at - 2) / (epochs - 2) * np.pi)
        assert factor == pytest.approx(theirs)

    options = {"start": 0.1, "epoch": each}
    ours = [lr_factor(s, warm * each, epochs * each, **options) for s in range(epochs * each)]
    rates = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(rates, T_max=epochs)
    linear = torch.optim.lr_scheduler.LinearLR(
        rates, start_factor=0.1, total_iters=int(warm * each)
    )
    for step, factor in enumerate(ours):
        assert factor == pytest.approx(rates.param_groups[0]["lr"], rel=1e-6)
        rates.step()
        linear.step()
        if (step + 1) % each == 0:
            cosine.step()


def test_decay_spares_biases() -> None:
    model, _ = train("st_adapter", epochs=2)
    decayed, spared = model.parameter_groups()
    assert all(p.ndim > 1 for p in decayed["params"])
    assert spared["weight_decay"] == 0
    counted = sum(p.numel() for group in (decayed, spared) for p in group["params"])
    assert counted == sum(t.numel() for t in model.adapter_state().values())


# -- checkpoint and package ---------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    config = BackboneConfig(name=NAME, weights="none")
    vit = architecture(config, SIZE)
    randomise(vit)
    save_file(vit.state_dict(), path)
    return path


def trained_model(weights: Path, name: str) -> TrainedModel:
    backbone = load_backbone(BackboneConfig(name=NAME, weights=str(weights)), SIZE)
    model = build_method(name, backbone.vit, 2, T, METHODS[name].Config())
    for tensor in model.adapter_state().values():
        tensor += 0.05 * torch.randn_like(tensor)
    sampling = SamplingConfig(strategy="uniform", num_frames=T)
    transform = TransformConfig(size=SIZE)
    return TrainedModel(model.eval(), backbone, ["left", "right"], sampling, transform)


def clips(count: int = 3) -> list[torch.Tensor]:
    return [torch.randn(1, 3, T, SIZE, SIZE) for _ in range(count)]


@pytest.mark.parametrize("name", list(METHODS))
def test_checkpoint_holds_the_adapter_only_and_rebuilds_the_model(
    tmp_path: Path, weights: Path, name: str
) -> None:
    trained = trained_model(weights, name)
    save_adapter(tmp_path / "adapter", trained, {"epoch": 1})
    stored = load_file(tmp_path / "adapter" / "adapter.safetensors")
    assert set(stored) == set(trained.model.adapter_state())
    again = load_adapter(tmp_path / "adapter")
    x = clips(1)[0]
    assert torch.equal(again.model(x), trained.model(x))
    assert again.classes == ["left", "right"]
    assert not list(tmp_path.glob(".*"))  # no temporary folder is left


@pytest.mark.parametrize("name", list(METHODS))
def test_package_needs_no_other_file_and_is_proven(
    tmp_path: Path, weights: Path, name: str
) -> None:
    trained = trained_model(weights, name)
    exported = inference_model(trained.model)
    parity = prove_parity(trained.model, exported, clips(), 1e-4)
    save_package(tmp_path / "package", trained, exported, parity)
    weights.unlink()
    loaded = open_model(tmp_path / "package")
    for x in clips():
        torch.testing.assert_close(loaded.model(x), trained.model(x), atol=1e-4, rtol=1e-4)
    assert loaded.classes == ["left", "right"]
    assert loaded.backbone.card() == trained.backbone.card()
    if name == "zeroi2v":
        names = load_file(tmp_path / "package" / "model.safetensors")
        assert not [n for n in names if "adapter" in n]
        assert {n for n in names if not n.startswith("vit.")} == {
            "head.weight",
            "head.bias",
            "temporal_embedding.weight",
        }


def test_adapters_share_one_backbone_and_keep_what_they_trained(
    tmp_path: Path, weights: Path
) -> None:
    names = ("aim", "zeroi2v", "bitfit", "st_adapter", "aim")
    alone = []
    for index, name in enumerate(names):
        trained = trained_model(weights, name)
        with torch.no_grad():
            for parameter in trained.model.adapter_state().values():
                parameter += 0.01 * (index + 1) * torch.randn_like(parameter)
        save_adapter(tmp_path / str(index), trained, {})
        alone.append(trained.model)
    backbone = load_backbone(BackboneConfig(name=NAME, weights=str(weights)), SIZE)
    shared = [open_model(tmp_path / str(i), backbone=backbone).model for i in range(len(names))]
    x = clips(1)[0]
    for own, model in zip(alone, shared, strict=True):
        assert torch.equal(own(x), model(x))
    first = backbone.vit.blocks[0].attn.qkv.weight
    assert all(model.vit.blocks[0].attn.qkv.weight is first for model in shared)
    other = load_backbone(BackboneConfig(name=NAME, weights=str(weights)), SIZE * 2)
    with pytest.raises(VidpipeError, match=r"made for \d+ px, but the backbone it should share"):
        open_model(tmp_path / "0", backbone=other)


def test_a_wrong_export_is_refused(weights: Path) -> None:
    trained = trained_model(weights, "zeroi2v")
    exported = inference_model(trained.model)
    with torch.no_grad():
        exported.vit.blocks[1].mlp.fc2.bias[:20] += 0.05
    with pytest.raises(
        VidpipeError, match=r"exported zeroi2v model differs .* nothing was exported"
    ):
        prove_parity(trained.model, exported, clips(), 1e-4)


def test_an_adapter_of_another_backbone_is_refused(tmp_path: Path, weights: Path) -> None:
    save_adapter(tmp_path / "adapter", trained_model(weights, "aim"), {})
    state = load_file(weights)
    state["cls_token"] += 1
    other = tmp_path / "other.safetensors"
    save_file(state, other)
    with pytest.raises(
        VidpipeError, match=r"trained on weights \w{12}, but .*other.safetensors has"
    ):
        load_adapter(tmp_path / "adapter", str(other))


def test_damaged_checkpoints_are_one_line_errors(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(folder, trained_model(weights, "aim"), {})
    tensors, config = folder / "adapter.safetensors", folder / "config.json"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VidpipeError, match="not a readable safetensors file"):
        load_adapter(folder)
    tensors.write_bytes(whole)
    card = json.loads(config.read_text())
    config.write_text(json.dumps({**card, "version": 99}))
    with pytest.raises(VidpipeError, match="version 99, expected"):
        load_adapter(folder)
    config.write_text(json.dumps({k: v for k, v in card.items() if k != "classes"}))
    with pytest.raises(VidpipeError, match="not a complete description of a model"):
        load_adapter(folder)
    config.write_text("{")
    with pytest.raises(VidpipeError, match="not valid JSON"):
        load_adapter(folder)
