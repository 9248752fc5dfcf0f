"""Any class name can be drawn: it is text, not a formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from vidpipe.viz import comparison, plots
from vidpipe.viz.data import plot_contact_sheet, plot_data_stats

# The first two are no formulas that matplotlib can parse; the third is one, the rest are hostile.
NAMES = [r"$\frac{x$", "a$_$", "$x^2$", "\x1b[2J\x00", "<b>|\n|</b>", "日本 \\ %s {0}"]


def drawings(path: Path) -> dict[str, object]:
    """Every picture that has names of classes or methods in it."""
    count = len(NAMES)
    matrix = torch.eye(count, dtype=torch.int64) * 3
    rng = np.random.default_rng(0)
    clips = pd.DataFrame(
        {name: rng.uniform(50, 60, 9) for name in ("duration", "width", "height")}
        | {"source_bytes": rng.uniform(2e4, 3e4, 9), "nbytes": rng.uniform(2e4, 3e4, 9)}
    )
    counts = pd.DataFrame({"train": range(count), "val": range(count)}, index=NAMES)
    per_class = pd.DataFrame(rng.random((count, count)), index=NAMES, columns=NAMES)
    differences = pd.DataFrame({"class": NAMES, "difference": rng.uniform(-1, 1, count)})
    table = pd.DataFrame({"method": NAMES, "tunable_m": 1.0, "gflops": 2.0, "top1": 0.5})
    for order in comparison.ORDER_NAMES:
        table[f"{order}_top1"] = rng.random(count)
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "val_top1": [0.1, 0.2]})
    video = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    name = NAMES[0]
    return {
        "confusion": lambda: plots.plot_confusion(matrix, NAMES, name, path),
        "data": lambda: plot_data_stats(counts, clips, name, path),
        "sheet": lambda: plot_contact_sheet([(n, video) for n in NAMES], name, path),
        "per class": lambda: comparison.plot_per_class(per_class, path),
        "differences": lambda: comparison.plot_class_differences(differences, name, name, path),
        "parameters": lambda: comparison.plot_accuracy_against_parameters(table, path),
        "gflops": lambda: comparison.plot_accuracy_against_gflops(table, path),
        "time": lambda: comparison.plot_use_of_time(table, path),
        "ratios": lambda: comparison.plot_ratios(table, "top1", name, name, path),
        "curves": lambda: comparison.plot_curves(dict.fromkeys(NAMES, history), path),
    }


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("kind", list(drawings(Path())))
def test_a_name_is_text_wherever_it_is_drawn(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[Text] = []
    real = Figure.savefig

    def keeping(figure: Figure, *args: object, **kwargs: object) -> None:
        real(figure, *args, **kwargs)
        texts.extend(figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", keeping)
    drawings(tmp_path / "picture.png")[kind]()
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 200
    assert any(NAMES[0] in text.get_text() for text in texts)
    assert not [text for text in texts if text.get_parse_math()]
    assert not [text for text in texts if r"\mathdefault" in text.get_text() and text.get_visible()]
