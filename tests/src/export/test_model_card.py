"""What the model card shows runs as it stands there, and names from strangers stay names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from clips import moving
from videos import write_video

from vidpipe.backbones.still import ARCHITECTURE, WEIGHTS
from vidpipe.export.model_card import Facts, model_card
from vidpipe.export.packaging import describe, inference_model, save_package
from vidpipe.export.parity import Parity
from vidpipe.export.programs import write_program
from vidpipe.files import write_text
from vidpipe.methods.create import create_model
from vidpipe.trained import save
from vidpipe.trained.package import load_package, open_model
from vidpipe.trained.trained_model import TrainedModel

T = 4
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "![x](https://evil/pixel)",
    "a|b `c`",
    "\x1b[2J\nup",
    "up",
]


def exported(root: Path, classes: list[str], forms: list[str]) -> tuple[TrainedModel, str]:
    """Adapter and package as `train` and `export` leave them; the package, and its card."""
    torch.manual_seed(0)
    model = create_model(
        *("linear_probe", ARCHITECTURE),
        **{"num_classes": len(classes), "num_frames": T, "weights": WEIGHTS},
    )
    save(model, root / "adapter", classes=classes)
    trained = open_model(root / "adapter")
    served = inference_model(trained.model)
    parities = [Parity(1, 0.0, 1.0, 1e-4)]
    save_package(root / "package", trained, served, *parities)
    for form in forms:
        package = load_package(root / "package")
        file = write_program(
            root / "package", package, form, "fp32", describe(trained, served)
        ).name
        parities.append(Parity(1, 0.0, 1.0, 1e-4, form, "fp32", file))
    training = {"train": {"batch_size": 8}, "imported_from": HOSTILE[2]}
    facts = Facts(training=training, quarantined={HOSTILE[0]: 2})
    card = model_card(trained, served, parities, facts)
    write_text(root / "package" / "MODEL_CARD.md", card)
    return trained, card


def snippets(card: str) -> list[str]:
    blocks = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", card, flags=re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip() for block in blocks]


def test_each_snippet_runs_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    classes = ["left", "right", "up"]
    exported(tmp_path, classes, ["torch_export", "onnx"])
    write_video(tmp_path / "package" / "clip.mp4", moving(20))
    monkeypatch.chdir(tmp_path / "package")
    found = snippets(Path("MODEL_CARD.md").read_text())
    files = ('load(".")', 'load("../adapter")', "load_package", "model.onnx", "model.pt2")
    assert [next(file for file in files if file in code) for code in found] == list(files)
    answers = []
    for code in found:
        names: dict[str, object] = {}
        exec(compile(code, "MODEL_CARD.md", "exec"), names)
        if "clf" in names:
            names["clf"].close()
        else:
            answer = names.get("probabilities", names.get("logits"))
            answers.append(torch.as_tensor(answer))
    printed = capsys.readouterr().out
    assert printed.count("Guess(label='left'") == 2
    module, onnx, pt2 = answers
    assert module.shape == onnx.shape == pt2.shape == (2, 3)
    torch.testing.assert_close(onnx.softmax(-1), module, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pt2, module, atol=1e-4, rtol=1e-4)


def test_safetensors_come_first_and_what_a_pt2_can_do_is_said(tmp_path: Path) -> None:
    _, card = exported(tmp_path, ["a", "b"], ["torch_export"])
    assert card.index("load_package") < card.index("model.pt2")
    assert "`torch.export.load` can run code" in card


def test_class_names_are_no_html_no_picture_no_escape_sequence(tmp_path: Path) -> None:
    _, card = exported(tmp_path, HOSTILE, [])
    assert "<img" not in card
    assert "![x](" not in card
    assert "\x1b" not in card
    (line,) = [line for line in card.splitlines() if line.startswith("Classes: ")]
    assert line == (
        r"Classes: &lt;img src=x onerror=alert(1)&gt;, !\[x\](https://evil/pixel), a\|b \`c\`, "
        r"\\x1b\[2J\\nup, up."
    )
    assert "2 &lt;img" in card
    assert "`imported_from: a|b 'c'`" in card
