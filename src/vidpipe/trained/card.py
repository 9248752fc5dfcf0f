"""The card of a trained model: `config.json` of an adapter folder and of a package, and the one way
from it and its tensors to the model.

A folder may come from a stranger. Its card is data: no value of it is believed before the schema has
seen it, nor anything allocated before the tensors' header was compared with the model it describes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from torch import nn

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.input_card import Mean, Std
from vidpipe.backbones.zoo import Backbone, architecture, load_backbone
from vidpipe.config.identity import deciding
from vidpipe.config.messages import explain, nearest
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.model_input import InputForm
from vidpipe.errors import VidpipeError
from vidpipe.files import read_json
from vidpipe.methods.config import MethodConfig
from vidpipe.methods.create import build_on
from vidpipe.methods.registry import METHODS, VideoModel, build_method
from vidpipe.tasks.registry import SINGLE_LABEL, TASKS
from vidpipe.text import printable
from vidpipe.trained.frozen import refuse_other_weights, shared
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.version import __version__
from vidpipe.video.config import ExtractConfig
from vidpipe.weights import read_header, read_tensors, refuse_mismatch, state_sha256

Form = Literal["vidpipe-adapter", "vidpipe-model"]
ADAPTER: Form = "vidpipe-adapter"
PACKAGE: Form = "vidpipe-model"
VERSION = 1
TENSORS = {ADAPTER: "adapter.safetensors", PACKAGE: "model.safetensors"}
"""The file of tensors in a folder of each form."""
OWN_BACKBONE = "backbone.safetensors"
"""What an adapter records as its backbone's weights where they lie beside it."""
FRAMES = ("short_side", "fps")
MAX_BYTES = 16 * 2**20
"""Of a config.json; Kinetics-700's has 40 KB."""
MAX_MESSAGE = 600
"""Characters of a description's error: what is wrong may be as long as the file."""


class BackboneCard(BackboneConfig):
    """The image model that a method was trained on, and what goes with its weights."""

    weights: str = ""
    """Of adapters: where the weights were. A package holds them itself."""
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    activation: str
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]


class Card(BaseModel):
    """config.json of a model folder. No Section: what a training has recorded is never refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Form
    version: Literal[1]
    vidpipe: str
    method: str
    method_config: SerializeAsAny[MethodConfig]
    backbone: BackboneCard
    sampling: SamplingConfig
    transform: TransformConfig
    extract: dict[str, Any] = Field({})
    classes: tuple[str, ...] = Field(min_length=1)
    task: str = SINGLE_LABEL.name
    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    """Of several labels a clip, one a class."""
    window_s: float | None = Field(None, gt=0)
    background: str | None = None
    training: dict[str, Any] | None = None
    """Of adapters: how it was trained, for people; `sha256` is of its tensors."""
    merged: bool | None = None
    """Of packages: whether the adapters are folded into the backbone's weights."""
    input: dict[str, Any] | None = None
    output: dict[str, Any] | None = None
    """Of packages, for users of their programs."""

    @field_validator("method", "task")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        known: Collection[str] = METHODS if info.field_name == "method" else TASKS
        if name not in known:
            raise ValueError(f"{name!r} is no {info.field_name}{nearest(name, known)}")
        return name

    @field_validator("method_config", mode="before")
    @classmethod
    def _of_the_method(cls, block: Any, info: ValidationInfo) -> Any:
        if isinstance(block, MethodConfig):
            return block
        method = info.data.get("method")
        if method is None:  # refused already
            return MethodConfig()
        try:
            return METHODS[method].Config.model_validate(block)
        except ValidationError as error:
            raise ValueError(explain(error, METHODS[method].Config)) from None

    @field_validator("transform")
    @classmethod
    def _complete(cls, transform: TransformConfig) -> TransformConfig:
        if not transform.complete:
            raise ValueError("size, interpolation and crop_pct have to be given")
        return transform

    @field_validator("extract")
    @classmethod
    def _frames(cls, extract: dict[str, Any]) -> dict[str, Any]:
        if extract and extract.keys() != set(FRAMES):
            raise ValueError(f"expected {' and '.join(FRAMES)}, or nothing")
        if extract:
            ExtractConfig.model_validate(extract)
        return extract

    @field_validator("classes")
    @classmethod
    def _names(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            twice = next(name for i, name in enumerate(classes) if name in classes[:i])
            raise ValueError(f"{twice!r} appears twice")
        for name in classes:
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise ValueError(f"{name!r} is not text")
        return classes

    @field_validator("thresholds")
    @classmethod
    def _one_a_class(
        cls, thresholds: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
        classes = info.data.get("classes", ())
        if thresholds is not None and len(thresholds) != len(classes):
            raise ValueError(
                f"{len(thresholds)} of them, expected one for each of {len(classes)} classes"
            )
        return thresholds

    @classmethod
    def of(cls, form: Form, trained: TrainedModel, **more: Any) -> Card:
        """The card of `trained`. Raises VidpipeError where no folder could say it."""
        adapter = {"weights": trained.backbone.config.weights} if form == ADAPTER else {}
        model = trained.model
        try:
            return cls(
                format=form,
                version=VERSION,
                vidpipe=__version__,
                method=model.name,
                method_config=model.config,
                backbone=BackboneCard.model_validate({**trained.backbone.card(), **adapter}),
                sampling=trained.sampling,
                transform=trained.transform,
                extract=trained.extract,
                classes=tuple(trained.classes),
                task=trained.task.name,
                thresholds=None if trained.thresholds is None else tuple(trained.thresholds),
                window_s=trained.window_s,
                background=trained.background,
                **more,
            )
        except ValidationError as error:
            raise VidpipeError(f"a model's card: {_short(explain(error, cls))}") from None

    def plain(self) -> dict[str, Any]:
        """What is written to config.json."""
        own = {name: deciding(getattr(self, name)) for name in ("sampling", "transform")}
        values = self.model_dump(mode="json") | own
        if self.format == PACKAGE:
            del values["backbone"]["weights"]
        if self.backbone.pool == "zoo":  # as in cards from before there was a choice
            del values["backbone"]["pool"]
        if self.task == SINGLE_LABEL.name:
            del values["task"]
        return {name: value for name, value in values.items() if value is not None}

    @property
    def form(self) -> InputForm:
        """Of the model's input."""
        return InputForm.of(self.transform)

    # -- from the card to the model -------------------------------------------------------------

    def backbone_config(self, folder: Path, weights: str | None = None) -> BackboneConfig:
        """Of an adapter, to load its backbone from `weights`, or from where the card says."""
        own = self.backbone
        recorded = str(folder / OWN_BACKBONE) if own.weights == OWN_BACKBONE else own.weights
        return self._image_model(weights or recorded)

    def _image_model(self, weights: str) -> BackboneConfig:
        own = self.backbone
        return BackboneConfig(source=own.source, name=own.name, weights=weights, pool=own.pool)

    def build(
        self, folder: Path, weights: str | None = None, backbone: Backbone | None = None
    ) -> TrainedModel:
        """The model that this card and the tensors in `folder` describe, in eval mode.

        An adapter's backbone is loaded from `weights` (default: where the card says), or is
        `backbone`, whose frozen tensors are then shared. Raises VidpipeError where the tensors are
        missing, damaged, not finite or do not fit, or where the backbone's weights are others than
        those it was trained on.
        """
        try:
            return self._build(folder, weights, backbone)
        except VidpipeError as error:  # names in it may be the stranger's
            raise VidpipeError(_short(str(error))) from None

    def _build(self, folder: Path, weights: str | None, backbone: Backbone | None) -> TrainedModel:
        tensors = folder / TENSORS[self.format]
        self._refuse_other_shapes(folder / "config.json", tensors)
        if self.format == PACKAGE:
            config = self._image_model("none")
            own = self._with_normalisation(
                Backbone(
                    architecture(config, self.form.size),
                    config,
                    self.backbone.weights_sha256,
                    self.backbone.activation,
                    (),
                    (),
                )
            )
            model = self._model(own)
            model.load_state_dict(read_tensors(tensors))
        else:
            if backbone is None:
                own = load_backbone(self.backbone_config(folder, weights), self.form.size)
            else:
                own = shared(backbone, self.form.size, self.backbone.pool, folder)
            refuse_other_weights(str(folder), self.backbone.weights_sha256, own)
            own = self._with_normalisation(own)
            model = self._model(own)
            self._load_adapter(model, tensors)
        thresholds = None if self.thresholds is None else list(self.thresholds)
        input_of = (self.sampling, self.transform, self.extract)
        names = list(self.classes)
        found = TrainedModel(model.eval(), own, names, *input_of, TASKS[self.task], thresholds)
        found.window_s, found.background = self.window_s, self.background
        return found

    def _with_normalisation(self, backbone: Backbone) -> Backbone:
        return replace(backbone, mean=self.backbone.mean, std=self.backbone.std)

    def _model(self, backbone: Backbone) -> VideoModel:
        frames, classes = self.sampling.num_frames, len(self.classes)
        return build_on(backbone, self.form, self.method, classes, frames, self.method_config)

    def _load_adapter(self, model: VideoModel, tensors: Path) -> None:
        state = read_tensors(tensors)
        recorded = (self.training or {}).get("sha256")
        if recorded is not None and recorded != (found := state_sha256(state)):
            raise VidpipeError(
                f"{tensors}: not the tensors that were trained: sha256 {found[:12]}, config.json "
                f"has {str(recorded)[:12]!r}; copy the folder again"
            )
        for name in model.carried():  # may be a part of a backbone that others use
            owner, _, leaf = name.rpartition(".")
            parameter = getattr(module := model.get_submodule(owner), leaf)
            setattr(module, leaf, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
        model.load_adapter_state(state, str(tensors))

    def _refuse_other_shapes(self, source: Path, tensors: Path) -> None:
        """Compare the header with a model on the meta device, which takes no memory."""
        header = read_header(tensors)
        config = self._image_model("none")
        try:
            with torch.device("meta"):
                vit = architecture(config, self.form.size)
                model = build_method(
                    self.method,
                    vit,
                    len(self.classes),
                    self.sampling.num_frames,
                    self.method_config,
                )
        except VidpipeError as error:
            raise VidpipeError(f"{source}: {error}") from None
        except Exception as error:  # sizes beyond what a tensor may have raise many kinds
            raise VidpipeError(
                f"{source}: describes no possible model; {_short(_first_line(error))}"
            ) from None
        expected = cast(
            Mapping[str, torch.Tensor],
            model.state_dict() if self.format == PACKAGE else model.carried(),
        )
        refuse_mismatch(str(tensors), expected, header)
        for name, tensor in expected.items():
            if header[name].is_floating_point() != tensor.is_floating_point():
                raise VidpipeError(
                    f"{tensors}: {name} is {header[name].dtype}, expected {tensor.dtype}"
                )


def read_card(folder: Path, form: Form | None = None) -> Card:
    """The card of a model folder; of the given form, where one is given.

    Raises VidpipeError, in one line, for whatever is no card of this version.
    """
    source = folder / "config.json"
    if source.is_file() and source.stat().st_size > MAX_BYTES:
        raise VidpipeError(f"{source}: larger than any description of a model")
    raw = read_json(source)
    if not isinstance(raw, dict):
        raise VidpipeError(
            f"{source}: expected the description of a model, got {_short(repr(raw))}"
        )
    expected = (ADAPTER, PACKAGE) if form is None else (form,)
    got, version = raw.get("format"), raw.get("version")
    if got not in expected or version != VERSION or isinstance(version, bool):
        raise VidpipeError(
            f"{source}: format {_short(repr(got))} version {_short(repr(version))}, expected "
            f"{' or '.join(map(repr, expected))} version {VERSION}"
        )
    try:
        return Card.model_validate(raw)
    except ValidationError as error:
        reason = _short(explain(error, Card))
        raise VidpipeError(f"{source}: not a complete description of a model; {reason}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _short(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]} ..."
