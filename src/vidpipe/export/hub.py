"""Writing a model to the Hugging Face Hub; `vidpipe.trained.hub` says what is there, and reads it.

What travels is .safetensors and text. An adapter's card names no path of this machine: its backbone is
written beside it, is named in timm's zoo, or is known by the hash of its weights alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vidpipe.backbones.positions import grid_header
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.export.model_card import (
    Facts,
    accuracy,
    licences,
    overview,
    table,
    training,
    weights_licence,
)
from vidpipe.files import read_json, write_json, write_text
from vidpipe.text import markdown
from vidpipe.trained.adapter import frozen_state
from vidpipe.trained.card import ADAPTER, OWN_BACKBONE, TENSORS, Card, read_card
from vidpipe.trained.hub import FILES, README, HubAddress, client, in_one_line, parse_address
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.weights import state_sha256

INCLUDE = "include"


@dataclass(frozen=True)
class About:
    """What only the person who shares a model knows; empty where it is not said."""

    licence: str | None = None
    """Of the whole, such as `apache-2.0`; None: that of the backbone's weights by timm's entry."""
    dataset: str | None = None
    """Name of the data that it was trained and evaluated on."""
    evaluation: Mapping[str, Any] | None = None
    """eval.json of `vidpipe evaluate`."""


def push(
    folder: Path,
    repo: str,
    *,
    weights: str | None = None,
    backbone: str | None = None,
    about: About = About(),
    branch: str | None = None,
    tag: str | None = None,
    private: bool = False,
) -> HubAddress:
    """Write an adapter folder or a package to a repository, which is made where there is none.

    The model is opened first, so that what is shared is what opens. One commit holds all files; those of
    ours that an earlier one had and this one has not are removed.

    Args:
        folder: of an adapter or a package.
        repo: `OWNER/NAME`, with or without `hf://`.
        weights: where an adapter's backbone is, if not where it says.
        backbone: of an adapter, how others get it: `hub:TAG` (timm's weights of that tag), `include`
            (written beside it), or None: as recorded if that is the hub, else by its hash.
        about: for the repository's page.
        branch: to write to, made where missing; None: main.
        tag: a name for this commit.
        private: of a repository that is made.

    Returns:
        The address with the commit: it always gives this model.

    Raises:
        VidpipeError: in one line, for a folder that is no model or has other weights than it records,
            and where the hub does not let this token write.
    """
    address = parse_address(repo)
    if address.revision is not None:
        raise VidpipeError(f"{repo}: a push makes a new commit; name a branch in place of @")
    card = read_card(folder)
    trained = card.build(folder, weights)
    with tempfile.TemporaryDirectory(prefix="vidpipe-") as scratch:
        _stage(Path(scratch), folder, card, trained, backbone, about, address)
        with in_one_line(str(address)):
            api = client()
            api.create_repo(address.repo, private=private or None, exist_ok=True)
            if branch is not None:
                api.create_branch(address.repo, branch=branch, exist_ok=True)
            done = api.upload_folder(
                repo_id=address.repo,
                folder_path=scratch,
                revision=branch,
                commit_message=f"{card.method} on {card.backbone.name}",
                delete_patterns=[name for name in FILES if not (Path(scratch) / name).exists()],
            )
            commit = str(done.oid)
            if tag is not None:
                api.create_tag(address.repo, tag=tag, revision=commit)
    return address.at(commit)


def _stage(
    target: Path,
    folder: Path,
    card: Card,
    trained: TrainedModel,
    backbone: str | None,
    about: About,
    address: HubAddress,
) -> None:
    """The repository's files in `target`."""
    shutil.copyfile(folder / TENSORS[card.format], target / TENSORS[card.format])
    config = read_json(folder / "config.json")
    if card.format == ADAPTER:
        config["backbone"]["weights"], found = _shared_backbone(card, trained, backbone, target)
        config["backbone"]["weights_sha256"] = found
    elif backbone is not None:
        raise ArgumentError("backbone", f" {backbone}: a package holds its backbone already")
    write_json(target / "config.json", config)
    for name in ("parity.json", "MODEL_CARD.md"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    named = str(config["backbone"].get("weights", ""))
    write_text(target / README, hub_card(card, trained, address, about, named))


def _shared_backbone(
    card: Card, trained: TrainedModel, wanted: str | None, target: Path
) -> tuple[str, str]:
    """What the card says of its backbone's weights where it is read by others: place and hash."""
    own = card.backbone
    sha256 = own.weights_sha256
    if wanted == INCLUDE or (wanted is None and own.weights == OWN_BACKBONE):
        state = frozen_state(trained.backbone, trained.form.size)
        header = grid_header(trained.backbone.vit)
        save_file(state, target / OWN_BACKBONE, metadata=header or None)
        return OWN_BACKBONE, state_sha256(state)
    if wanted is not None:
        if wanted != "hub" and not wanted.startswith("hub:"):
            raise ArgumentError("backbone", f" {wanted}: expected hub:TAG or {INCLUDE}")
        return wanted, sha256
    return (own.weights if own.hub_tag is not None else ""), sha256


def hub_card(
    card: Card, trained: TrainedModel, address: HubAddress, about: About, weights: str
) -> str:
    """README.md of the repository: the hub's metadata, and the page for people."""
    from huggingface_hub import EvalResult, ModelCardData

    adapter = card.format == ADAPTER
    base = _base_model(card, weights)
    relation: dict[str, Any] = (
        {"base_model_relation": "adapter" if adapter else "finetune"} if base else {}
    )
    licence = about.licence or weights_licence(trained)
    results = about.evaluation or {}
    dataset = about.dataset or "validation clips"
    measured = [
        EvalResult(
            task_type="video-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type="accuracy",
            metric_name="top-1 %",
            metric_value=round(100 * float(value), 2),
        )
        for name, value in results.items()
        if name == "top1"
    ]
    data = ModelCardData(
        library_name="vidpipe",
        pipeline_tag="video-classification",
        tags=["vidpipe", card.method, "adapter" if adapter else "package"],
        license=licence,
        base_model=base,
        model_name=address.repo.split("/")[1],
        eval_results=measured or None,
        **relation,
    )
    form = (
        "adapter: what was trained; the backbone stays as it is" if adapter else "the whole model"
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {address.repo.split('/')[1]}: {card.method} on {card.backbone.name}, "
        f"{len(card.classes)} classes",
        table(("", ""), overview(trained, form)),
        "## Use\n\n" + _use(card, address, weights),
        "## Classes\n\n" + ", ".join(markdown(name) for name in card.classes),
        "## Training\n\n" + training(trained, Facts(training=card.training or {})),
        "## Accuracy\n\n" + accuracy(results),
        "## Licences\n\n" + licences(trained, weights_licence(trained)),
    ]
    return "\n\n".join(sections) + "\n"


def _base_model(card: Card, weights: str) -> str | None:
    """The backbone's own repository, where its weights are said to be those of timm's zoo."""
    own = card.backbone
    tag = own.model_copy(update={"weights": weights}).hub_tag
    if own.source != "timm" or tag is None:
        return None
    from timm.models import get_pretrained_cfg

    try:
        known = get_pretrained_cfg(f"{own.name}.{tag}" if tag else own.name)
    except RuntimeError:  # timm knows no such tag
        return None
    return str(known.hf_hub_id) if known is not None and known.hf_hub_id else None


def _use(card: Card, address: HubAddress, weights: str) -> str:
    needs = card.format == ADAPTER and not weights
    option = ', weights="backbone.safetensors"' if needs else ""
    lines = [
        "    import vidpipe\n\n"
        f'    clf = vidpipe.load("{address}@REVISION"{option})\n'
        '    print(clf.predict("clip.mp4", top=5))',
        "REVISION is a commit of this repository, which always gives the same model, a tag or a branch. "
        "Nothing in the repository is executed.",
    ]
    if needs:
        lines.append(
            f"The backbone is not here: a file with the weights of `{card.backbone.name}` whose tensors "
            f"have the sha256 `{card.backbone.weights_sha256}`. Others are refused."
        )
    if card.format != ADAPTER:
        lines.append(
            "`MODEL_CARD.md` has the proof of the export. Its programs (`model.pt2`, `model.onnx`) are "
            "not here: `vidpipe export` makes them, and to open one from a stranger can run code."
        )
    return "\n\n".join(lines)
