"""`vidpipe backbones`: costs as published, pooling as timm says, and a reason for what is refused."""

from __future__ import annotations

import json

import pytest
import timm
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.tools.list_backbones import describe, rows
from vidpipe.backbones.listing import list_backbones
from vidpipe.errors import VidpipeError


@pytest.mark.parametrize(
    ("name", "gflops", "pooling"),
    [
        ("vit_base_patch16_224", 17.6, "class token"),  # DeiT, Table 5: ViT-B/16
        ("swin_tiny_patch4_window7_224", 4.5, "mean of patches"),  # Swin, Table 1
        ("vit_base_patch16_siglip_224", 17.6, "attention (map)"),
        ("vit_base_patch16_siglip_gap_224", 17.6, "avg of patches"),
    ],
)
def test_costs_are_those_of_the_papers(name: str, gflops: float, pooling: str) -> None:
    row = describe(name)
    assert row.loads, row.reason
    assert row.size == 224
    # The attention that pools a map is one query's: a percent or two.
    assert row.gflops == pytest.approx(gflops, rel=0.03)
    assert row.pooling == pooling
    own = timm.create_model(name, num_classes=0, device="meta")
    assert row.params_m == sum(p.numel() for p in own.parameters()) / 1e6
    assert row.licence == own.pretrained_cfg["license"]


def test_what_is_refused_has_its_reason_and_comes_last() -> None:
    found = rows("davit_t*") + rows("vit_dlittle_*")
    assert found
    assert not any(row.loads for row in found)
    for row in found:
        assert row.name in str(row.reason)
        assert "nearest that works is" in str(row.reason)
    mixed = rows("vit_*little_patch16_reg1_gap_256")
    assert {row.loads for row in mixed} == {True, False}
    assert mixed == sorted(mixed, key=lambda row: not row.loads)


def test_a_name_that_no_zoo_has() -> None:
    with pytest.raises(VidpipeError, match="nosuch\\*: no model of timm or open_clip"):
        rows("nosuch*")


def test_the_command_prints_a_table_or_json() -> None:
    words = ["backbones", "*tiny_patch16_224"]
    text = CliRunner().invoke(app, words).output
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    for row in found:
        assert row["name"] in text
    loads = sum(row["loads"] for row in found)
    assert f"{loads} load, {len(found) - loads} are refused" in text


def test_what_is_listed_loads() -> None:
    """Also an image tower whose text half needs another package: from a file, that is not built."""
    found = rows("open_clip:*B*32*")
    assert {row.name for row in found if row.loads} == set(list_backbones("open_clip:*B*32*"))
    loads = {row.name: row.loads for row in found}
    assert loads["open_clip:roberta-ViT-B-32"]
    assert loads["open_clip:ViT-B-32-SigLIP2-256"]
    assert not loads["open_clip:coca_ViT-B-32"]


def test_many_refusals_are_counted_by_reason() -> None:
    text = CliRunner().invoke(app, ["backbones", "open_clip:[cR]*[N_]*"]).output
    assert "11 is a ConvNeXt, not one of timm's" in text
    assert "10 has a ModifiedResNet image tower, not a ViT" in text
