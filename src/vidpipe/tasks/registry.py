"""Tasks by name: `data.task` in params.yaml and in a model's card."""

from __future__ import annotations

from vidpipe.tasks.base import Task
from vidpipe.tasks.detection.task import Detection
from vidpipe.tasks.multilabel import MultiLabel
from vidpipe.tasks.single_label import SingleLabel

SINGLE_LABEL = SingleLabel()
TASKS: dict[str, Task] = {task.name: task for task in (SINGLE_LABEL, MultiLabel(), Detection())}
"""Its keys are those of `data.config.TaskName`."""
