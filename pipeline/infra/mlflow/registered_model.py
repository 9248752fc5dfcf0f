"""The exported model in MLflow: logged, served by `serving.py`, and registered."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, fields
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import RunTag
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Object, Property

import vidpipe
from pipeline.infra.mlflow.server import current
from vidpipe.inference.given import Rules
from vidpipe.serving.queries import Query
from vidpipe.tasks.registry import TASKS
from vidpipe.trained.card import PACKAGE, Card, read_card
from vidpipe.video.encode import encode_h264

STRING, DOUBLE = DataType.string, DataType.double
MOST_TEXT = 5000
"""Characters of a version's description, MLflow's limit."""


@dataclass(frozen=True)
class Exported:
    """A package that is to be an MLflow model: plain values, which may wait in a file."""

    package: Path
    package_hash: str
    method: str
    register_as: str | None
    alias: str
    requirements: tuple[str, ...] = ()
    """Packages beside those that every model needs."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the registered version."""

    @property
    def name(self) -> str | None:
        return f"{self.register_as}-{self.method}" if self.register_as else None


def log_model(client: MlflowClient, uri: str, run_id: str, given: Exported) -> str | None:
    """Log the package as an MLflow model (code and safetensors, no pickle) and register it.

    MLflow runs the logged model on a clip of noise. Returns the registered version; an unchanged package
    is not logged a second time.
    """
    tag = "vidpipe.package"
    if client.get_run(run_id).data.tags.get(tag) == given.package_hash:
        return _alias(client, run_id, given)
    card = read_card(given.package, PACKAGE)
    # MLflow asks for type hints in place of the signature that it has been given, whatever the filters
    # of warnings say, and prints what the caller says anyway.
    with redirect_stderr(StringIO()), current(uri), mlflow.start_run(run_id=run_id):
        mlflow.pyfunc.log_model(
            name=f"package-{given.method}",
            artifacts={"package": str(given.package)},
            code_paths=[str(Path(vidpipe.__file__).parent)],
            **model_arguments(card),
            pip_requirements=_requirements(given.requirements),
            registered_model_name=given.name,
        )
    # `start_run` as a context marks the run finished; its owner is still at work.
    client.update_run(run_id, status="RUNNING")
    client.log_batch(run_id, tags=[RunTag(tag, given.package_hash)])
    return _alias(client, run_id, given)


def model_arguments(card: Card) -> dict[str, Any]:
    """What MLflow is told of a package, whether it is to log or to save it."""
    return {
        "python_model": str(Path(__file__).with_name("serving.py")),
        "signature": signature(),
        "input_example": example(card),
        # Who loads it may say otherwise: mlflow.pyfunc.load_model(uri, model_config={"root": ...}).
        "model_config": {field.name: field.default for field in fields(Rules)},
    }


def signature() -> ModelSignature:
    """What a logged model takes and gives, whatever its task: `vidpipe.serving.rows` as columns.

    All columns are optional: a video is given in one of several ways, and an answer is of one kind.
    """
    label = Object([Property("label", STRING), Property("score", DOUBLE)])
    times = [Property("start", DOUBLE), Property("end", DOUBLE)]
    box = [
        *(Property("second", DOUBLE), Property("box", Array(DOUBLE))),
        *(Property("labels", Array(label)), Property("box_score", DOUBLE, required=False)),
    ]
    inputs = {
        **{"bytes": STRING, "url": STRING, "path": STRING},
        # Arrays or nested lists. MLflow would look at each number of a typed one, and refuse all rows
        # for what is wrong in one.
        **{"frames": AnyType(), "boxes": AnyType()},
    }
    outputs = {
        **{"answer": STRING, "seconds": DOUBLE, "labels": Array(label)},
        "timeline": Array(Object([*times, *label.properties])),
        **{"boxes": Array(Object(box)), "error": STRING, "reason": STRING},
    }
    params = [
        ParamSpec("top", DataType.long, Query.model_fields["top"].default),
        ParamSpec("answer", STRING, None),
        *(ParamSpec(name, DOUBLE, None) for name in ("window", "step", "threshold", "min_length")),
        ParamSpec("smooth", DataType.long, None),
    ]
    return ModelSignature(_optional(inputs), _optional(outputs), ParamSchema(params))


def _optional(columns: Mapping[str, Any]) -> Schema:
    return Schema([ColSpec(kind, name, required=False) for name, kind in columns.items()])


def example(card: Card) -> pd.DataFrame:
    """A small video as JSON has it, for who looks at the model's page; of detection with a box."""
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    for t in range(len(frames)):
        frames[t, :, 4 * t : 4 * t + 4] = 255  # a line that moves to the right
    row: dict[str, Any] = {"bytes": base64.b64encode(encode_h264(iter(frames), 8, 8).data).decode()}
    if "boxes" in TASKS[card.task].inputs:
        row["boxes"] = [[0.0, 0.1, 0.2, 0.6, 0.9]]
    return pd.DataFrame([row])


def _alias(client: MlflowClient, run_id: str, given: Exported) -> str | None:
    """The version that the run made, with its alias, tags and the model card as its description."""
    if given.name is None:
        return None
    versions = client.search_model_versions(f"name = '{given.name}'")
    own = [int(v.version) for v in versions if v.run_id == run_id]
    if not own:
        return None
    version = str(max(own))
    for key, value in given.tags.items():
        client.set_model_version_tag(given.name, version, key, value)
    card = given.package / "MODEL_CARD.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        more = "\n\nThe rest is in the run's MODEL_CARD.md."
        short = text if len(text) <= MOST_TEXT else text[: MOST_TEXT - len(more)] + more
        client.update_model_version(given.name, version, short)
    client.set_registered_model_alias(given.name, given.alias, version)
    return version


def _requirements(extra: Sequence[str] = ()) -> list[str]:
    """What serving the model imports, pinned to what it was exported with. torchvision is timm's, and
    has to fit torch."""
    from importlib.metadata import version

    names = (
        *("aiohttp", "av", "fsspec", "mlflow", "numpy", "pandas", "pyarrow", "pydantic"),
        *("pyyaml", "safetensors", "simplejpeg", "timm", "torch", "torchvision"),
    )
    return [f"{name}=={version(name).split('+')[0]}" for name in (*names, *extra)]
