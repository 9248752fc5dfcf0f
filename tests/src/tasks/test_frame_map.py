"""Frame mAP against the official evaluator's numbers, and on files that break the format."""

import heapq
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from project import SHARED

from vidpipe.errors import VidpipeError
from vidpipe.tasks.detection import frame_map
from vidpipe.tasks.detection.ava_metric import average_precision

GOLDEN, PAIRS = SHARED / "golden" / "ava", SHARED / "data" / "weizmann_pairs"
MAP = 'item {\n  name: "stand"\n  id: 1\n}\nitem {\n  name: "run"\n  id: 3\n}\n'


@pytest.fixture
def write(tmp_path):
    def score(truth: str, found: str, excluded: str | None = None, label_map: str = MAP):
        for name, text in (("gt", truth), ("det", found), ("map", label_map), ("ex", excluded)):
            (tmp_path / name).write_text(text or "")
        return frame_map(
            tmp_path / "gt",
            tmp_path / "det",
            tmp_path / "map",
            tmp_path / "ex" if excluded else None,
        )

    return score


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared is not here")
@pytest.mark.parametrize("name", ["random_a", "pairs"])
def test_official_numbers(name):
    folder = GOLDEN / name
    own = folder / "gt.csv"
    files = (
        (own, folder / "detections.csv", folder / "action_list.pbtxt", folder / "excluded.csv")
        if own.exists()
        else (
            PAIRS / "val.csv",
            folder / "detections.csv",
            PAIRS / "action_list.pbtxt",
            PAIRS / "val_excluded_timestamps.csv",
        )
    )
    expected = json.loads((folder / "expected.json").read_text())
    found = frame_map(*files)
    assert found["map"] == pytest.approx(expected.pop("Precision/mAP@0.5IOU"), abs=1e-9)
    expected = {key.rpartition("/")[2]: value for key, value in expected.items()}
    assert {n: v for n, v in found["ap"].items() if n in expected} == pytest.approx(
        expected, abs=1e-9
    )


def test_corner_cases(write):
    truth = "a,0902,0,0,.5,.5,1,0\na,0902,.5,.5,1,1,1,1\nb,902,0,0,1,1,9,0\n"
    # A second match is false, a frame without ground truth too, and unknown actions do not exist.
    found = "a,902,0,0,.5,.5,1,.9\na,902,0,0,.5,.5,1,.8\nc,1,0,0,1,1,1,.7\nc,1,0,0,1,1,9,1\n"
    assert write(truth, found) == {"map": 0.5, "ap": {"stand": 0.5, "run": None}}
    assert write(truth, "") == {"map": 0.0, "ap": {"stand": 0.0, "run": None}}
    assert np.isnan(write(truth, found, "a,902\n")["map"])
    # An inverted detection is dropped; one below 0.5 is false.
    found = "a,902,.5,.5,0,0,1,.99\na,902,0,0,.5,.24,1,.9\na,902,0,0,.5,.5,1,.8\n"
    assert write(truth, found)["map"] == 0.25


def test_fifty_detections_a_frame(write):
    rows = [f"a,1,0,0,{1 - i / 1000},1,{3 if i else 1},{1 - i / 100}" for i in range(60)]
    truth = "a,1,0,0,1,1,1,0\n"
    assert write(truth, "\n".join(rows))["map"] == 1.0
    assert write(truth, "\n".join(r.replace(",1,1.0", ",1,0.405") for r in rows))["map"] == 0.0


@pytest.mark.parametrize(
    ("truth", "found", "label_map", "message"),
    [
        ("a,1,0,0,1,1\n", "", MAP, "row 1, column 7"),
        ("a,1,0,0,1,1,1\n", "a,1,0,0,1,1,1,x\n", MAP, "column 8: 'x'"),
        ("a,1,0,0,1,1,1\n", "a,1,0,0,1,1,1,.5,3\n", MAP, "at most 8 columns"),
        ("a,1,0,0,1,1,1\n", "a,1.5,0,0,1,1,1,.5\n", MAP, "whole number of seconds"),
        ("a,1,0,0,nan,1,1\n", "", MAP, "row 1, column 5"),
        ("a,1,.5,0,.1,1,1\n", "", MAP, "a, second 1: box 0.5, 0, 0.1, 1"),
        ("a,1,0,0,1,1,1.5\n", "", MAP, "action id"),
        ("a,1,0,0,1,1,1\n", "", "stand", "no item"),
        ("a,1,0,0,1,1,1\n", "", MAP + MAP, "occurs twice"),
    ],
)
def test_bad_files(write, truth, found, label_map, message):
    with pytest.raises(VidpipeError, match=message) as error:
        write(truth, found, label_map=label_map)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(VidpipeError, match="nowhere"):
        frame_map(*[tmp_path / "nowhere"] * 3)


# -- the official algorithm, written out loop by loop ---------------------------------------------


def _slow(truth, found, capacity=50):
    """One action, one file order; rows are (frame, box, score)."""

    def listed(rows, limit):
        frames: dict = {}
        for frame, box, score in rows:
            x1, y1, x2, y2 = box
            heap, entry = frames.setdefault(frame, []), (score, 1, y1, x1, y2, x2)
            if limit < 1 or len(heap) < limit:
                heapq.heappush(heap, entry)
            elif score > heap[0][0]:
                heapq.heapreplace(heap, entry)
        return {f: sorted(heap, key=lambda t: -t[0]) for f, heap in frames.items()}

    true, scores, hits = listed(truth, 0), [], []
    for frame, rows in listed(found, capacity).items():
        rows = [r for r in rows if r[2] < r[4] and r[3] < r[5]]
        ranked = np.argsort([r[0] for r in rows])[::-1] if rows else []
        taken, own = set(), []
        for index in ranked:
            score, _, y1, x1, y2, x2 = rows[index]
            overlaps = []
            for _, _, ty1, tx1, ty2, tx2 in true.get(frame, []):
                common = max(0, min(y2, ty2) - max(y1, ty1)) * max(0, min(x2, tx2) - max(x1, tx1))
                area = (y2 - y1) * (x2 - x1) + (ty2 - ty1) * (tx2 - tx1)
                overlaps.append(common / (area - common))
            best = int(np.argmax(overlaps)) if overlaps else -1
            hit = best >= 0 and overlaps[best] >= 0.5 and best not in taken
            taken |= {best} if hit else set()
            own.append((score, hit))
        scores += [score for score, _ in reversed(own)]
        hits += [hit for _, hit in reversed(own)]
    return average_precision(np.array(scores), np.array(hits, dtype=bool), len(truth))


edge = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
box = st.tuples(edge, edge, edge, edge)
span = st.sampled_from([(0.0, 0.25), (0.0, 0.5), (0.25, 0.75), (0.0, 1.0), (0.5, 1.0)])
right = st.tuples(span, span).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))
rows = st.lists(st.tuples(st.integers(0, 3), box, st.sampled_from([0.1, 0.2, 0.3])), max_size=70)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), right, st.just(0)), min_size=1, max_size=12), rows)
def test_ties_as_the_official_loops(tmp_path_factory, truth, found):
    folder = tmp_path_factory.getbasetemp()

    def line(row):
        return f"v{row[0]},1,{','.join(map(str, row[1]))},1,{row[2]}\n"

    for name, lines in (("gt", truth), ("det", found)):
        Path(folder, name).write_text("".join(map(line, lines)))
    Path(folder, "map").write_text(MAP)
    result = frame_map(*[folder / n for n in ("gt", "det", "map")])
    assert result["map"] == pytest.approx(_slow(truth, found), abs=1e-12)


def test_scale_of_ava(write):
    """A tenth of AVA's boxes: whole arrays, not a loop a box."""
    generator = np.random.default_rng(0)
    n = 20_000
    corner, size = generator.uniform(0, 0.5, (n, 2)), generator.uniform(0.1, 0.5, (n, 2))
    boxes = np.concatenate([corner, corner + size], 1)
    lines = [
        f"v{i // 2000},{900 + i // 2 % 1000},{','.join(f'{e:.3f}' for e in boxes[i])},{1 + 2 * (i % 2)}"
        for i in range(n)
    ]
    found = "\n".join(
        f"{line},{score:.6f}" for line, score in zip(lines, generator.random(n), strict=True)
    )
    assert write("\n".join(lines), found)["map"] == pytest.approx(1.0)
