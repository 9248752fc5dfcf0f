"""A project on an Eva and on a model without biases: plan, train, evaluate, export, predict, explain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clips import moving
from families import size_of, tiny_of
from safetensors.torch import save_file
from small_store import small_project
from typer.testing import CliRunner
from videos import write_video

from pipeline.cli.app import app


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "method", "pool"),
    [
        ("dinov3", "zeroi2v", "token"),
        ("swiglu", "zeroi2v", "zoo"),
        ("pe_core", "aim", "zoo"),
    ],
)
def test_every_command_on_another_family(
    family: str, method: str, pool: str, in_folder: Path
) -> None:
    small_project(in_folder, 10, epochs=2, num_workers=0)
    save_file(tiny_of(family).state_dict(), in_folder / "weights.safetensors")
    own = {
        "backbone.name": f"tiny_{family}",
        "backbone.weights": "weights.safetensors",
        "backbone.pool": pool,
        "transform.size": size_of(family),
        "evaluate.reversed_pairs": "[]",
    }
    values = [word for key, value in own.items() for word in ("--set", f"{key}={value}")]

    def call(command: str, *words: str) -> str:
        result = CliRunner().invoke(app, [command, *words])
        assert result.exit_code == 0, f"{command}: {result.exception!r} {result.output[-2000:]}"
        return result.stdout

    of = ("--method", method, *values)
    assert "a step" in call("train", *of, "--dry-run")
    call("train", *of)
    call("evaluate", *of)
    call("export", *of)
    package = in_folder / "models" / method / "package"
    card = json.loads((package / "config.json").read_text())
    assert card["backbone"].get("pool", "zoo") == pool
    assert card["merged"] == (method == "zeroi2v")
    parities = json.loads((package / "parity.json").read_text())
    assert {p["format"] for p in parities} >= {"safetensors", "torch_export"}
    assert all(p["top1_agreement"] == 1 for p in parities)
    call("explain", *of, "--clips", "1", "--split", "train")
    write_video(in_folder / "one.mp4", moving(12))
    answer = call("predict", "one.mp4", "--model", str(package), "--format", "jsonl")
    assert json.loads(answer.splitlines()[0])["status"] == "ok", answer
