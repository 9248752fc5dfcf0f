"""Pickled proposals become a CSV, and nothing in them runs."""

import os
import pickle

import numpy as np
import pytest

from vidpipe.data.layouts.ava_files import read_boxes
from vidpipe.errors import VidpipeError
from vidpipe.tasks.detection.proposal_pickle import convert_proposals, read_proposal_pickle

BOXES = {
    "a_b,0902": np.array([[0.1, 0.2, 0.5, 0.9, 0.95], [0, 0, 1, 1, 0.5]], dtype=np.float32),
    "c,0903": np.asfortranarray(np.arange(10).reshape(2, 5) / 10),
    "d,1000": np.zeros((0, 5)),
}


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_equal_to_what_pickle_reads(tmp_path, protocol):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(BOXES, protocol=protocol))
    found = read_proposal_pickle(tmp_path / "p.pkl")
    assert list(found) == list(BOXES)
    for key, boxes in BOXES.items():
        assert np.array_equal(found[key], boxes)


def test_convert(tmp_path):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(BOXES))
    assert convert_proposals(tmp_path / "p.pkl", tmp_path / "p.csv") == 4
    rows = read_boxes(tmp_path / "p.csv", proposals=True)
    assert rows.frames == [("a_b", 902), ("c", 903)]
    assert rows.score.tolist() == pytest.approx([0.95, 0.5, 0.4, 0.9])


@pytest.mark.parametrize("where", ["value", "key", "alone"])
def test_nothing_runs(tmp_path, where):
    trap = Runs(tmp_path / "ran")
    made = {"value": {"a,1": trap}, "key": {trap: 1}, "alone": trap}[where]
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(made))
    with pytest.raises(VidpipeError, match=r"nothing was executed: it calls '\w+\.mkdir'"):
        read_proposal_pickle(tmp_path / "p.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([1, 2], "a list; expected a dictionary"),
        ({"a,1": [1.0]}, "an array"),
        ({"a,1": np.zeros((2, 4))}, r"an array \(N, 5\)"),
        ({"a,1": np.array(["x"])}, "expected floats"),
        ({"a": np.zeros((1, 5))}, "expected 'video,second'"),
        ({"a,1": {1, 2}}, "opcode EMPTY_SET"),
    ],
)
def test_other_pickles(tmp_path, made, message):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(made, protocol=4))
    with pytest.raises(VidpipeError, match=message):
        convert_proposals(tmp_path / "p.pkl", tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_every_cut_is_refused(tmp_path):
    whole, path = pickle.dumps(BOXES), tmp_path / "p.pkl"
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(VidpipeError):
            read_proposal_pickle(path)
