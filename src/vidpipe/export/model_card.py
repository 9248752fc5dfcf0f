"""The model card: what the model is, was made from and is good for, as Markdown, from what is known.

No times: two exports of one model give equal bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vidpipe.config.identity import deciding, deciding_keys
from vidpipe.export.packaging import describe
from vidpipe.export.parity import Parity
from vidpipe.methods.base import VideoModel
from vidpipe.text import markdown, printable
from vidpipe.trained.card import TrainedModel
from vidpipe.training.config import TrainConfig


@dataclass(frozen=True)
class Facts:
    """What the pipeline knows beside the model; whatever is empty is said to be unknown."""

    training: Mapping[str, Any] = field(default_factory=dict)
    """`training` of the adapter's config.json."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """eval.json."""
    cost: Mapping[str, Any] = field(default_factory=dict)
    """`cost` of train.json."""
    clips: Mapping[str, int] = field(default_factory=dict)
    """Usable clips by split."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Videos left out, by reason."""
    weights_licence: str | None = None


CHOSEN = ("val_top1", "val_loss")
"""What the adapter of a best epoch says of it."""
METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean class accuracy",
    "in_pair_top1": "own class ranked above its time reversal",
}


def model_card(
    trained: TrainedModel, exported: VideoModel, parities: Sequence[Parity], facts: Facts
) -> str:
    about = describe(trained, exported)
    name, shape = exported.name, about["input"]["shape"]
    sections = [
        f"# Video classifier: {name} on {trained.backbone.config.name}, "
        f"{len(trained.classes)} classes",
        _table(("", ""), _overview(trained, exported)),
        "## Use\n\n" + _use(parities, shape),
        "## Data\n\n" + _data(trained.classes, facts),
        "## Training\n\n" + _training(trained, exported, facts),
        "## Accuracy\n\n" + _accuracy(facts.evaluation),
        "## Cost\n\n" + _cost(facts.cost),
        "## Proof of the export\n\n" + _proof(parities),
        "## Limits\n\n" + _limits(exported, facts),
        "## Licences\n\n" + _licences(trained, facts.weights_licence),
    ]
    return "\n\n".join(sections) + "\n"


def weights_licence(trained: TrainedModel) -> str | None:
    """What timm says of the weights it lists for this architecture; None where it says nothing."""
    known = getattr(trained.backbone.vit, "pretrained_cfg", None)
    licence = known.get("license") if known else None
    return str(licence) if licence else None


def _table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|").replace("\n", " ")


def _code(value: object) -> str:
    """As it is, and no more than that: what is between backticks is no HTML and no link."""
    return "`" + printable(str(value)).replace("`", "'") + "`"


def _options(values: Mapping[str, Any]) -> str:
    told = {k: v for k, v in values.items() if v is not None}
    return ", ".join(_code(f"{key}: {value}") for key, value in sorted(told.items()))


def _overview(trained: TrainedModel, exported: VideoModel) -> list[tuple[str, str]]:
    source = (sys.modules[type(exported).__module__].__doc__ or exported.name).splitlines()[0]
    merged = (
        "merged: the adapters are folded into the backbone's own weights"
        if trained.model.not_mergeable is None
        else f"adapters kept ({trained.model.not_mergeable})"
    )
    backbone, sampling = trained.backbone, trained.sampling
    height, width = trained.form.sides
    pool = "" if backbone.config.pool == "zoo" else f", pooled by {backbone.config.pool}"
    stride = f" at a stride of {sampling.stride}" if sampling.strategy == "dense" else ""
    return [
        ("method", source),
        ("form", merged),
        (
            "backbone",
            f"{backbone.config.source} `{backbone.config.name}`, {backbone.activation}{pool}",
        ),
        ("its weights", f"sha256 of the tensors `{backbone.sha256}`"),
        (
            "input",
            f"{sampling.num_frames} RGB frames of {height} x {width} px, {sampling.strategy} "
            f"sampling{stride}",
        ),
        ("normalisation", f"mean {list(backbone.mean)}, std {list(backbone.std)}"),
        ("output", f"{len(trained.classes)} logits"),
    ]


def _use(parities: Sequence[Parity], shape: Sequence[object]) -> str:
    """Every indented block runs by itself in the package's folder; a test does that."""
    example = f"clips = torch.zeros({(2, *shape[1:])}, dtype=torch.uint8)  # RGB, not normalised"
    files = {parity.file for parity in parities}
    parts = [
        "With vidpipe, a video in and class names out. Nothing in the folder is executed:",
        '    import vidpipe\n\n    clf = vidpipe.load(".")\n    print(clf.predict("clip.mp4", top=5))',
        "The adapter it was made from opens likewise, beside the package as `vidpipe export` leaves it; "
        '`weights="FILE"` says where its backbone is now:',
        '    import vidpipe\n\n    clf = vidpipe.load("../adapter")\n'
        '    print(clf.predict("clip.mp4", top=5))',
        "As a module, with vidpipe on the path, torch, timm and pydantic:",
        "    from pathlib import Path\n\n    import torch\n\n"
        "    from vidpipe.export.programs import PixelModel\n"
        "    from vidpipe.trained.package import load_package\n\n"
        f"    {example}\n"
        '    model = PixelModel(load_package(Path(".")))\n'
        "    probabilities = model(clips).softmax(-1)",
    ]
    if "model.onnx" in files:
        parts += [
            "With onnxruntime and NumPy; class names are in the metadata property `vidpipe`:",
            "    import numpy as np\n    import onnxruntime\n\n"
            f"    clips = np.zeros({(2, *shape[1:])}, dtype=np.uint8)  # RGB, not normalised\n"
            '    session = onnxruntime.InferenceSession("model.onnx")\n'
            '    logits = session.run(None, {"clips": clips})[0]',
        ]
    if "model.pt2" in files:
        parts += [
            "With PyTorch alone; class names are in `extra['vidpipe.json']`. `torch.export.load` can "
            "run code that the file's author put there: only for a file from someone you trust. "
            "`vidpipe.export.programs.open_program` opens it after refusing what could run code, and "
            "`model.safetensors` holds numbers only.",
            f"    import torch\n\n    {example}\n"
            '    extra = {"vidpipe.json": ""}\n'
            '    model = torch.export.load("model.pt2", extra_files=extra).module()\n'
            "    probabilities = model(clips).softmax(-1)",
        ]
    return "\n\n".join(parts)


def _data(classes: Sequence[str], facts: Facts) -> str:
    counts = (
        ", ".join(f"{count} {markdown(split)}" for split, count in facts.clips.items()) or "unknown"
    )
    left_out = ", ".join(
        f"{count} {markdown(reason)}" for reason, count in facts.quarantined.items()
    )
    names = ", ".join(markdown(name) for name in classes)
    return f"Clips: {counts}. Videos left out: {left_out or 'none'}.\n\nClasses: {names}."


def _augmentation(trained: TrainedModel) -> dict[str, Any]:
    """What is drawn in training, and how the frames become the input."""
    values: dict[str, Any] = deciding(trained.transform)
    return {name: value for name, value in values.items() if name != "size"}


def _training(trained: TrainedModel, exported: VideoModel, facts: Facts) -> str:
    known = facts.training
    decisive = deciding_keys(TrainConfig)
    settings = {k: v for k, v in known.get("train", {}).items() if k in decisive}
    rest = {key: value for key, value in known.items() if key not in ("train", *CHOSEN)}
    lines = [
        f"- method: {_options(trained.model.config.model_dump(mode='json'))}",
        f"- settings: {_options(settings) if settings else 'unknown'}",
        f"- augmentation: {_options(_augmentation(trained))}",
    ]
    if all(key in known for key in CHOSEN):
        lines.append(
            f"- published: epoch {known['epoch']}, chosen for the highest validation accuracy "
            f"({100 * known['val_top1']:.1f} % top-1 of one centre view, loss {known['val_loss']:.3g}); "
            "what is measured on these clips is optimistic for that"
        )
    if rest:
        lines.insert(1, f"- {_options(rest)}")
    return "\n".join(lines)


def _accuracy(result: Mapping[str, Any]) -> str:
    rows = []
    for key, title in METRICS.items():
        if key not in result:
            continue
        low, high = result.get(f"{key}_low"), result.get(f"{key}_high")
        interval = "-" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
        rows.append((title, f"{100 * result[key]:.1f} %", interval))
    if not rows:
        return "Not evaluated."
    table = _table(("metric", "value", "95 % interval"), rows)
    return f"On {result.get('clips', 0):.0f} validation clips.\n\n{table}"


def _cost(cost: Mapping[str, Any]) -> str:
    if not cost:
        return "Not counted."
    return _table(
        ("", ""),
        [
            ("parameters, with adapters", f"{cost['total'] / 1e6:.3f} M"),
            ("trained, with the head", f"{cost['tunable'] / 1e6:.3f} M"),
            (
                "beyond backbone and head in this form",
                f"{cost['new_at_inference'] / 1e6:.3f} M",
            ),
            ("multiply-accumulates of one clip", f"{cost['gmacs']:.3g} G"),
        ],
    )


def _proof(parities: Sequence[Parity]) -> str:
    rows = []
    for p in parities:
        top1 = "-" if p.top1 is None or p.top1_fp32 is None else f"{100 * p.top1:.2f} %"
        change = "-" if top1 == "-" else f"{100 * (p.top1 - p.top1_fp32):+.2f}"  # type: ignore[operator]
        agreement = f"{100 * p.top1_agreement:.1f} %"
        largest = f"{p.max_abs_difference:.2g}"
        rows.append((f"`{p.file}`", p.format, p.dtype, largest, agreement, top1, change))
    head = ("file", "format", "type", "max abs d logit", "top-1 agrees", "top-1", "change")
    text = (
        f"Each file, read back from disk, against the trained model (fp32) on {parities[0].clips} "
        "validation clips; tolerance of fp32 logits "
        f"{parities[0].tolerance:g}. "
    )
    if measured := next((p.accuracy_clips for p in parities if p.accuracy_clips), None):
        text += f"Top-1 is of one centre view of {measured} validation clips, the change in points."
    return text.rstrip() + "\n\n" + _table(head, rows)


def _limits(exported: VideoModel, facts: Facts) -> str:
    lines = [
        "It always names one of its classes: a clip that shows none of them, or several, gets a "
        "name all the same.",
        "Accuracy is that of the validation clips above, on one data set, and of the settings that "
        "were chosen by looking at them. Other cameras, places, people and frame rates were not "
        "measured, and probabilities are not calibrated.",
    ]
    if exported.order_blind:
        lines.insert(
            1, "It is blind to the order of frames: a clip and its reverse get the same answer."
        )
    else:
        lines.insert(1, f"It takes exactly {exported.num_frames} frames, in their order.")
    return "\n".join(f"- {line}" for line in lines)


def _licences(trained: TrainedModel, licence: str | None) -> str:
    name = trained.backbone.config.name
    if licence:
        text = (
            f"Weights of the backbone: `{licence}`, by timm's entry for `{name}`. That is of the "
            "weights this entry names; for a file from elsewhere, check its source."
        )
    else:
        text = (
            f"Weights of the backbone `{name}`: unknown. Check where they were published before this "
            "model is passed on; a licence of theirs holds for it, too."
        )
    return (
        text + "\n\nThe videos it was trained on may set terms of their own. vidpipe: Apache-2.0."
    )
