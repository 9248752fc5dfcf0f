"""What a training says without a terminal: each epoch, or the last where brevity is asked for."""

from __future__ import annotations

import pytest

from pipeline.infra.training_display import TrainingDisplay
from vidpipe.training.metrics import EpochMetrics, EpochTiming


@pytest.mark.parametrize(("brief", "shown"), [(None, [1, 2, 3]), ("0", [1, 2, 3]), ("1", [3])])
def test_lines_of_epochs(
    brief: str | None,
    shown: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VIDPIPE_BRIEF", raising=False)
    if brief is not None:
        monkeypatch.setenv("VIDPIPE_BRIEF", brief)
    with TrainingDisplay("aim", 3) as display:
        for epoch in (1, 2, 3):
            metrics = EpochMetrics(epoch, epoch, 1.0, 0.5, 0.1, None, None)
            display.epoch(metrics, EpochTiming(10.0, 0.0))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ")[0] for line in lines] == [f"aim epoch {e}/3" for e in shown]
