"""The one way to a new video model: a method on a backbone, from Python as from params.yaml."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError
from torch import nn

from vidpipe.backbones.config import RANDOM, BackboneConfig, Pool
from vidpipe.backbones.input_card import completed
from vidpipe.backbones.text_tower import ClassTexts, class_texts
from vidpipe.backbones.zoo import (
    Backbone,
    copied_backbone,
    load_backbone,
    random_backbone,
)
from vidpipe.config.messages import explain, nearest
from vidpipe.data.config import TransformConfig
from vidpipe.data.model_input import InputForm
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size
from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import MethodConfig
from vidpipe.methods.prompts import ACTION_PROMPTS, spoken, unsayable
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.methods.text_head import TextHead
from vidpipe.text import printable

CLIP_LR_SCALE = 0.01
"""Of the backbone's own weights when a CLIP is fine-tuned in full."""


def list_methods(pattern: str = "*") -> list[str]:
    """Names of the methods, as `create_model` takes them.

    Args:
        pattern: of file names, such as `"*adapter"`.

    Returns:
        The names that match, in the registry's order.

    Example:
        >>> import vidpipe
        >>> vidpipe.list_methods("*i*")[:4]
        ['linear_probe', 'aim', 'zeroi2v', 'full_finetune']
    """
    return [name for name in METHODS if fnmatchcase(name, pattern)]


def create_model(
    method: str,
    backbone: str | nn.Module,
    *,
    num_classes: int,
    num_frames: int,
    weights: str | Path | None = None,
    img_size: Size | None = None,
    interpolation: str = "bilinear",
    crop_pct: float | str = 1.0,
    pool: Pool = "zoo",
    classes: Sequence[str] | None = None,
    **options: Any,
) -> VideoModel:
    """A video model: `method` on a frozen image transformer.

    Args:
        method: one of `list_methods()`.
        backbone: a name of `list_backbones()`, or a timm ViT or Swin, which is copied and not changed.
        num_classes: of the head.
        num_frames: frames of a clip, T.
        weights: a local .safetensors, .pt or .pth file; `"hub"` or `"hub:TAG"` downloads; None leaves a
            named backbone random, with a warning. A module brings its own.
        img_size: input in pixels, one number for a square or (height, width); None: the size that the
            backbone was made for.
        interpolation: of `model.preprocess`: `"bilinear"`, as in the papers, `"bicubic"`, or `"card"`
            for what the backbone's weights were made with.
        crop_pct: share of the resized frame that `model.preprocess` crops; 1.0 as in the papers, or
            `"card"`.
        pool: what the feature of a frame is made of: `"zoo"`, as the zoo makes it, `"token"`, the class
            token, or `"avg"`, the mean of patches. timm's DINOv3 has the mean, its authors the token.
        classes: names of the `num_classes` classes; needed where the head is made of their texts
            (`zero_shot`, `head_init="text"`).
        options: of the method, as under `methods.NAME` in params.yaml, such as `bottleneck_ratio=0.25`.

    Returns:
        A model from (B, 3, T, h, w) normalised clips to (B, num_classes) logits, in fp32 and in training
        mode. `model.preprocess(frames)` makes its input,
        `model.parameter_groups(lr=..., weight_decay=...)` what an optimizer takes.

    Raises:
        VidpipeError: for an unknown name (with the nearest valid one), an option or size that is
            impossible, weights that are missing or do not fit, or a backbone with a method already.

    Example:
        >>> import torch, vidpipe
        >>> from vidpipe.backbones.still import WEIGHTS
        >>> model = vidpipe.create_model(
        ...     "st_adapter",
        ...     "vit_still_patch12_48",
        ...     num_classes=4,
        ...     num_frames=8,
        ...     weights=WEIGHTS,
        ...     bottleneck_ratio=0.25,
        ... )
        >>> frames = torch.randint(0, 256, (2, 8, 3, 60, 80), dtype=torch.uint8)
        >>> model(model.preprocess(frames)).shape
        torch.Size([2, 4])
    """
    config = method_config(method, options)
    for name, value in (("num_classes", num_classes), ("num_frames", num_frames)):
        _refuse_impossible(name, value)
    wanted = _transform(img_size, interpolation, crop_pct)
    if pool not in get_args(Pool):
        raise VidpipeError(f"pool: {pool!r}, expected one of {', '.join(get_args(Pool))}")
    if isinstance(backbone, nn.Module):
        _refuse_second_method(backbone)
        if weights is not None:
            raise VidpipeError(
                f"weights: {weights} given, but the backbone is a module, which has its own; leave it "
                "out, or name the backbone"
            )
        loaded, size, card = copied_backbone(backbone, wanted.size, pool)
        transform = completed(wanted.model_copy(update={"size": size}), card)
    elif isinstance(backbone, str):
        named = BackboneConfig.of(backbone, RANDOM if weights is None else str(weights), pool)
        transform = completed(wanted, named)
        load = random_backbone if weights is None else load_backbone
        loaded = load(named, InputForm.of(transform).size)
    else:
        raise VidpipeError(
            f"backbone: a {type(backbone).__name__}, expected a name of vidpipe.list_backbones() or a "
            "timm module"
        )
    return create_on(
        loaded, InputForm.of(transform), method, num_classes, num_frames, config, classes
    )


def create_on(
    backbone: Backbone,
    form: InputForm,
    method: str,
    num_classes: int,
    num_frames: int,
    config: MethodConfig,
    classes: Sequence[str] | None = None,
) -> VideoModel:
    """The model before its training: `build_on`, with the options that depend on the backbone, and a
    head from the texts of `classes` where the config says so."""
    if config.pretrained_lr_scale is None:
        clip = "clip" in backbone.config.name or backbone.config.source == "open_clip"
        scale = CLIP_LR_SCALE if clip and method == "full_finetune" else 1.0
        config = config.model_copy(update={"pretrained_lr_scale": scale})
    if config.head_init != "text":
        return build_on(backbone, form, method, num_classes, num_frames, config)
    prompts = config.prompts or ACTION_PROMPTS
    texts = _texts(backbone.config, method, num_classes, classes, prompts)
    config = config.model_copy(update={"prompts": prompts})  # the card names them
    model = build_on(backbone, form, method, num_classes, num_frames, config)
    cast(TextHead, model.head).read(texts)
    return model


def _texts(
    backbone: BackboneConfig,
    method: str,
    num_classes: int,
    classes: Sequence[str] | None,
    prompts: Sequence[str],
) -> ClassTexts:
    """The class texts of a new model. Names that nobody would say are warned of."""
    asked = f"method {method}" if method == "zero_shot" else f"methods.{method}.head_init: text"
    if classes is None or isinstance(classes, str) or len(classes) != num_classes:
        got = "none were given" if classes is None else f"{len(classes)} were given"
        raise VidpipeError(f"{asked} needs the names of the {num_classes} classes, and {got}")
    texts = class_texts(backbone, [spoken(name) for name in classes], prompts, asked)
    if odd := unsayable(classes):
        shown = ", ".join(map(printable, odd[:4])) + (", ..." if len(odd) > 4 else "")
        warnings.warn(
            f"{asked}: {len(odd)} of {len(classes)} class names are none that a person would "
            f"say of a picture ({shown}), so their texts mean little; rename the classes",
            stacklevel=4,
        )
    return texts


def build_on(
    backbone: Backbone,
    form: InputForm,
    method: str,
    num_classes: int,
    num_frames: int,
    config: MethodConfig,
) -> VideoModel:
    """`build_method`, and what its input has to be: `model.backbone` and `model.form`."""
    model = build_method(method, backbone.vit, num_classes, num_frames, config)
    model.backbone, model.form = backbone, form
    for vit in (backbone.vit, model.vit):
        vit.vidpipe_method = method  # type: ignore[assignment]
    return model


def method_config(method: str, options: dict[str, Any]) -> MethodConfig:
    """`options` checked by the schema of `method`. Raises VidpipeError with the nearest valid name."""
    if method not in METHODS:
        raise VidpipeError(f"method {method!r}: no such method{nearest(method, METHODS)}")
    try:
        return METHODS[method].Config.model_validate(options)
    except ValidationError as error:
        raise VidpipeError(explain(error, METHODS[method].Config, method)) from None


def _transform(size: Any, interpolation: Any, crop_pct: Any) -> TransformConfig:
    """The arguments as the schema has them. Raises VidpipeError."""
    given = {"size": size, "interpolation": interpolation, "crop_pct": crop_pct}
    try:
        return TransformConfig.model_validate(given)
    except ValidationError as error:
        line = explain(error, TransformConfig)
        raise VidpipeError(line.replace("size:", "img_size:", 1)) from None


def _refuse_second_method(module: nn.Module) -> None:
    name = (
        module.name if isinstance(module, VideoModel) else getattr(module, "vidpipe_method", None)
    )
    if name is not None:
        raise VidpipeError(
            f"backbone: it has the method {name} already, and a second one would train on top of its "
            "parts; give the image model itself"
        )


def _refuse_impossible(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise VidpipeError(f"{name}: {value!r}, expected a whole number of at least 1")
