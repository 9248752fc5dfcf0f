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
from vidpipe.trained.trained_model import TrainedModel
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
    "map": "mAP",
    "micro_f1": "F1, micro",
    "macro_f1": "F1, macro",
    "subset_accuracy": "all labels of a clip right",
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
        table(("", ""), overview(trained, _form(trained))),
        "## Use\n\n" + _use(trained, parities, shape),
        "## Data\n\n" + _data(trained.classes, facts),
        "## Training\n\n" + training(trained, facts),
        "## Accuracy\n\n" + accuracy(facts.evaluation),
        "## Cost\n\n" + _cost(facts.cost),
        "## Proof of the export\n\n" + _proof(parities, trained.task.score_name),
        "## Limits\n\n" + _limits(trained, exported),
        "## Licences\n\n" + licences(trained, facts.weights_licence),
    ]
    return "\n\n".join(sections) + "\n"


def weights_licence(trained: TrainedModel) -> str | None:
    """What timm says of the weights it lists for this architecture; None where it says nothing."""
    known = getattr(trained.backbone.vit, "pretrained_cfg", None)
    licence = known.get("license") if known else None
    return str(licence) if licence else None


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
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


def _form(trained: TrainedModel) -> str:
    if trained.model.not_mergeable is None:
        return "merged: the adapters are folded into the backbone's own weights"
    return f"adapters kept ({trained.model.not_mergeable})"


def overview(trained: TrainedModel, form: str) -> list[tuple[str, str]]:
    source = (
        sys.modules[type(trained.model).__module__].__doc__ or trained.model.name
    ).splitlines()[0]
    backbone, sampling = trained.backbone, trained.sampling
    height, width = trained.form.sides
    pool = "" if backbone.config.pool == "zoo" else f", pooled by {backbone.config.pool}"
    stride = f" at a stride of {sampling.stride}" if sampling.strategy == "dense" else ""
    return [
        ("method", source),
        ("form", form),
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
        ("output", f"{len(trained.classes)} {trained.task.output}"),
    ]


BY_BOXES = (
    "With vidpipe, `vidpipe predict` on videos, with a file of people's boxes or a person detector."
)
BY_VIDEO = [
    "With vidpipe, a video in and class names out. Nothing in the folder is executed:",
    '    import vidpipe\n\n    clf = vidpipe.load(".")\n    print(clf.predict("clip.mp4", top=5))',
    "The adapter it was made from opens likewise, beside the package as `vidpipe export` leaves it; "
    '`weights="FILE"` says where its backbone is now:',
    '    import vidpipe\n\n    clf = vidpipe.load("../adapter")\n'
    '    print(clf.predict("clip.mp4", top=5))',
]


def _use(trained: TrainedModel, parities: Sequence[Parity], shape: Sequence[object]) -> str:
    """Every indented block runs by itself in the package's folder; a test does that."""
    example = f"clips = torch.zeros({(2, *shape[1:])}, dtype=torch.uint8)  # RGB, not normalised"
    files = {parity.file for parity in parities}
    output = trained.task.output
    finish = ".softmax(-1)" if output == "logits" else ""
    with_boxes = "boxes" in trained.task.inputs
    fed = ", ".join(f'"{name}": {name}' for name in trained.task.inputs)
    named, import_more = ", ".join(trained.task.inputs), ""
    if with_boxes:
        # Of torchvision are the operators of boxes.
        example += (
            "\n    boxes = torch.tensor([[[0.1, 0.2, 0.6, 0.9]]] * 2)  # fractions of the frame"
        )
        import_more = "    import torchvision\n"
    parts = [
        *([BY_BOXES] if with_boxes else BY_VIDEO),
        "As a module, with vidpipe on the path, torch, timm and pydantic:",
        "    from pathlib import Path\n\n    import torch\n\n"
        "    from vidpipe.export.programs import PixelModel\n"
        "    from vidpipe.trained.package import load_package\n\n"
        f"    {example}\n"
        '    model = PixelModel(load_package(Path(".")))\n'
        f"    probabilities = model.probabilities({named})",
    ]
    if "model.onnx" in files:
        parts += [
            "With onnxruntime and NumPy; class names are in the metadata property `vidpipe`:",
            "    import numpy as np\n    import onnxruntime\n\n"
            f"    clips = np.zeros({(2, *shape[1:])}, dtype=np.uint8)  # RGB, not normalised\n"
            + (
                "    boxes = np.tile(np.float32([0.1, 0.2, 0.6, 0.9]), (2, 1, 1))\n"
                if with_boxes
                else ""
            )
            + '    session = onnxruntime.InferenceSession("model.onnx")\n'
            f"    {output} = session.run(None, {{{fed}}})[0]",
        ]
    if "model.pt2" in files:
        parts += [
            "With PyTorch alone; class names are in `extra['vidpipe.json']`. `torch.export.load` can "
            "run code that the file's author put there: only for a file from someone you trust. "
            "`vidpipe.export.programs.open_program` opens it after refusing what could run code, and "
            "`model.safetensors` holds numbers only.",
            f"    import torch\n{import_more}\n    {example}\n"
            '    extra = {"vidpipe.json": ""}\n'
            '    model = torch.export.load("model.pt2", extra_files=extra).module()\n'
            f"    probabilities = model({named}){finish}",
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


def training(trained: TrainedModel, facts: Facts) -> str:
    known = facts.training
    decisive = deciding_keys(TrainConfig)
    settings = {k: v for k, v in known.get("train", {}).items() if k in decisive}
    rest = {k: v for k, v in known.items() if k not in ("train", "val_score", *CHOSEN)}
    lines = [
        f"- method: {_options(trained.model.config.model_dump(mode='json'))}",
        f"- settings: {_options(settings) if settings else 'unknown'}",
        f"- augmentation: {_options(_augmentation(trained))}",
    ]
    if all(key in known for key in CHOSEN):
        by = "val_score" if "val_score" in known else "val_top1"
        score = trained.task.score_name if "val_score" in known else "top-1"
        lines.append(
            f"- published: epoch {known['epoch']}, chosen for the highest validation "
            f"{'score' if 'val_score' in known else 'accuracy'} "
            f"({100 * known[by]:.1f} % {score} of one centre view, loss {known['val_loss']:.3g}); "
            "what is measured on these clips is optimistic for that"
        )
    if rest:
        lines.insert(1, f"- {_options(rest)}")
    return "\n".join(lines)


def accuracy(result: Mapping[str, Any]) -> str:
    rows = []
    for key, title in METRICS.items():
        if key not in result:
            continue
        low, high = result.get(f"{key}_low"), result.get(f"{key}_high")
        interval = "-" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
        rows.append((title, f"{100 * result[key]:.1f} %", interval))
    if not rows:
        return "Not evaluated."
    listed = table(("metric", "value", "95 % interval"), rows)
    return f"On {result.get('clips', 0):.0f} validation clips.\n\n{listed}"


def _cost(cost: Mapping[str, Any]) -> str:
    if not cost:
        return "Not counted."
    return table(
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


def _proof(parities: Sequence[Parity], score: str) -> str:
    rows = []
    for p in parities:
        top1 = "-" if p.top1 is None or p.top1_fp32 is None else f"{100 * p.top1:.2f} %"
        change = "-" if top1 == "-" else f"{100 * (p.top1 - p.top1_fp32):+.2f}"  # type: ignore[operator]
        agreement = f"{100 * p.top1_agreement:.1f} %"
        largest = f"{p.max_abs_difference:.2g}"
        rows.append((f"`{p.file}`", p.format, p.dtype, largest, agreement, top1, change))
    head = ("file", "format", "type", "max abs d logit", "top-1 agrees", score, "change")
    text = (
        f"Each file, read back from disk, against the trained model (fp32) on {parities[0].clips} "
        "validation clips; tolerance of fp32 logits "
        f"{parities[0].tolerance:g}. "
    )
    if measured := next((p.accuracy_clips for p in parities if p.accuracy_clips), None):
        text += f"Top-1 is of one centre view of {measured} validation clips, the change in points."
    return text.rstrip() + "\n\n" + table(head, rows)


def _limits(trained: TrainedModel, exported: VideoModel) -> str:
    names = (
        "It says every class whose probability reaches its threshold in `config.json`, which was chosen "
        "on training clips: several, one or none. A clip that shows something else may get any."
        if trained.task.has_thresholds
        else "It always names one of its classes: a clip that shows none of them, or several, gets a "
        "name all the same."
    )
    lines = [
        names,
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


def licences(trained: TrainedModel, licence: str | None) -> str:
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
