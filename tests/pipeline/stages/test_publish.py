"""Which epoch's weights are published, and what then says so: the adapter, the results, the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_store import small_project
from typer.testing import CliRunner

from pipeline.cli.app import app
from vidpipe.files import read_json
from vidpipe.methods.base import VideoModel
from vidpipe.training.optim import trained_parameters
from vidpipe.training.validate import Validation, validate

TOP1 = [0.25, 0.75, 0.75, 0.5]


@pytest.mark.parametrize(("publish", "epoch"), [(None, 4), ("last", 4), ("best", 2)])
def test_the_epoch_that_is_published(
    publish: str | None, epoch: int, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_project(in_folder, epochs=4, ema_decay=0.5, **{"publish": publish} if publish else {})
    seen: list[dict[str, torch.Tensor]] = []

    def validate(model: VideoModel, *rest: Any) -> Validation:
        seen.append({n: p.detach().clone() for n, p in trained_parameters(model).items()})
        return Validation(2.0 - TOP1[len(seen) - 1], TOP1[len(seen) - 1])

    monkeypatch.setattr("vidpipe.training.loop.validate", validate)
    done = CliRunner().invoke(app, ["train", "--method", "linear_probe"])
    assert done.exit_code == 0, repr(done.exception)
    # The weights that were validated at its end: the average's, with ema_decay.
    adapter = in_folder / "models/linear_probe/adapter"
    published = load_file(adapter / "adapter.safetensors")
    assert all(torch.equal(published[name], seen[epoch - 1][name]) for name in published)
    assert not torch.equal(seen[1]["head.weight"], seen[3]["head.weight"])
    training = read_json(adapter / "config.json")["training"]
    assert training["epoch"] == epoch
    assert training["train"]["publish"] == (publish or "last")
    assert training.get("val_top1") == (0.75 if publish == "best" else None)
    # train.json is of what was published; the curves are of all epochs.
    results = in_folder / "results/linear_probe"
    assert read_json(results / "train.json")["val_top1"] == TOP1[epoch - 1]
    assert len((results / "history.csv").read_text().splitlines()) == 1 + 4


def test_the_best_epoch_of_several_labels_is_that_of_their_score(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their top-1 is highest in another epoch."""
    small_project(in_folder, epochs=3, task="multilabel", publish="best")
    scores = iter([0.25, 0.75, 0.5])
    found: list[Validation] = []

    def validation(*args: Any, **kwargs: Any) -> Validation:
        found.append(validate(*args, **kwargs))
        return Validation(1.0, 0.9 - 0.2 * len(found), next(scores))

    monkeypatch.setattr("vidpipe.training.loop.validate", validation)
    for stage in ("train", "export"):
        done = CliRunner().invoke(app, [stage, "--method", "linear_probe"])
        assert done.exit_code == 0, repr(done.exception)
    training = read_json(in_folder / "models/linear_probe/adapter/config.json")["training"]
    assert (training["epoch"], training["val_score"]) == (2, 0.75)
    assert read_json(in_folder / "results/linear_probe/train.json")["val_score"] == 0.75
    card = (in_folder / "models/linear_probe/package/MODEL_CARD.md").read_text()
    assert "published: epoch 2, chosen for the highest validation score (75.0 % mAP of one" in card
    assert all(seen.score is not None and 0 < seen.score <= 1 for seen in found)


def test_the_card_says_that_an_epoch_was_chosen(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_project(in_folder, epochs=2, publish="best")
    top1 = iter([0.75, 0.5])
    monkeypatch.setattr("vidpipe.training.loop.validate", lambda *a: Validation(1.25, next(top1)))
    for stage in ("train", "export"):
        done = CliRunner().invoke(app, [stage, "--method", "linear_probe"])
        assert done.exit_code == 0, repr(done.exception)
    card = (in_folder / "models/linear_probe/package/MODEL_CARD.md").read_text()
    assert (
        "published: epoch 1, chosen for the highest validation accuracy (75.0 % top-1 of one centre "
        "view, loss 1.25)" in card
    )
