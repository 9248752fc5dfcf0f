"""What `vidpipe predict` may be given: files, folders, patterns, lists, standard input."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from videos import good_and_bad_videos

from pipeline.tools.prediction_inputs import sources
from vidpipe.errors import VidpipeError


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_and_bad_videos(tmp_path_factory.mktemp("videos"))


def test_inputs_of_every_kind(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["cut.mp4", "deep/empty.mp4", "good0.mp4", "good1.mp4", "good2.mp4", "text.mp4"]
    assert list(sources([str(videos)])) == [str(videos / name) for name in names]
    good = [str(videos / f"good{i}.mp4") for i in range(3)]
    assert list(sources([str(videos / "good*.mp4")])) == good
    assert list(sources([str(videos / "**" / "e*.mp4")])) == [str(videos / "deep" / "empty.mp4")]
    odd = tmp_path / "v[1].mp4"
    odd.touch()
    assert list(sources([str(odd)])) == [str(odd)], "a file's name is no pattern"
    listing = tmp_path / "list.txt"
    listing.write_text(f"# mine\n{good[0]}\n\n  https://example.org/a.mp4 \n")
    expected = [good[0], "https://example.org/a.mp4"]
    assert list(sources([str(listing)])) == expected
    assert list(sources([f"@{listing}", "https://b"])) == [*expected, "https://b"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{good[1]}\n"))
    assert list(sources(["-", "absent.mp4"])) == [good[1], "absent.mp4"]
    for argument, message in [
        (str(tmp_path / "no*.mp4"), "no file matches"),
        ("@nowhere", "nowhere: expected a list of paths, one a line: No such file"),
    ]:
        with pytest.raises(VidpipeError, match=message):
            list(sources([argument]))
    (tmp_path / "none").mkdir()
    with pytest.raises(VidpipeError, match="none: no videos in this folder"):
        list(sources([str(tmp_path / "none")]))
