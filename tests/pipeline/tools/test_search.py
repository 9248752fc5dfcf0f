"""`vidpipe tune`: spaces are read and refused as text; real trials of Ray Tune on a tiny store."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from project import PROJECT
from small_store import small_project

from pipeline.infra import search_space
from pipeline.infra.search_space import (
    Domain,
    as_text,
    check_space,
    checked_texts,
    default_space,
    overrides,
    parse_space,
    resolve,
)
from vidpipe.config.overlay import parse_override, read_yaml
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS
from vidpipe.params import load_params

RAW = read_yaml(PROJECT / "params.yaml")

# -- the space as text ----------------------------------------------------------------------------

scalars = st.one_of(
    st.integers(-1000, 1000),
    st.booleans(),
    st.none(),
    st.floats(-1e6, 1e6),
    st.text(st.characters(codec="ascii"), max_size=6),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner),
    max_leaves=6,
)


def as_flow(chosen: list[Any]) -> str:
    """As a choice is written: in flow style `?0` needs its quotes, alone on a line it does not."""
    return yaml.safe_dump(chosen, default_flow_style=True, width=10**6).strip()[1:-1]


@example(["?0", "0?", "a, b", "]"])
@given(st.lists(values, min_size=1, max_size=4))
def test_a_choice_means_its_yaml_values_whatever_they_hold(chosen: list[Any]) -> None:
    text = f"train.x=choice({as_flow(chosen)})"
    domain = parse_space([text])["train.x"]
    read = [parse_override(f"train.x={choice}")["train"]["x"] for choice in domain.choices]
    assert read == chosen
    assert not any("\n" in choice for choice in domain.choices)


@given(st.text(max_size=40))
def test_any_text_is_a_space_or_one_line(text: str) -> None:
    for candidate in (text, f"train.x={text}", f"train.x=choice({text})", f"a=uniform({text})"):
        with suppress(VidpipeError):
            space = parse_space([candidate])
            assert all(isinstance(domain, Domain) for domain in space.values())


@given(st.floats(1e-9, 1e9), st.floats(1.001, 1e6), st.sampled_from(["uniform", "loguniform"]))
def test_a_range_keeps_its_ends(low: float, times: float, kind: str) -> None:
    domain = parse_space([f"a.b={kind}({low!r}, {low * times!r})"])["a.b"]
    assert (domain.kind, domain.low, domain.high) == (kind, low, low * times)
    assert [float(p) for p in domain.probes()] == pytest.approx([low, low * times], rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods.aim.lr", "expected key=domain"),
        ("methods..lr=uniform(0,1)", "expected key=domain"),
        ("a.b=0.1", "expected one of choice("),
        ("a.b=logunifrom(1,2)", "nearest is loguniform"),
        ("a.b=__import__(1,2)", "no such domain: __import__"),
        ("a.b=uniform(2,1)", "smaller number first"),
        ("a.b=uniform(1,inf)", "both finite"),
        ("a.b=uniform(nan,1)", "both finite"),
        ("a.b=uniform(1,2,3)", "expected two numbers"),
        ("a.b=uniform(__import__('os'),1)", "expected two numbers"),
        ("a.b=loguniform(0,1)", "above 0"),
        ("a.b=randint(0,1.5)", "whole numbers"),
        ("a.b=choice()", "nothing to choose from"),
        ("a.b=choice(!!python/object/apply:os.getcwd [])", "not valid YAML"),
        ("a.b=choice([1)", "not valid YAML"),
    ],
)
def test_a_wrong_space_is_one_line(text: str, message: str) -> None:
    with pytest.raises(VidpipeError) as error:
        parse_space([text])
    assert message in str(error.value)
    assert text in str(error.value)


def test_a_key_is_given_once() -> None:
    with pytest.raises(VidpipeError, match="is given twice"):
        parse_space(["a.b=uniform(0,1)", "a.b=uniform(0,2)"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods.st_adapter.bottleneck_ration=uniform(0.1,1)", "nearest is bottleneck_ratio"),
        ("methods.st_adaptor.lr=uniform(0.1,1)", "nearest is st_adapter"),
        ("trian.batch_size=choice(4,8)", "nearest is train"),
        ("methods.st_adapter.lr=choice(fast,slow)", "fast"),
        ("methods.aim.lr=uniform(0.1,1)", "does not change the training of st_adapter"),
        ("export.parity_clips=choice(4,8)", "does not change the training of st_adapter"),
        ("train.epochs=choice(4,8)", "sets how long a trial is"),
        ("train.seed=choice(4,8)", "luck"),
        ("train.cache_mb=choice(4,8)", "does not change the training of st_adapter"),
    ],
)
def test_keys_that_cannot_be_searched_are_refused_before_anything_starts(
    text: str, message: str
) -> None:
    with pytest.raises(VidpipeError, match=message):
        check_space(parse_space([text]), RAW, "st_adapter")


def test_a_value_that_is_wrong_among_good_ones_is_only_said() -> None:
    space = parse_space(["methods.st_adapter.kernel_size=choice([3,1,1],[2,1,1],[3,3,3])"])
    warnings = check_space(space, RAW, "st_adapter")
    assert len(warnings) == 1
    assert "odd" in warnings[0]


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"zero_shot"}))
def test_every_method_has_a_space_of_possible_values(method: str) -> None:
    texts = default_space(method)
    assert any(text.startswith(f"methods.{method}.lr=") for text in texts)
    assert check_space(parse_space(texts), RAW, method) == []


def test_a_trial_keeps_the_share_of_the_warm_up_and_says_what_it_trained() -> None:
    sampled = {"methods.st_adapter.lr": 0.00123456, "methods.st_adapter.positions": "[before_mlp]"}
    sets = overrides(sampled)
    assert sets == ["methods.st_adapter.lr=0.001235", "methods.st_adapter.positions=[before_mlp]"]
    params = resolve(RAW, sets, epochs=5)
    assert params.methods["st_adapter"].lr == 0.001235
    assert params.train.epochs == 5
    assert params.train.warmup_epochs == 0.5
    assert (params.train.eval_every, params.train.num_workers) == (1, 0)
    assert as_text(1e-5) == "1e-05"
    assert resolve(RAW, ["methods.st_adapter.lr=1e-05"]).methods["st_adapter"].lr == 1e-5


# -- real trials ----------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml, a store of ten clips and the embedded backbone."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    small_project(tmp_path)
    return tmp_path


TUNE = (
    *("tune", "--method", "st_adapter", "--max-epochs", "2", "--trials", "4"),
    *("--space", "methods.st_adapter.lr=loguniform(1e-4,1e-2)"),
    # No ViT of this size has block 7: a trial that draws it fails, the others do not.
    *("--space", "methods.st_adapter.blocks=choice([0],[7])"),
)


COMMAND = (sys.executable, "-m", "pipeline.cli.app")


def vidpipe(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *words], cwd=folder, capture_output=True, text=True, env=os.environ | env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def runs(folder: Path) -> tuple[Any, list[Any], Any]:
    """(the search's run, its trials' by number, the client)."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("vidpipe").experiment_id])
    (parent,) = [run for run in found if run.data.tags["vidpipe.stage"] == "tune"]
    nested = [run for run in found if run.data.tags["vidpipe.stage"] == "trial"]
    assert len(found) == 1 + len(nested)
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    return parent, sorted(nested, key=lambda run: int(run.data.tags["vidpipe.trial"])), client


@pytest.mark.long
def test_a_search_leaves_a_table_nested_runs_and_a_command(project: Path) -> None:
    done = vidpipe(project, *TUNE)
    table = pd.read_csv(project / "results" / "tune" / "st_adapter.csv")
    key = "methods.st_adapter.blocks"
    assert len(table) == 4
    failed = table.state.str.startswith("failed")
    assert set(table[key]) == {"[0]", "[7]"}, "the seed draws both"
    assert (failed == (table[key] == "[7]")).all()
    assert "blocks" in table.state[failed].iloc[0]
    assert (table.epochs[failed] == 0).all()
    good = table[~failed]
    assert set(good.state) <= {"finished", "stopped early"}
    assert good.val_top1.between(0, 1).all()
    best = good.sort_values(["val_top1", "val_loss"], ascending=[False, True]).iloc[0]

    # What is printed is a command, and it writes the best trial's values.
    command = shlex.split(done.stdout.strip())
    assert command[:3] == ["vidpipe", "params", "--write"]
    vidpipe(project, *command[1:])
    block = load_params(project / "params.yaml").methods["st_adapter"]
    assert block.lr == pytest.approx(best["methods.st_adapter.lr"])
    assert block.model_dump()["blocks"] == (0,)

    parent, nested, client = runs(project)
    assert parent.info.status == "FINISHED"
    assert [run.info.status for run in nested] == [
        "FAILED" if f else "FINISHED" for f in failed.tolist()
    ]
    for run, row in zip(nested, table.to_dict("records"), strict=True):
        assert run.data.params["methods.st_adapter.lr"] == as_text(row["methods.st_adapter.lr"])
        curve = client.get_metric_history(run.info.run_id, "val_top1")
        assert [metric.step for metric in curve] == list(range(1, row["epochs"] + 1))

    # Nothing else: no model, no result of a training, no state.
    left = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    left = {path for path in left if not path.startswith(("data/", "mlflow.db"))}
    assert left == {"params.yaml", "results/tune/st_adapter.csv"}


@pytest.mark.long
def test_a_trial_trains_as_the_train_stage_does(project: Path) -> None:
    """The same numbers, so that the printed command leads to what the table promised."""
    vidpipe(
        project,
        *("tune", "--method", "st_adapter", "--trials", "1", "--set", "train.epochs=2"),
        *("--set", "train.warmup_epochs=1", "--space", "methods.st_adapter.lr=choice(2e-3)"),
    )
    vidpipe(
        project,
        *("train", "--method", "st_adapter", "--set", "methods.st_adapter.lr=2e-3"),
        *("--set", "train.epochs=2", "--set", "train.warmup_epochs=1"),
        *("--set", "train.eval_every=1"),
    )
    row = pd.read_csv(project / "results" / "tune" / "st_adapter.csv").iloc[0]
    last = pd.read_csv(project / "results" / "st_adapter" / "history.csv").iloc[-1]
    assert (row.val_top1, row.val_loss) == (last.val_top1, last.val_loss)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_search_goes_on(project: Path, how: signal.Signals) -> None:
    often = {"TUNE_GLOBAL_CHECKPOINT_S": "0"}  # after every event, not every ten seconds
    vidpipe(project, *TUNE, **often)
    table = project / "results" / "tune" / "st_adapter.csv"
    expected = table.read_bytes()
    table.unlink()
    for file in project.glob("mlflow.db*"):
        file.unlink()

    first = subprocess.Popen(
        [*COMMAND, *TUNE],
        cwd=project,
        env=os.environ | often,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    line = ""
    assert first.stderr is not None
    while not line.startswith("trial 2"):
        line = first.stderr.readline()
        assert line, "ended before its second trial did"
    time.sleep(1)  # into the third
    os.killpg(first.pid, how)
    first.wait()
    assert not table.exists()
    err = vidpipe(project, *TUNE, **often).stderr
    assert "going on with the search" in err
    assert "trial 1 " not in err.split("st_adapter: 4 trials")[0], "it is not trained again"
    assert table.read_bytes() == expected
    parent, nested, client = runs(project)
    assert parent.info.status == "FINISHED"
    assert len(nested) == 4
    assert {run.info.status for run in nested} <= {"FINISHED", "FAILED"}
    for run in nested:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val_top1")]
        assert steps == sorted(set(steps))


@pytest.mark.long
def test_optuna_searches_the_same_twice(project: Path) -> None:
    words = (*TUNE[:4], "1", "--trials", "3", "--space", "methods.st_adapter.lr=uniform(1e-4,1e-2)")
    tables = []
    for _ in range(2):
        vidpipe(project, *words, "--search", "optuna")
        tables.append((project / "results" / "tune" / "st_adapter.csv").read_bytes())
    assert tables[0] == tables[1]
    assert tables[0].count(b"finished") == 3


def test_optuna_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_space, "find_spec", lambda name: None)
    with pytest.raises(VidpipeError, match="optuna is not installed"):
        checked_texts(RAW, "aim", [], "optuna")
