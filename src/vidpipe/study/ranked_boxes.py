"""Boxes of several methods on the same key frames, as what frame mAP is made of.

A box is matched within its key frame, and a group has whole videos: so what a box matches is found once,
and stays whatever groups are drawn or exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from vidpipe.data.labels import split_labels
from vidpipe.data.layouts.ava_files import Boxes
from vidpipe.study.ranked import RankedOutcomes
from vidpipe.tasks.detection.ava_metric import matches

EDGES = ["x1", "y1", "x2", "y2"]


def outcomes_of_boxes(
    table: pd.DataFrame,
    classes: Sequence[str],
    methods: Sequence[str] | None = None,
    counted: Sequence[int] | None = None,
) -> RankedOutcomes:
    """Frame mAP at IoU 0.5 by AVA's rule, of the proposals where there are any, else of the ground-truth
    boxes. Equal scores of different frames share a threshold, where AVA's code has them in turn.

    Args:
        table: one row a box, as `RankedOutcomes.of` has a clip: `id` is a key frame's, label and
            probabilities are the box's, `x1` to `y2` as fractions, and `truth`, whether it is
            ground truth.
        counted: classes that the metric counts; None: all.
    """
    kept = list(range(len(classes)) if counted is None else counted)
    frames = table.drop_duplicates(["method", "seed", "id"]).drop(columns="probabilities")
    empty = pd.Series([np.zeros(0)] * len(frames), index=frames.index)
    plain = RankedOutcomes.of(frames.assign(label="", probabilities=empty), (), methods)
    table = table[table.method.isin(plain.methods)]
    place = {str(frame): i for i, frame in enumerate(sorted(set(table.id)))}
    one = table[table.truth].drop_duplicates(["id", *EDGES])
    truth = _ground_truth(one, place, [classes[c] for c in kept])
    labels = np.zeros((len(place), len(kept)))
    np.add.at(labels, (truth.frame, truth.action), 1)
    said = table[~table.truth] if (~table.truth).any() else table
    said = said.sort_values(["method", "seed"], kind="stable").reset_index(drop=True)
    scores = [np.asarray(p, np.float64)[kept] for p in said.probabilities]
    ranked = np.stack(scores) if scores else np.zeros((0, len(kept)))
    hits, frame = np.zeros(ranked.shape), np.asarray(said.id.map(place), np.int64)
    for _, own in said.groupby(["method", "seed"], sort=False):
        rows = own.index.to_numpy()
        found = replace(
            truth,
            frame=np.repeat(frame[rows], len(kept)),
            boxes=np.repeat(own[EDGES].to_numpy(dtype=np.float64), len(kept), 0),
            action=np.tile(np.arange(len(kept)), len(rows)),
            score=ranked[rows].ravel(),
        )
        index, correct = matches(truth, found)
        right, counts = np.zeros(len(found)), np.zeros(len(found), bool)
        right[index], counts[index] = correct, True
        hits[rows] = right.reshape(len(rows), -1)
        # What does not count comes last, where no hit is behind it.
        ranked[rows] = np.where(counts.reshape(len(rows), -1), ranked[rows], -np.inf)
    method = {name: i for i, name in enumerate(plain.methods)}
    seed = {own: i for i, own in enumerate(sorted(table.seed.unique()))}
    return replace(
        plain,
        classes=tuple(classes[c] for c in kept),
        labels=labels,
        method=np.asarray(said.method.map(method), np.int64),
        seed=np.asarray(said.seed.map(seed), np.int64),
        clip=frame,
        scores=ranked,
        hits=hits,
    )


def _ground_truth(table: pd.DataFrame, place: Mapping[str, int], classes: Sequence[str]) -> Boxes:
    """As the metric takes it: a row an action of a box, actions by their place in `classes`."""
    number = {name: i for i, name in enumerate(classes)}
    sets = [[number[name] for name in split_labels(text) if name in number] for text in table.label]
    times = [len(own) for own in sets]
    action = np.array([c for own in sets for c in own], np.int64)
    frame = table.id.map(dict(place)).to_numpy(dtype=np.int64)
    boxes = np.repeat(table[EDGES].to_numpy(dtype=np.float64), times, 0)
    names = [(name, 0) for name in place]
    return Boxes(names, np.repeat(frame, times), boxes, action, np.ones(len(action)))
