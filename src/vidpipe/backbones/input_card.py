"""What the card of a backbone's weights says of its pictures: normalisation, size, interpolation, crop.

A file that `vidpipe fetch-weights` wrote brings its card in its header; of others, and of a hub, it is
the zoo's, by the name and the tag. timm's `crop_mode` is not followed: a few cards squash a picture into
a square, which would bend what moves in a video. open_clip's cards crop nothing away.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from timm.models import PretrainedCfg
from torch import nn

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.listing import refuse_unknown
from vidpipe.backbones.openclip import preprocessing
from vidpipe.config.messages import explain
from vidpipe.data.config import Side, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.image_size import sides, size_of
from vidpipe.weights import read_metadata

Mean = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
Std = Annotated[float, Field(ge=1e-3, le=10, allow_inf_nan=False)]


class InputCard(BaseModel):
    """How the zoo evaluates its image model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]
    size: Annotated[Side | tuple[Side, Side], AfterValidator(lambda size: size_of(*sides(size)))]
    interpolation: Literal["bilinear", "bicubic"]
    crop_pct: float = Field(gt=0, le=1)
    """Share of the resized picture's side that is cropped."""

    @classmethod
    def of_model(cls, model: nn.Module, name: str) -> InputCard:
        """Of a timm model's `pretrained_cfg`."""
        return cls.parse(_of_timm(getattr(model, "pretrained_cfg", None) or {}), f"{name}'s card")

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> InputCard:
        """Raises VidpipeError for what no card can say."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise VidpipeError(f"{source}: {explain(error, cls)}") from None

    def header(self) -> dict[str, str]:
        """Of a file of these weights, as `input_card` reads it."""
        lists = {"mean": self.mean, "std": self.std, "input_size": (3, *sides(self.size))}
        texts = {name: ",".join(map(repr, values)) for name, values in lists.items()}
        return {**texts, "interpolation": self.interpolation, "crop_pct": repr(self.crop_pct)}


def input_card(config: BackboneConfig, model: nn.Module | None = None) -> InputCard:
    """Of the weights that `config` names; of a name without a tag, the zoo's first.

    `model`: that of the name, where it has been built: its card is taken where timm's registry has none.
    Raises VidpipeError for an unknown name or tag, or a card that cannot be followed.
    """
    path = Path(config.weights)
    header = read_metadata(path) if path.suffix == ".safetensors" else {}
    if config.source == "open_clip":
        zoos = preprocessing(config, header)
    else:
        registered = _registered(config)
        zoos = _of_timm(getattr(model, "pretrained_cfg", {}) if registered is None else registered)
    own: dict[str, Any] = {k: header[k] for k in ("interpolation", "crop_pct") if k in header}
    own |= {k: header[k].split(",") for k in ("mean", "std") if k in header}
    if "input_size" in header:
        own["size"] = header["input_size"].split(",")[1:]
    return InputCard.parse(zoos | own, f"{path}: its header" if own else f"{config.name}'s card")


def _registered(config: BackboneConfig) -> dict[str, Any] | None:
    name, _, own_tag = config.name.partition(".")
    refuse_unknown(name)
    tag = config.hub_tag or own_tag
    try:
        card = timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    except RuntimeError:  # no such tag
        tags = ", ".join(full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*"))
        raise VidpipeError(
            f"backbone: timm has no weights {tag!r} of {name}; it has {tags or 'none'}"
        ) from None
    return None if card is None else card.to_dict()


def _of_timm(card: Mapping[str, Any]) -> dict[str, Any]:
    """What it does not say is timm's default."""
    card = {**PretrainedCfg().to_dict(), **card}
    own = {key: card[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    return {**own, "size": size_of(*card["input_size"][-2:])}


def completed(transform: TransformConfig, source: BackboneConfig | InputCard) -> TransformConfig:
    """`transform` with what it leaves to the card of the weights, which is looked up only for that."""
    if transform.complete:
        return transform
    card = source if isinstance(source, InputCard) else input_card(source)
    own = {
        "size": card.size if transform.size is None else transform.size,
        "interpolation": _own(transform.interpolation, card.interpolation),
        "crop_pct": _own(transform.crop_pct, card.crop_pct),
    }
    try:
        return TransformConfig.model_validate({**transform.model_dump(), **own})
    except ValidationError as error:
        raise VidpipeError(explain(error, TransformConfig, "transform")) from None


def _own(value: Any, card: Any) -> Any:
    return card if value == "card" else value
