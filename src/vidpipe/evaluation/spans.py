"""What happens when in the whole files of a store: windows, merged and compared with its spans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from vidpipe.data.dataset import Clips, ViewSet
from vidpipe.data.labels import label_sets
from vidpipe.data.spans import windows
from vidpipe.evaluation.config import TimelineConfig
from vidpipe.evaluation.evaluate import Evaluator
from vidpipe.tasks.timeline import Merging, Stretch, merge, timeline_metrics
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.store import FrameStore

STEPS = 4
"""Windows begin a window's length over this apart, where no step is given."""


def evaluate_timeline(
    evaluator: Evaluator, trained: TrainedModel, store: FrameStore, config: TimelineConfig
) -> tuple[dict[str, float], pd.DataFrame]:
    """Numbers of `tasks.timeline.timeline_metrics` on the validation files, and what was found: columns
    file, start_s, end_s, label, score, truth (whether it is of the annotations).

    Windows are one centre view each, in this process.
    """
    window_s = config.window_s or trained.window_s or 1.0
    step_s = config.step_s or window_s / STEPS
    several, classes = trained.task.has_thresholds, trained.classes
    parts = windows(store, "val", window_s, step_s, "" if several else classes[0])
    views = ViewSet(Clips(parts, "val", classes), trained.sampling, trained.transform)
    found = replace(evaluator, views=views, use_of_time=False)(range(len(views)))
    order = found["index"].argsort()
    p = found["probabilities"][order].double().numpy()
    rows, real = parts.rows, store.rows[store.rows.split == "val"]
    names = real.drop_duplicates(["shard", "offset"]).id.str.rpartition("@")[0].tolist()
    merging = Merging(config.smoothing_s, config.threshold, config.min_length_s)
    truth: dict[str, list[Stretch]] = {}
    said: dict[str, list[Stretch]] = {}
    frames: dict[str, tuple[int, float]] = {}
    of_span = real.id.str.rpartition("@")[0].to_numpy()
    for number, name in enumerate(names):
        own = np.flatnonzero((rows.file == number).to_numpy())
        first = rows.iloc[own[0]]
        frames[name] = (int(first.file_frames), float(first.fps))
        said[name] = merge(
            rows.start_s.iloc[own].tolist(),
            rows.end_s.iloc[own].tolist(),
            p[own],
            classes,
            thresholds=trained.thresholds,
            background=trained.background,
            merging=merging,
        )
        spans = real[of_span == name]
        sets = label_sets(spans.label.tolist(), several)
        truth[name] = [
            Stretch(a, b, label)
            for a, b, labels in zip(spans.start_s, spans.end_s, sets, strict=True)
            for label in labels
            if label != trained.background
        ]
    table = [
        {"file": name, **stretch._asdict(), "truth": of_truth}
        for of_truth, by_file in ((True, truth), (False, said))
        for name, own in by_file.items()
        for stretch in own
    ]
    columns = ["file", *Stretch._fields, "truth"]
    return timeline_metrics(truth, said, frames), pd.DataFrame(table, columns=columns)
