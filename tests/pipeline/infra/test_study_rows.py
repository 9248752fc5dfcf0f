"""Rows of a study, and the settings that are tried for each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project import PROJECT

from pipeline.infra.recipes import list_studies, read_recipe
from pipeline.infra.search_space import parse_space
from pipeline.infra.study.rows import (
    Row,
    check_spaces,
    draw_settings,
    row_space,
    study_rows,
    trial_counts,
)
from vidpipe.config.overlay import deep_merge, read_yaml
from vidpipe.errors import VidpipeError
from vidpipe.params import Params, parse_params

RAW = read_yaml(PROJECT / "params.yaml")


def study(**values: Any) -> tuple[Params, dict[str, Any]]:
    raw = deep_merge(RAW, {"study": values})
    return parse_params(raw), raw


def test_without_rows_the_methods_of_the_pipeline_are_compared() -> None:
    assert [row.name for row in study_rows(*study())] == RAW["pipeline"]["methods"]
    assert study_rows(*study(methods=["lora"])) == [Row("lora", "lora")]


def test_rows_times_a_grid() -> None:
    rows = study_rows(
        *study(
            rows={"spatial only": {"method": "aim", "temporal": False}, "aim": {}},
            grid={"bottleneck_ratio": [0.125, 0.25], "train.batch_size": [8]},
        )
    )
    assert rows[0] == Row(
        "spatial only bottleneck_ratio=0.125 batch_size=8",
        "aim",
        ("methods.aim.temporal=false", "methods.aim.bottleneck_ratio=0.125", "train.batch_size=8"),
    )
    assert [row.name for row in rows[2:]] == [
        "aim bottleneck_ratio=0.125 batch_size=8",
        "aim bottleneck_ratio=0.25 batch_size=8",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rows": {"x": {"method": "aimm"}}},
            "study.rows.x.method: aimm: no such method",
        ),
        ({"methods": ["st_adaptor"]}, "nearest is st_adapter"),
        ({"rows": {"aim": {"bottleneck": 1}}}, "row 'aim': methods.aim.bottleneck: unknown key"),
        ({"rows": {"aim": {}}, "methods": ["aim"]}, "not both"),
        ({"methods": ["aim", "aim"]}, "'aim' is there twice"),
        ({"methods": ["aim"], "grid": {"lr": []}}, "nothing"),
        ({"methods": ["aim"], "grid": {"train.seed": list(range(600))}}, "600 rows"),
    ],
)
def test_a_row_that_cannot_be_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(VidpipeError, match=message):
        study_rows(*study(**values))


def test_a_space_is_the_methods_own_less_what_the_row_sets() -> None:
    params, raw = study(
        rows={"aim": {"drop_path": 0}, "other": {"method": "aim"}},
        spaces={"other": {"lr": "uniform(1e-4,1e-3)"}},
    )
    first, other = study_rows(params, raw)
    own = row_space(first, params, raw)
    assert "methods.aim.lr" in own
    assert "methods.aim.drop_path" not in own
    assert list(row_space(other, params, raw)) == ["methods.aim.lr"]
    with pytest.raises(
        VidpipeError, match=r"study.spaces.aims: no such row or method here; nearest is aim"
    ):
        check_spaces(study(spaces={"aims": {}})[0], [first])


SPACE = parse_space(
    ["a.lr=loguniform(1e-4,1e-1)", "a.n=randint(2,6)", "a.p=uniform(0,1)", "a.c=choice([1],[2, 3])"]
)


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20))
def test_fewer_settings_are_the_first_of_more_and_all_lie_in_the_space(
    seed: int, few: int, many: int
) -> None:
    few, many = sorted((few, many))
    found = draw_settings(SPACE, many, seed)
    assert found[:few] == draw_settings(SPACE, few, seed)
    assert found[0] == ()
    for setting in found[1:]:
        values = dict(text.split("=", 1) for text in setting)
        assert 1e-4 <= float(values["a.lr"]) <= 1e-1
        assert values["a.n"] in "2345"
        assert 0 <= float(values["a.p"]) <= 1
        assert values["a.c"] in ("[1]", "[2, 3]")


@pytest.mark.parametrize("name", [name for name, _ in list_studies()])
def test_every_study_that_comes_along_is_possible(name: str) -> None:
    raw = deep_merge(RAW, read_recipe(name))
    params = parse_params(raw)
    rows = study_rows(params, raw)
    check_spaces(params, rows)
    one_rate = name == "studies/demo_offsets"  # which compares designs
    for row in rows if params.study.trials > 1 and not one_rate else ():  # else nothing is tuned
        assert any(key.endswith(".lr") for key in row_space(row, params, raw))
    assert params.study.reference in [row.name for row in rows]
    assert params.study.name == name.rpartition("/")[2]


def test_eight_rates_cover_the_decades() -> None:
    """Of 8 independent draws, one of three decades is empty in 12 % of the cases (3 (2/3)**8)."""
    for seed in range(30):
        rates = [
            float(s[0].split("=")[1])
            for s in draw_settings(parse_space(["a.lr=loguniform(1e-4,1e-1)"]), 9, seed)[1:]
        ]
        assert {int(rate * 1e4 >= 10) + int(rate * 1e4 >= 100) for rate in rates} == {0, 1, 2}


def test_equal_compute_gives_cheap_rows_more_trials() -> None:
    assert trial_counts(4, "trials", [1.0, 8.0, 2.0]) == [4, 4, 4]
    assert trial_counts(4, "compute", [1.0, 8.0, 2.0]) == [32, 4, 16]
    assert trial_counts(4, "compute", [0.01, 8.0, 0.0]) == [40, 4, 4]  # a bound, and no model
