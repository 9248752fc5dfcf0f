"""`vidpipe drift` on real files: the store's own videos are no news, others are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_models import backbone_file, save_tiny_adapter
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.stages import extract
from pipeline.tools import drift
from pipeline.tools.embed import EmbedJob
from vidpipe.data.config import DataConfig
from vidpipe.errors import VidpipeError
from vidpipe.video.config import ExtractConfig, SynthConfig
from vidpipe.video.rendered import render_clip, write_clip


def videos(folder: Path, name: str, numbers: range, config: SynthConfig) -> None:
    (folder / name).mkdir(parents=True)
    for i in numbers:
        write_clip(folder / name / f"{i}.mp4", render_clip(config, name, i), config.fps, config.crf)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    config = SynthConfig(duration_s=(1, 1), size_px=(40, 64))
    for name in ("move_left", "grow"):
        videos(folder / "videos", name, range(12), config)
        videos(folder / "same", name, range(12, 20), config)
        other = config.model_copy(update={"fps": 30, "size_px": (100, 110), "noise": 40.0})
        videos(folder / "other", name, range(20, 28), other)
    (folder / "other" / "damaged.mp4").write_bytes(b"no video")
    data = DataConfig(root=str(folder / "videos"), val_fraction=0.9)
    extract.run(data, ExtractConfig(short_side=32, num_workers=1), folder / "store")
    save_tiny_adapter(folder / "model", backbone_file(folder / "vit.safetensors"))
    return folder


def run(place: Path, name: str, **more: object) -> drift.Drift:
    job = EmbedJob(folders=(place / "model",), workers=1)
    given = {"split": "val", "videos": place / "videos", **more}
    return drift.run(job, [str(place / name)], place / "store", out=place / f"of_{name}", **given)  # type: ignore[arg-type]


def test_other_videos_are_told_from_the_stores_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same, other = run(place, "same"), run(place, "other")
    assert not {"rate (frames per second)", "short side (pixels)"} & set(same.shifted)
    assert {"rate (frames per second)", "short side (pixels)"} <= set(other.shifted)
    assert other.new == 16
    out = capsys.readouterr()
    assert "1 skipped" in out.out + out.err
    kept = json.loads((place / "of_other.json").read_text())
    assert kept["clips"] == {"reference": other.reference, "new": 16}
    page = (place / "of_other.html").read_text()
    assert "What it comes to" in page
    assert page.count("data:image/png;base64,") == 1
    assert f"below {place / 'other'}" in page
    assert f">{other.clips.name[0].removeprefix(f'{place}/other/')}<" in page
    assert np.quantile(other.own, 0.95) == other.limit
    assert len(other.own) == other.reference
    assert (place / "of_other.md").read_text().startswith("# Drift")


def test_without_the_stores_videos_sizes_are_no_measure(place: Path) -> None:
    found = run(place, "other", videos=None).table.set_index("measure")
    assert found.p[list(drift.FACTS)].isna().all()
    assert found.p[["features", "confidence"]].notna().all()


def test_what_is_not_there_is_one_line(place: Path, tmp_path: Path) -> None:
    with pytest.raises(VidpipeError, match=r"--split test: .* has no clip"):
        run(place, "same", split="test")
    with pytest.raises(VidpipeError, match="has none of the files"):
        run(place, "same", videos=tmp_path)
    words = ["drift", str(place / "same"), "--model", str(place / "model"), "--store", "nowhere"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code != 0
    assert "nowhere" in done.output
