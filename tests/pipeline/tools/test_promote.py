"""The champion changes by evidence: real exports, a real store, evaluations on the same clips or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from small_store import small_project
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.infra.mlflow.server import server_at
from pipeline.infra.workspace import Workspace, clips_hash, folder_hash
from pipeline.stages import evaluate, export
from pipeline.tools.promote import promote, roll_back
from vidpipe.errors import VidpipeError
from vidpipe.files import read_json, write_json
from vidpipe.new_model import new_model
from vidpipe.params import Params, TrackingConfig, load_params
from vidpipe.trained.adapter import save_adapter

METHOD, MODEL, CLIPS = "linear_probe", "vidpipe-linear_probe", 40


@pytest.fixture
def registry(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Params, Callable[..., str]]]:
    """Parameters of a folder with a store, and a way to register a version with an evaluation."""
    server_at.cache_clear()
    small_project(in_folder)
    uri = f"sqlite:///{in_folder}/mlflow.db"
    params = load_params(in_folder / "params.yaml").model_copy(
        update={"tracking": TrackingConfig(uri=uri)}
    )
    client = MlflowClient(uri)
    client.create_registered_model(MODEL)
    experiment = client.create_experiment("vidpipe", str(in_folder / "artifacts"))

    def register(right: int, alias: str = "candidate", **card: object) -> str:
        """A version whose evaluation has the first `right` of the clips right."""
        folder = in_folder / "made" / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        predicted = ["a"] * right + ["b"] * (CLIPS - right)
        pd.DataFrame(
            {
                "id": [f"c{i}" for i in range(CLIPS)],
                "label": ["a"] * CLIPS,
                "predicted": predicted,
                "top5": [["a", "b"]] * CLIPS,
                "probabilities": [[0.9, 0.1] if p == "a" else [0.1, 0.9] for p in predicted],
            }
        ).to_parquet(folder / "predictions.parquet")
        values = {"classes": ["a", "b"], "clips_sha256": "x", "evaluate": {"spatial_crops": 3}}
        write_json(folder / "config.json", {**values, **card})
        run = client.create_run(experiment)
        client.log_artifacts(run.info.run_id, str(folder), "evaluation")
        version = client.create_model_version(MODEL, str(folder), run.info.run_id).version
        client.set_registered_model_alias(MODEL, alias, version)
        return str(version)

    yield params, register
    server_at.cache_clear()


def champion(params: Params) -> str:
    found = MlflowClient(params.tracking.uri).get_model_version_by_alias(MODEL, "champion")
    return str(found.version)


def test_the_first_is_champion_and_a_better_one_takes_its_place_and_gives_it_back(
    registry: tuple[Params, Callable[..., str]],
) -> None:
    params, register = registry
    register(30)
    assert promote(params, METHOD) == f"{MODEL}: version 1 is the first champion"
    assert promote(params, METHOD) == f"{MODEL}: version 1 is the champion already"
    register(36)
    assert promote(params, METHOD) == (
        f"{MODEL}: version 2 is the champion, in place of 1: top-1 90.0 % against 75.0 % on the same "
        "40 clips of 40 groups, +15.0 points (95 % interval +5.0 to +27.5)"
    )
    register(36)  # the same answers
    promote(params, METHOD)
    assert champion(params) == "3"
    assert "version 2 is the champion again, in place of 3" in roll_back(params, METHOD)
    assert "version 1 is the champion again, in place of 2" in roll_back(params, METHOD)
    with pytest.raises(VidpipeError, match="version 1 is the first champion; there is none before"):
        roll_back(params, METHOD)
    assert "version 3 is the champion, in place of 1" in promote(params, METHOD, "3")


@pytest.mark.parametrize(
    ("right", "message"),
    [
        (20, "-25.0 points .*; it is worse, and export.margin allows -2.0 at the low end"),
        (29, "-2.5 points .*; this cannot rule out that it is worse, and export.margin"),
    ],
)
def test_a_worse_one_stays_a_candidate(
    registry: tuple[Params, Callable[..., str]], right: int, message: str
) -> None:
    params, register = registry
    register(30, "champion")
    register(right)
    with pytest.raises(VidpipeError, match=message) as error:
        promote(params, METHOD)
    assert "\n" not in str(error.value)
    assert champion(params) == "1"


def test_the_margin_is_that_of_the_parameters(
    registry: tuple[Params, Callable[..., str]],
) -> None:
    params, register = registry
    register(30, "champion")
    register(29)
    lenient = params.export.model_copy(update={"margin": 0.08})
    promote(params.model_copy(update={"export": lenient}), METHOD)
    assert champion(params) == "2"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (
            {"clips_sha256": "y"},
            "version 2 was evaluated on other clips than .* version 1, the champ",
        ),
        ({"evaluate": {"spatial_crops": 1}}, "with evaluate.spatial_crops 1, .* version 1 with 3"),
        ({"classes": ["b", "a"]}, "the first that differ are 'a' and 'b' at 0"),
    ],
)
def test_other_conditions_are_refused(
    registry: tuple[Params, Callable[..., str]], card: dict[str, object], message: str
) -> None:
    params, register = registry
    register(30, "champion")
    register(40, **card)
    with pytest.raises(VidpipeError, match=message):
        promote(params, METHOD)
    assert champion(params) == "1"


def test_models_of_several_labels_are_compared_by_map(
    registry: tuple[Params, Callable[..., str]],
) -> None:
    params, register = registry
    register(30, "champion", task="multilabel")
    register(38, task="multilabel")
    strictly = params.model_copy(update={"export": strict(params)})
    with pytest.raises(
        VidpipeError, match=r"mAP \d.* against \d.*% on the same 40 clips of 40 groups"
    ):
        promote(strictly, METHOD)
    register(38)
    with pytest.raises(VidpipeError, match=r"for data\.task multilabel and .* for single_label"):
        promote(params, METHOD)


def test_what_is_not_there_is_a_line(registry: tuple[Params, Callable[..., str]]) -> None:
    params, register = registry
    with pytest.raises(VidpipeError, match="no alias candidate; run `vidpipe export --"):
        promote(params, METHOD)
    with pytest.raises(VidpipeError, match="no champion; `vidpipe promote linear_probe` makes one"):
        roll_back(params, METHOD)
    with pytest.raises(VidpipeError, match="vidpipe-aim: no version 7"):
        promote(params, "aim", "7")
    register(30, "champion")
    client = MlflowClient(params.tracking.uri)
    run = client.create_run("1")
    client.create_model_version(MODEL, "nowhere", run.info.run_id)
    client.set_registered_model_alias(MODEL, "candidate", "2")
    with pytest.raises(
        VidpipeError, match="version 2: no evaluation came with it; run `vidpipe ev"
    ):
        promote(params, METHOD)
    nobody = TrackingConfig(uri="http://127.0.0.1:9")
    with pytest.raises(VidpipeError, match="connection refused"):
        promote(params.model_copy(update={"tracking": nobody}), METHOD)
    unnamed = params.export.model_copy(update={"register_as": None})
    with pytest.raises(VidpipeError, match=r"export.register_as: null"):
        promote(params.model_copy(update={"export": unnamed}), METHOD)


def test_a_real_export_is_a_candidate_with_its_evaluation(
    registry: tuple[Params, Callable[..., str]], in_folder: Path
) -> None:
    params, _ = registry
    quick = params.export.model_copy(update={"formats": ()})
    params = params.model_copy(update={"export": quick})
    workspace = Workspace(in_folder)
    trained = new_model(params, METHOD, ["a", "b"])
    for seed in (0, 1):
        torch.manual_seed(seed)
        for tensor in trained.model.adapter_state().values():
            tensor += torch.randn_like(tensor)
        save_adapter(workspace.adapter(METHOD), trained, {"epoch": 1})
        if seed == 0:
            evaluate.run(params, METHOD, workspace)
        export.run(params, METHOD, workspace)  # of the second, the evaluation is the first's
        if seed == 0:
            words = ["promote", METHOD, "--set", f"tracking.uri={params.tracking.uri}"]
            done = CliRunner().invoke(app, words)
            assert done.stdout == f"{MODEL}: version 1 is the first champion\n", done.output
    card = read_json(workspace.evaluation(METHOD) / "config.json")
    assert card["clips_sha256"] == clips_hash(workspace, params)
    assert card["adapter_sha256"] != folder_hash(workspace.adapter(METHOD))
    with pytest.raises(VidpipeError, match="version 2: no evaluation came with it"):
        promote(params, METHOD)
    evaluate.run(params, METHOD, workspace)
    export.run(params, METHOD, workspace)
    with pytest.raises(VidpipeError, match="version 2"):  # three clips tell nothing
        promote(params.model_copy(update={"export": strict(params)}), METHOD)
    client = MlflowClient(params.tracking.uri)
    assert client.get_model_version_by_alias(MODEL, "candidate").version == 2
    mlflow.set_tracking_uri(params.tracking.uri)
    served = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    answers = served.predict({"frames": np.zeros((2, 4, 3, 48, 48), np.uint8)})
    assert [len(labels) for labels in answers.labels] == [2, 2]
    assert json.loads((workspace.package(METHOD) / "parity.json").read_text())


def strict(params: Params):  # type: ignore[no-untyped-def]
    return params.export.model_copy(update={"margin": -1.0})


def test_the_alias_of_an_export_is_never_the_champions(in_folder: Path) -> None:
    small_project(in_folder)
    with pytest.raises(
        VidpipeError, match=r"export\.alias: champion is what `vidpipe promote` moves"
    ):
        load_params(in_folder / "params.yaml", [{"export": {"alias": "champion"}}])
