"""The logged model as MLflow opens it: what it takes, what it gives, and what its operator allows."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from imports import outside
from mlflow.pyfunc import scoring_server
from small_models import backbone_file, here, save_tiny_package
from videos import good_and_bad_videos

from pipeline.infra.mlflow import registered_model
from vidpipe.errors import VidpipeError
from vidpipe.inference.given import Rules, rules_of
from vidpipe.serving.queries import Query
from vidpipe.serving.rows import COLUMNS
from vidpipe.trained.card import PACKAGE, read_card


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package, saved as an MLflow model, and videos."""
    root = tmp_path_factory.mktemp("served")
    (root / "videos").mkdir()
    good_and_bad_videos(root / "videos")
    package = save_tiny_package(root / "package", backbone_file(root / "vit.safetensors"))
    mlflow.pyfunc.save_model(
        root / "model",
        artifacts={"package": str(package)},
        pip_requirements=[],
        **registered_model.model_arguments(read_card(package, PACKAGE)),
    )
    return root


@pytest.fixture(scope="module")
def model(root: Path) -> Any:
    return mlflow.pyfunc.load_model(str(root / "model"), model_config={"root": str(root)})


def asked(model: Any, **body: Any) -> list[dict[str, Any]]:
    """Predictions as MLflow's server sends them."""
    schema = model.metadata.get_input_schema()
    answer = scoring_server.invocations(json.dumps(body), "application/json", model, schema)
    assert answer.status == 200
    predictions: list[dict[str, Any]] = json.loads(answer.response, parse_constant=pytest.fail)
    return predictions["predictions"]  # type: ignore[call-overload, no-any-return]


def test_it_takes_bytes_paths_and_frames_and_names_what_it_refuses(model: Any, root: Path) -> None:
    file = root / "videos" / "good1.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 32, 32), dtype=np.uint8)
    text = base64.b64encode(file.read_bytes()).decode()
    classifier = here(root / "package")
    of_file, of_frames = classifier.predict(file, top=2), classifier.predict(list(frames), top=2)

    def same(labels: Any, guesses: Any) -> None:
        assert [each["label"] for each in labels] == [g.label for g in guesses]
        scores = [each["score"] for each in labels]
        assert scores == pytest.approx([g.probability for g in guesses], abs=1e-5)

    table = pd.DataFrame(
        [
            {"bytes": file.read_bytes()},
            {"path": "videos/good1.mp4"},
            {"path": "/etc/passwd"},
            {"frames": frames[0]},
        ]
    )
    found = model.predict(table, params={"top": 2})
    assert tuple(found.columns) == COLUMNS
    assert found.reason.tolist() == [None, None, "outside_root", None]
    for labels, expected in zip(found.labels[[0, 1, 3]], (of_file, of_file, of_frames[0])):
        same(labels, expected)
    for labels, expected in zip(model.predict({"frames": frames}, {"top": 2}).labels, of_frames):
        same(labels, expected)

    records = [{"bytes": text}, {"path": 3}, {"frames": frames[1].tolist()}, {"path": None}]
    answers = asked(model, dataframe_records=records, params={"top": 2})
    same(answers[0]["labels"], of_file)
    same(answers[2]["labels"], of_frames[1])
    assert [each["reason"] for each in answers] == [None, "bad_parameter", None, "bad_parameter"]
    (answer,) = asked(
        model,
        inputs=[{"path": "videos/good1.mp4"}],
        params={"answer": "timeline", "window": 0.4, "smooth": 2},
    )
    assert answer["timeline"][-1]["end"] == pytest.approx(37 / 25, abs=1e-3)


def test_its_signature_and_example_say_what_it_takes(model: Any, root: Path) -> None:
    signature = model.metadata.signature
    assert signature.inputs.input_names() == ["bytes", "url", "path", "frames", "boxes"]
    assert signature.inputs.required_input_names() == []
    assert tuple(signature.outputs.input_names()) == COLUMNS
    assert {each.name for each in signature.params} == set(Query.model_fields) - {"boxes"}
    assert model.predict(model.input_example).labels[0]
    written = json.loads((root / "model" / "serving_input_example.json").read_text())
    assert asked(model, **written)[0]["labels"]


def test_without_its_operators_word_there_are_bytes_and_frames_only(root: Path) -> None:
    closed = mlflow.pyfunc.load_model(str(root / "model"))
    rows = [{"path": "videos/good1.mp4"}, {"url": "http://host/a.mp4"}]
    answers = closed.predict(pd.DataFrame(rows), params={"root": str(root)})
    assert answers.reason.tolist() == ["no_root", "no_urls"]
    assert closed.model_config == {field.name: field.default for field in fields(Rules)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"root": "videos"}, "root 'videos': expected the absolute path of a folder, or null"),
        ({"root": ""}, "root '': expected the absolute path"),
        ({"root": "/nowhere/at/all"}, "root /nowhere/at/all: no such folder"),
        ({"urls": "false"}, "urls 'false': expected true or false"),
        ({"max_mb": True}, "max_mb True: expected a number above 0"),
        ({"timeout_s": -1}, "timeout_s -1: expected a number above 0"),
        ({"roots": "/"}, "roots: unknown; expected one of root, urls"),
    ],
)
def test_an_operators_mistake_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(VidpipeError, match=message):
        rules_of(config)


def test_the_file_that_travels_needs_nothing_of_ours_but_the_library() -> None:
    file = Path(registered_model.__file__).with_name("serving.py")
    assert "pipeline" not in outside(file.read_text(encoding="utf-8"))
