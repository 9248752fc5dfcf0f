"""The exported model in MLflow: logged, served by `serving.py`, and registered."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities import RunTag
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

import vidpipe
from pipeline.infra.mlflow.server import current
from vidpipe.export.config import ExportConfig


def log_model(
    client: MlflowClient,
    uri: str,
    run_id: str,
    package: Path,
    package_hash: str,
    example: NDArray[np.uint8],
    classes: int,
    export: ExportConfig,
    method: str,
    extra_requirements: Sequence[str] = (),
) -> str | None:
    """Log the model package as an MLflow model (code and safetensors, no pickle) and register it.

    `example`: uint8 clips (N >= 2, T, 3, H, W); MLflow runs the logged model on it. Returns the
    registered version; an unchanged package is not logged a second time.
    """
    name = f"{export.register_as}-{method}" if export.register_as else None
    tag = "vidpipe.package"
    if client.get_run(run_id).data.tags.get(tag) == package_hash:
        return _alias(client, run_id, name, export)
    # MLflow asks for type hints in place of the signature that it has been given.
    warnings.filterwarnings("ignore", message=".*[Tt]ype hint", category=UserWarning)
    with current(uri), mlflow.start_run(run_id=run_id):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"package": str(package)},
            code_paths=[str(Path(vidpipe.__file__).parent)],
            signature=ModelSignature(
                inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *example.shape[1:]))]),
                outputs=Schema([TensorSpec(np.dtype("float32"), (-1, classes))]),
            ),
            input_example=example,
            pip_requirements=_requirements(extra_requirements),
            registered_model_name=name,
        )
    # `start_run` as a context marks the run finished; its owner is still at work.
    client.update_run(run_id, status="RUNNING")
    client.log_batch(run_id, tags=[RunTag(tag, package_hash)])
    return _alias(client, run_id, name, export)


def _alias(client: MlflowClient, run_id: str, name: str | None, export: ExportConfig) -> str | None:
    if name is None:
        return None
    versions = client.search_model_versions(f"name = '{name}'")
    own = [int(v.version) for v in versions if v.run_id == run_id]
    if not own:
        return None
    version = str(max(own))
    client.set_registered_model_alias(name, export.alias, version)
    return version


def _requirements(extra: Sequence[str] = ()) -> list[str]:
    """What serving the model imports, pinned to what it was exported with. torchvision is timm's, and
    has to fit torch."""
    from importlib.metadata import version

    names = ("mlflow", "numpy", "pydantic", "pyyaml", "safetensors", "timm", "torch", "torchvision")
    return [f"{name}=={version(name).split('+')[0]}" for name in (*names, *extra)]
