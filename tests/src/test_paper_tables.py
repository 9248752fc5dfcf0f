"""Every cost the papers print, recomputed by building the models (on the meta device)."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from project import SHARED
from tiny import tiny_vit
from typer.testing import CliRunner

from pipeline.cli.app import app
from vidpipe.methods.registry import METHODS
from vidpipe.paper_tables import BACKBONES, _status, read_rows, recompute
from vidpipe.profile import macs_by_kind, memory, modules, parameters

FACTS = SHARED / "facts" / "paper_tables.yaml"


@pytest.mark.parametrize(
    ("backbones", "printed", "reproduced"),
    [
        (("ViT-B/16",), 101, 98),
        pytest.param(tuple(BACKBONES), 133, 129, marks=pytest.mark.long),
    ],
    ids=["vit_b", "all"],
)
def test_every_reproducible_row_is_reproduced(
    backbones: tuple[str, ...], printed: int, reproduced: int
) -> None:
    rows = list(recompute([row for row in read_rows() if row["backbone"] in backbones]))
    assert len(rows) == printed
    assert not [row for row in rows if row.status == "off"]
    assert all(row.why for row in rows if row.status == "known off")
    assert sum(row.reproduced for row in rows) == reproduced


def test_a_row_that_is_off_is_seen() -> None:
    row = next(row for row in read_rows() if row["name"] == "BitFit")
    assert next(recompute([row])).status == "exact"
    assert next(recompute([{**row, "value": 0.42}])).status == "off"
    assert next(recompute([{**row, "method": "full_finetune"}])).status == "off"


@pytest.mark.skipif(not FACTS.exists(), reason="../shared is not here")
def test_the_numbers_are_the_papers() -> None:
    theirs = yaml.safe_load(FACTS.read_text())["checkable_without_data_or_weights"]
    assert [(r["paper"], r["table"], r["value"]) for r in read_rows()] == [
        (r["paper"], r["table"], r["value"]) for r in theirs
    ]


@pytest.mark.parametrize(
    ("printed", "ours", "whole", "status"),
    [
        (455, 455.33, 455.33, "exact"),
        (7.42, 7.4177, 0, "exact"),
        (21, 21.58, 0, "truncated"),
        (20, 21.3, 0, "off"),
        (2428, 2433.4, 2433.4, "within 0.5 %"),
        (2428, 2443.4, 2443.4, "off"),
    ],
)
def test_status(printed: float, ours: float, whole: float, status: str) -> None:
    assert _status(printed, None, ours, whole) == status


def test_macs_of_an_image_model_against_a_closed_form() -> None:
    """ViT: patches, 4 D^2 + 2 N D an attention token, 8 D^2 an MLP token; 5 a LayerNorm element."""
    vit = tiny_vit()
    n, d = 17, 48
    products, norms = macs_by_kind(vit, 32, num_frames=0)
    assert products == 16 * 3 * 64 * d + 3 * n * (12 * d * d + 2 * n * d)
    assert norms == 5 * n * d * 7


def test_modules_add_up() -> None:
    model = METHODS["aim"](tiny_vit(), 7, 4, METHODS["aim"].Config())
    rows = modules(model)
    assert sum(row.total for row in rows) == parameters(model)
    assert sum(row.tunable for row in rows) == sum(
        t.numel() for t in model.adapter_state().values()
    )


def test_activation_memory_is_what_autograd_keeps() -> None:
    """Nothing below a linear probe; more clips' worth for AIM than for BitFit's biases alone."""
    need = {
        name: memory(METHODS[name](tiny_vit(), 7, 4, METHODS[name].Config()), 32)
        for name in ("linear_probe", "bitfit", "aim")
    }
    assert need["linear_probe"].activations_per_clip <= 4 * 4 * 48
    assert need["linear_probe"].activations_per_clip < need["bitfit"].activations_per_clip
    assert need["bitfit"].activations_per_clip < need["aim"].activations_per_clip
    assert need["aim"].weights == 4 * parameters(
        METHODS["aim"](tiny_vit(), 7, 4, METHODS["aim"].Config())
    )


def test_profile_command_prints_json_without_weights() -> None:
    result = CliRunner().invoke(
        app,
        [
            *("profile", "--method", "st_adapter", "--json"),
            *("--set", "backbone.name=vit_base_patch16_clip_quickgelu_224"),
            *("--set", "backbone.weights=nowhere.safetensors", "--set", "transform.size=224"),
        ],
    )
    assert result.exit_code == 0, result.output
    card = json.loads(result.output)
    assert card["parameters"]["tunable"] == 7417744
    assert round(card["gflops_all_views"]) == 455
    assert card["views"] == 3
    assert sum(row["total"] for row in card["modules"]) == card["parameters"]["total"]
    assert torch.get_default_device().type == "cpu"
