"""dvc.yaml lists what decides a result, key by key, and nothing else; DVC then runs what has to run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from project import PROJECT

from pipeline.infra.recipes import write_overlay
from vidpipe.config.identity import deciding_keys
from vidpipe.config.overlay import parse_override, read_yaml
from vidpipe.config.section import Place, Section, mark
from vidpipe.params import STAGES, Params

DVC: dict[str, Any] = {
    **read_yaml(PROJECT / "dvc.yaml")["stages"],
    **read_yaml(PROJECT / "study" / "dvc.yaml")["stages"],
}
RAW = read_yaml(PROJECT / "params.yaml")


def sections(stage: str) -> dict[str, type[Section]]:
    names = (name for name in STAGES[stage] if name != "methods")
    return {name: Params.model_fields[name].annotation for name in names}  # type: ignore[misc]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_what_decides_it_and_nothing_else(stage: str) -> None:
    expected = {
        f"{name}.{key}" for name, model in sections(stage).items() for key in deciding_keys(model)
    }
    if "methods" in STAGES[stage]:
        expected.add("methods" if stage == "study" else "methods.${item.method}")
    assert set(DVC[stage]["params"]) == expected
    assert len(DVC[stage]["params"]) == len(expected)


@pytest.mark.parametrize("stage", STAGES)
def test_every_place_that_a_stage_reads_is_a_dependency(stage: str) -> None:
    for name, model in sections(stage).items():
        for key, field in model.model_fields.items():
            if mark(field, Place):
                assert f"${{{name}.{key}}}" in DVC[stage]["deps"]


def test_params_yaml_has_every_key_that_dvc_asks_for() -> None:
    """DVC refuses to run a stage whose key is missing, also where it has a default."""
    for stage in STAGES:
        for name, model in sections(stage).items():
            assert set(deciding_keys(model)) <= set(RAW[name]), f"{name} in params.yaml"


def test_matrices_and_report_come_from_one_list() -> None:
    assert set(DVC) == set(STAGES)
    for stage in ("train", "evaluate", "export"):
        assert DVC[stage]["matrix"] == {"method": "${pipeline.methods}"}
    assert DVC["report"]["params"] == ["pipeline.methods"]
    assert set(RAW["pipeline"]["methods"]) <= set(RAW["methods"])
    text = (PROJECT / "dvc.yaml").read_text(encoding="utf-8")
    assert not [
        method for method in RAW["pipeline"]["methods"] if re.search(rf"\b{method}\b", text)
    ]


FAKE = """#!{python}
# Writes what the stage of dvc.yaml should: what is tested is what DVC runs.
import sys
from pathlib import Path
stage, method = sys.argv[1], sys.argv[-1]
outs = {{
    "synth": ["data/synth/"],
    "extract": ["data/store/", "results/extract.json"],
    "train": ["models/M/adapter/", "results/M/train.json", "results/M/history.csv"],
    "evaluate": ["models/M/evaluation/", "results/M/eval.json", "results/M/per_class.csv"],
    "export": ["models/M/package/"],
    "report": ["results/report/"],
}}
for out in outs[stage]:
    file = Path(out.replace("M", method) + ("file" if out.endswith("/") else ""))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(stage)
"""


@pytest.mark.slow
def test_dvc_runs_again_what_a_change_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, tools = tmp_path / "project", tmp_path / "tools"
    for folder in (project, tools):
        folder.mkdir()
    (tools / "vidpipe").write_text(FAKE.format(python=sys.executable))
    (tools / "vidpipe").chmod(0o755)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", RAW["backbone"]["weights"]):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, project / name)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tools), os.environ["PATH"]]))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.chdir(project)

    def repro(dry: bool = False) -> set[str]:
        """`dvc repro` in this process: the command imports for seconds, each time."""
        with Repo() as repo:
            return {stage.addressing for stage in repo.reproduce(dry=dry)}

    def after(*texts: str) -> set[str]:
        before = (project / "params.yaml").read_text()
        for text in texts:
            write_overlay(project / "params.yaml", parse_override(text))
        found = repro(dry=True)
        (project / "params.yaml").write_text(before)
        return found

    write_overlay(project / "params.yaml", parse_override("pipeline.methods=[aim]"))
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    Repo.init().close()
    everything = {"extract", "train@aim", "evaluate@aim", "export@aim", "report"}
    assert repro() == {"synth", *everything}
    free = (
        *("data.reader=decord", "data.store=file:///x", "extract.num_workers=1"),
        *("extract.timeout_s=900", "train.cache_mb=10", "train.max_bad_reads=0.5"),
        *("evaluate.batch_size=4", "tracking.experiment=other", "methods.zeroi2v.lr=1e-2"),
    )
    assert after(*free) == set()
    # A dry run names the first: whether the next run too depends on what that one makes.
    assert after("extract.crf=20") == {"extract"}
    assert after("train.seed=1") == {"train@aim"}
    assert after("methods.aim.lr=1e-2") == {"train@aim"}
    assert after("export.tolerance=1e-3") == {"export@aim"}
    write_overlay(project / "params.yaml", parse_override("pipeline.methods=[aim, zeroi2v]"))
    assert repro() == {"train@zeroi2v", "evaluate@zeroi2v", "export@zeroi2v", "report"}
    assert after("methods.zeroi2v.lr=1e-2") == {"train@zeroi2v"}
