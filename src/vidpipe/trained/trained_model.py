"""A trained model in memory, whichever folder it came from or goes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vidpipe.backbones.zoo import Backbone
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.model_input import InputForm
from vidpipe.methods.base import VideoModel
from vidpipe.tasks.base import Task
from vidpipe.tasks.multilabel import half
from vidpipe.tasks.registry import SINGLE_LABEL


@dataclass
class TrainedModel:
    """A model in eval mode with what travels beside its weights."""

    model: VideoModel
    backbone: Backbone
    classes: list[str]
    sampling: SamplingConfig
    transform: TransformConfig
    extract: dict[str, Any] = field(default_factory=dict)
    """`short_side` and `fps` of the frames it learned on; empty where that is not known."""
    task: Task = SINGLE_LABEL
    thresholds: list[float] | None = None
    """(C,) of a task that has them: the probability from which on the model says the class."""

    window_s: float | None = None
    """Of a model that learned on spans: their median length, which windows over a long video have."""
    background: str | None = None
    """The class of what lies between spans, where there is one."""

    def __post_init__(self) -> None:
        if self.thresholds is None and self.task.has_thresholds:
            self.thresholds = half(len(self.classes))

    @property
    def form(self) -> InputForm:
        """Of its input."""
        return InputForm.of(self.transform)
