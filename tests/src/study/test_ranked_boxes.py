"""Frame mAP in a study: the metric's own numbers, of one training, of drawn and of exchanged groups."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from vidpipe.data.layouts.ava_files import Boxes
from vidpipe.study.ranked_boxes import EDGES, outcomes_of_boxes
from vidpipe.study.statistics import accuracies, chance_p, score
from vidpipe.tasks.detection.ava_metric import map_of_rows, numbered

CLASSES = ["sit", "stand", "walk"]
COUNTED = [0, 2]


def predictions(proposals: bool, groups: int = 4, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for group, second in itertools.product(range(groups), range(3)):
        place = (f"v{group}@{second}", f"v{group}", group % 2)
        corners = rng.uniform(0, 0.4, (2, 2))
        labels = [rng.random(3) < 0.5 for _ in corners]
        for m in range(2):
            for corner, label in zip(corners, labels, strict=True):
                text = "|".join(name for name, own in zip(CLASSES, label, strict=True) if own)
                box = (*corner, *(corner + 0.3))
                rows.append((f"m{m}", 0, *place, *box, True, text, rng.random(3) + m * 0.5 * label))
            for corner, label in zip(corners, labels, strict=True) if proposals else ():
                near = corner + rng.uniform(-0.07, 0.07, 2)
                box = (*near, *(near + 0.3))
                rows.append((f"m{m}", 0, *place, *box, False, "", rng.random(3) + m * label))
    columns = ["method", "seed", "id", "group", "fold", *EDGES, "truth", "label", "probabilities"]
    return pd.DataFrame(rows, columns=columns)


def official(table: pd.DataFrame) -> float:
    """Of one method and one fold, by AVA's metric."""
    frames = [(name, 0) for name in dict.fromkeys(table.id)]
    place = {name: i for i, (name, _) in enumerate(frames)}

    def boxes(rows: list[tuple[str, list[float], int, float]]) -> Boxes:
        where = np.array([place[r[0]] for r in rows], np.int64)
        edges = np.array([r[1] for r in rows]).reshape(-1, 4)
        action, scores = np.array([r[2] for r in rows], np.int64), np.array([r[3] for r in rows])
        return numbered(Boxes(frames, where, edges, action, scores))

    truth, said = [], []
    for row in table.to_dict("records"):
        box = [row[edge] for edge in EDGES]
        if row["truth"]:
            names = row["label"].split("|")
            truth += [(row["id"], box, c, 1.0) for c in COUNTED if CLASSES[c] in names]
        if not row["truth"] or table.truth.all():
            said += [(row["id"], box, c, row["probabilities"][c]) for c in COUNTED]
    return float(map_of_rows(boxes(truth), boxes(said), {c: CLASSES[c] for c in COUNTED})["map"])


@pytest.mark.parametrize("proposals", [False, True])
def test_of_one_training_it_is_the_metric(proposals: bool) -> None:
    table = predictions(proposals).assign(fold=0)
    found = outcomes_of_boxes(table, CLASSES, counted=COUNTED)
    expected = [official(table[table.method == name]) for name in ("m0", "m1")]
    assert score(found) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[0] < expected[1] < 1
    assert found.classes == ("sit", "walk")
    # A group that is drawn twice, and one that is not.
    own = table[table.method == "m1"]
    drawn = pd.concat([own[own.group != "v1"], own[own.group == "v2"].assign(id=own.id + "again")])
    weights = np.array([1.0, 0, 2, 1])[found.groups]
    value = found.measure("map", np.ones(1), weights)[1]
    # Equal scores of a group and its copy share a threshold, and AVA's code has them in turn.
    assert value == pytest.approx(official(drawn), abs=0.03)


def test_exchanged_groups_are_ranked_anew() -> None:
    table = predictions(True).assign(fold=0)
    groups = sorted(set(table.group))
    apart = []
    for way in itertools.product([0, 1], repeat=len(groups)):
        moved = table.group.isin([g for g, own in zip(groups, way, strict=True) if own])
        mixed = table.assign(
            method=table.method.mask(moved, table.method.map({"m0": "m1", "m1": "m0"}))
        )
        one, two = (official(mixed[mixed.method == name]) for name in ("m0", "m1"))
        apart.append(abs(one - two))
    found = outcomes_of_boxes(table, CLASSES, counted=COUNTED)
    expected = np.mean([own >= apart[0] - 1e-9 for own in apart])
    assert found.permutations().pair_p(0, 1) == pytest.approx(expected)


def test_labels_of_boxes_are_not_permuted() -> None:
    """Actions of a video go on from frame to frame."""
    found = outcomes_of_boxes(predictions(True), CLASSES)
    assert np.isnan(chance_p(found)).all()
    row = accuracies(found, 50).iloc[1]
    assert row.map_low < row["map"] < row.map_high
    assert math.isnan(row.p_chance)
