"""What a run can be told, as plain values: they wait in memory or in a file, and are sent once or twice
with the same result.

A stage's run stands below the run of its model, whose row is the summary: one a method, data set and
settings, with parameters, cost, accuracy and pictures, so that a table of models needs no click.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.tracking import MlflowClient

from pipeline.infra.mlflow.registered_model import Exported, log_model
from vidpipe.text import markdown

LONGEST = 6000
"""Characters of a parameter, MLflow's limit."""
NOTE, PICTURES = "mlflow.note.content", "pictures"
ADAPTER = "vidpipe.adapter"
"""Tag of a logged model: the hash of its folder."""
IN_THE_NOTE = {
    "top1": ("top-1", 100, "%"),
    "map": ("mAP", 100, "%"),
    "tunable_m": ("trained", 1, "M parameters without the head"),
    "tunable_with_head_m": ("trained with the head", 1, "M"),
    "gflops": ("cost of a view", 1, "GFLOPs"),
    "latency_ratio": ("latency", 1, "x the plain backbone"),
}


@dataclass(frozen=True)
class Entry:
    """Something to be told. Telling it again, should it have arrived, changes nothing."""

    kind: str
    """A key of KINDS."""
    values: dict[str, Any]
    """Plain values, as JSON has them."""

    @property
    def upload(self) -> bool:
        """Whether files travel, which may take longer."""
        return self.kind in ("artifact", "picture", "adapter", "exported")


@dataclass
class Sending:
    """The runs that entries go to."""

    client: MlflowClient
    uri: str
    run_id: str
    model_run_id: str | None
    logged: dict[str, set[int]] = field(default_factory=dict)
    """Steps that the run has of each metric, as far as they have been asked for."""
    returned: dict[str, Any] = field(default_factory=dict)
    """What an entry's sending gave, by kind."""


def send(entry: Entry, to: Sending) -> None:
    KINDS[entry.kind](to, **entry.values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# -- of the stage's run ---------------------------------------------------------------------------


def _params(to: Sending, values: dict[str, str]) -> None:
    _new_params(to.client, to.run_id, values)


def _new_params(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    known = client.get_run(run_id).data.params
    new = [Param(k, v[:LONGEST]) for k, v in values.items() if k not in known]
    for start in range(0, len(new), 100):  # the server's limit of one request
        client.log_batch(run_id, params=new[start : start + 100])


def _tags(to: Sending, values: dict[str, str]) -> None:
    to.client.log_batch(to.run_id, tags=[RunTag(k, v) for k, v in values.items()])


def _metrics(
    to: Sending,
    values: dict[str, float],
    step: int,
    at: int,
    adapter: str | None = None,
    dataset: dict[str, str] | None = None,
) -> None:
    """Those that the run does not have at `step` yet; of a logged adapter and on a data set, if so."""
    for key in values.keys() - to.logged.keys():
        history = to.client.get_metric_history(to.run_id, key)
        to.logged[key] = {metric.step for metric in history}
    new = [key for key in values if step not in to.logged[key]]
    model = _adapter(to, adapter) if adapter is not None and new else None
    if model is not None:
        to.client.log_inputs(to.run_id, models=[LoggedModelInput(model)])
    about = {"model_id": model}
    if dataset is not None:
        about |= {"dataset_name": dataset["name"], "dataset_digest": dataset["digest"]}
    if new:
        metrics = [Metric(key, float(values[key]), at, step, **about) for key in new]
        to.client.log_batch(to.run_id, metrics=metrics)
    for key in new:
        to.logged[key].add(step)


def _artifact(to: Sending, path: str, folder: str | None) -> None:
    to.client.log_artifact(to.run_id, path, folder)


def _datasets(to: Sending, splits: list[dict[str, Any]]) -> None:
    """`splits`: name, digest, split, source and counts of each."""
    inputs = [
        DatasetInput(
            Dataset(
                split["name"],
                split["digest"],
                "local",
                json.dumps({"uri": split["source"]}),
                profile=json.dumps(split["counts"]),
            ),
            [InputTag("mlflow.data.context", split["split"])],
        )
        for split in splits
    ]
    for run_id in (to.run_id, to.model_run_id):
        if run_id is not None:
            to.client.log_inputs(run_id, datasets=inputs)


def _log_adapter(to: Sending, folder: str, digest: str, name: str, params: dict[str, str]) -> None:
    """The adapter's folder as a logged model of the run that trained it."""
    if _adapter(to, digest) is not None:
        return
    experiment = to.client.get_run(to.run_id).info.experiment_id
    model = to.client.create_logged_model(
        experiment,
        name=name,
        source_run_id=to.run_id,
        tags={ADAPTER: digest},
        params={k: v[:LONGEST] for k, v in params.items()},
        model_type="vidpipe-adapter",
    )
    to.client.log_model_artifacts(model.model_id, folder)
    to.client.finalize_logged_model(model.model_id, "READY")
    for run_id in (to.run_id, to.model_run_id):
        if run_id is not None:
            to.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])


def _adapter(to: Sending, digest: str) -> str | None:
    """The logged model of the adapter with this hash, where it is whole."""
    experiment = to.client.get_run(to.run_id).info.experiment_id
    found = to.client.search_logged_models([experiment], f"tags.`{ADAPTER}` = '{digest}'")
    return next((str(m.model_id) for m in found if str(m.status) == "READY"), None)


def _exported(to: Sending, values: dict[str, Any]) -> None:
    given = Exported(**{**values, "package": Path(values["package"])})
    to.returned["exported"] = log_model(to.client, to.uri, to.run_id, given)


def _status(to: Sending, status: str) -> None:
    to.client.set_terminated(to.run_id, status)
    if to.model_run_id is not None:
        to.client.set_tag(to.model_run_id, NOTE, _note(to.client, to.model_run_id))
        to.client.set_terminated(to.model_run_id, status)


# -- of the model's row ---------------------------------------------------------------------------


def _row(
    to: Sending, params: dict[str, str], metrics: dict[str, float], tags: dict[str, str], at: int
) -> None:
    """The latest number stands in the row: one that changed is the next step of its metric."""
    if to.model_run_id is None:
        return
    _new_params(to.client, to.model_run_id, params)
    now = to.client.get_run(to.model_run_id).data.metrics
    changed = []
    for key, value in metrics.items():
        if now.get(key) != value:
            history = to.client.get_metric_history(to.model_run_id, key) if key in now else []
            step = max((metric.step for metric in history), default=-1) + 1
            changed.append(Metric(key, value, at, step))
    told = [RunTag(key, value) for key, value in tags.items()]
    to.client.log_batch(to.model_run_id, metrics=changed, tags=told)


def _picture(to: Sending, path: str) -> None:
    if to.model_run_id is not None:
        to.client.log_artifact(to.model_run_id, path, PICTURES)


def _note(client: MlflowClient, run_id: str) -> str:
    """The row's description: its numbers in words, and its pictures."""
    data = client.get_run(run_id).data
    about = ", ".join(
        f"{title} {markdown(data.params[key])}"
        for key, title in (("backbone", "on"), ("num_frames", "frames"), ("size", "pixels"))
        if key in data.params
    )
    lines = [f"**{markdown(data.params.get('method', 'model'))}** {about}".strip()]
    for key, (title, factor, unit) in IN_THE_NOTE.items():
        if key in data.metrics:
            bounds = [data.metrics.get(f"{key}_{end}") for end in ("low", "high")]
            told = " to ".join(f"{factor * b:.1f}" for b in bounds if b is not None)
            value = f"{factor * data.metrics[key]:.4g} {unit}"
            lines.append(f"- {title}: {value}" + (f" (95 %: {told})" if told else ""))
    names = [file.path for file in client.list_artifacts(run_id, PICTURES)]
    pictures = [
        f"![{Path(name).stem}](get-artifact?path={name}&run_uuid={run_id})"
        for name in sorted(names)
        if name.endswith(".png")
    ]
    return "\n".join(lines) + "\n\n" + "\n\n".join(pictures)


KINDS: dict[str, Callable[..., None]] = {
    "params": _params,
    "tags": _tags,
    "metrics": _metrics,
    "artifact": _artifact,
    "datasets": _datasets,
    "adapter": _log_adapter,
    "exported": _exported,
    "status": _status,
    "row": _row,
    "picture": _picture,
}


def milliseconds() -> int:
    return int(time.time() * 1000)
