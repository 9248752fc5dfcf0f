"""Versions of a registered model by alias, and the move of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.infra.mlflow.server import download, server_at, tracking_uri
from vidpipe.errors import VidpipeError
from vidpipe.params import TrackingConfig

PREVIOUS = "vidpipe.previous_champion"
"""Tag of a version: which one it took the alias from."""
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes for a model, a version or an alias that is not there."""


@dataclass(frozen=True)
class Version:
    model: str
    number: str
    run_id: str
    tags: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"version {self.number}"


class Registry:
    """The versions of `model` at the server of `config`. Each call raises TrackingError, a line, where
    MLflow does not answer."""

    def __init__(self, config: TrackingConfig, model: str) -> None:
        self.config, self.model = config, model
        self.server = server_at(tracking_uri(config))

    def with_alias(self, alias: str) -> Version | None:
        return self._ask(lambda client: client.get_model_version_by_alias(self.model, alias))

    def numbered(self, number: str) -> Version | None:
        return self._ask(lambda client: client.get_model_version(self.model, number))

    def _ask(self, work: Callable[[MlflowClient], ModelVersion]) -> Version | None:
        def ask(client: MlflowClient) -> ModelVersion | None:
            try:
                return work(client)
            except MlflowException as error:
                if error.error_code in MISSING:
                    return None
                raise

        found = self.server.ask(ask)
        if found is None:
            return None
        tags = dict(found.tags or {})
        return Version(self.model, str(found.version), str(found.run_id), tags)

    def move(self, alias: str, version: Version, tags: dict[str, str]) -> None:
        """Give `version` the tags, then the alias: a kill between the two leaves the alias as it was."""

        def work(client: MlflowClient) -> None:
            for key, value in tags.items():
                client.set_model_version_tag(self.model, version.number, key, value)
            client.set_registered_model_alias(self.model, alias, version.number)

        self.server.ask(work)

    def evaluation(self, version: Version, folder: Path) -> Path:
        """The evaluation that was exported with `version`, fetched below `folder`.

        Raises VidpipeError where there is none.
        """
        target = folder / version.number
        target.mkdir()
        try:
            return download(self.config, version.run_id, "evaluation", target)
        except VidpipeError as error:
            raise VidpipeError(
                f"{self.model} {version}: no evaluation came with it; run `vidpipe evaluate`, then "
                f"`vidpipe export`, once more ({error})"
            ) from None
