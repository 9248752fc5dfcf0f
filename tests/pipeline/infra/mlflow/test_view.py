"""The shared view of an experiment: its tag is there once, and a person's own choice is kept."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException

from pipeline.infra.mlflow.tracking import KIND, _experiment
from pipeline.infra.mlflow.view import AXES, METRICS, view_tag

(KEY,) = view_tag()


class Client:
    """What `_experiment` asks of MLflow."""

    def __init__(self, tags: dict[str, str] | None = None, late: bool = False) -> None:
        self.tags, self.late = tags, late

    def get_experiment_by_name(self, name: str) -> Any:
        if self.tags is None or self.late:
            self.late = False
            return None
        return SimpleNamespace(experiment_id="7", tags=self.tags)

    def create_experiment(self, name: str, tags: dict[str, str]) -> str:
        if self.tags is not None:
            raise MlflowException("exists")
        self.tags = dict(tags)
        return "7"

    def set_experiment_tag(self, experiment: str, key: str, value: str) -> None:
        assert self.tags is not None
        self.tags[key] = value


def test_an_experiment_has_the_view_however_it_came_about() -> None:
    for client in (Client(), Client({}), Client({}, late=True)):
        assert _experiment(client, "vidpipe") == "7"  # type: ignore[arg-type]
        assert client.tags is not None
        assert client.tags.items() >= view_tag().items()
    assert client.tags.keys().isdisjoint(KIND), "an experiment of another's keeps its kind"
    own = Client({KEY: "mine"})
    _experiment(own, "vidpipe")  # type: ignore[arg-type]
    assert own.tags == {KEY: "mine"}


def test_the_view_is_short_json_of_what_a_row_has() -> None:
    text = view_tag()[KEY]
    assert len(text) < 5000, "MLflow's limit of a tag"
    state = json.loads(text)
    assert set(AXES) <= set(METRICS)
    assert state["selectedColumns"][0] == state["orderByKey"] == "metrics.`top1`"
    (chart,), (section,) = state["compareRunCharts"], state["compareRunSections"]
    assert chart["metricSectionId"] == section["uuid"]
