"""benchmarks/concatenate_clips.py: clips end to end, with boundaries between frames."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from clips import moving
from project import PROJECT
from videos import write_video

from vidpipe.data.config import DataConfig
from vidpipe.data.layouts.spans import segments
from vidpipe.errors import VidpipeError
from vidpipe.video.config import ExtractConfig
from vidpipe.video.decode import decode


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = PROJECT / "benchmarks" / "concatenate_clips.py"
    spec = importlib.util.spec_from_file_location("concatenate_clips", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["concatenate_clips"] = module
    spec.loader.exec_module(module)
    return module


def clips(root: Path) -> pd.DataFrame:
    rows = []
    for number, (label, split) in enumerate(
        [("run", "val"), ("run", "val"), ("bend", "val"), ("bend", "train")]
    ):
        frames = np.roll(moving(10 + 3 * number), 11 * number, 1)
        write_video(root / f"{number}.mp4", frames, crf="8")
        rows.append((f"{number}.mp4", label, split, "ann", 0))
    rows += [("3.mp4", "bend", "train", "ann", 1), ("0.mp4", "run", "val", "ann", 1)]
    table = pd.DataFrame(rows, columns=["path", "label", "split", "subject", "mirrored"])
    table.to_csv(root / "index.csv", index=False)
    return table


def test_every_frame_is_in_its_span(tool: ModuleType, tmp_path: Path) -> None:
    clips(tmp_path)
    out = tmp_path / "long"
    spans = tool.write(tmp_path, out, "index.csv", per_video=3, seed=0)
    table = pd.read_csv(out / "segments.csv")
    assert [tuple(row) for row in table.itertuples(index=False)] == [tuple(span) for span in spans]
    val = table[table.split == "val"]
    assert val.path.nunique() == 1, "mirrored clips are trained on only"
    assert val.label.tolist() == ["run", "bend", "run"], "equal ones do not touch"
    assert val.start.tolist() == [0, *val.end.tolist()[:-1]]
    assert table[table.split == "train"].path.nunique() == 2
    fps, frames = decode(out / val.path.iloc[0], ExtractConfig(short_side=48, min_frames=1))
    found = np.stack(list(frames)).astype(float)
    assert len(found) == round(val.end.max() * fps) == 10 + 13 + 16
    parts = [
        found[round(a * fps) : round(b * fps)] for a, b in zip(val.start, val.end, strict=True)
    ]
    own = {10 + 3 * n: np.roll(moving(10 + 3 * n), 11 * n, 1).astype(float) for n in range(3)}
    assert sorted(map(len, parts)) == sorted(own)
    for part in parts:
        assert np.abs(part - own[len(part)]).mean() < 8
    config = DataConfig.model_validate(
        {"root": str(out), "layout": "segments", "annotations": "segments.csv"}
    )
    assert len(segments(out, config).rows) == len(table)


def test_what_cannot_be_put_together_is_one_line(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(VidpipeError, match=r"index\.csv: no such file"):
        tool.write(tmp_path, tmp_path / "long", "index.csv", 3, 0)
    clips(tmp_path)
    write_video(tmp_path / "1.mp4", moving(12, 48, 48))
    with pytest.raises(VidpipeError, match=r"1\.mp4: 48x48 pixels.*64x48|64x48.*48x48"):
        tool.write(tmp_path, tmp_path / "long", "index.csv", 3, 0)
    assert not (tmp_path / "long").exists()
    pd.DataFrame({"path": ["0.mp4"]}).to_csv(tmp_path / "index.csv", index=False)
    with pytest.raises(VidpipeError, match="no column label"):
        tool.write(tmp_path, tmp_path / "long", "index.csv", 3, 0)
