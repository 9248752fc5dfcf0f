"""A checkpoint of the authors' released code -> an adapter folder on the user's own backbone file.

Only the trained tensors are taken over. The frozen ones must equal the backbone's, or the adapters
would sit on features that they never saw.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from timm.models import VisionTransformer
from torch import Tensor, nn

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import Backbone, load_backbone
from vidpipe.config.messages import explain
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.model_input import InputForm
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.interop.method_options import method_config
from vidpipe.interop.names import depth_of, frames_of, grid_of, translate
from vidpipe.methods.config import AIMConfig, STAdapterConfig, ZeroI2VConfig
from vidpipe.methods.create import build_on
from vidpipe.methods.registry import VideoModel
from vidpipe.trained.adapter import save_adapter
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.weights import read_weights, refuse_mismatch, refuse_not_finite

IMPORTABLE = ("aim", "st_adapter", "zeroi2v")
TOLERANCE, TOLERANCE_BF16 = 1e-3, 4e-3
"""Largest relative difference of a frozen weight: OpenAI's are fp16, and some copies are rounded."""


@dataclass(frozen=True)
class ImportOptions:
    """What the tensors cannot tell. None: not given, which is refused where it is needed."""

    num_frames: int | None = None
    adapter_scale: float | None = None
    stdha: Mapping[str, Any] | None = None
    """ZeroI2V's head shifts in the authors' keywords, such as {"shift_div": 12}."""
    heads: int | None = None
    size: int | None = None
    """Square input in pixels; the position grid tells it where the checkpoint has one."""
    classes: tuple[str, ...] | None = None
    sampling: str | None = None
    """uniform or dense."""
    stride: int | None = None


@dataclass(frozen=True)
class Released:
    """What a file holds, by our names, in fp32."""

    file: Path
    method: str
    state: dict[str, Tensor]
    tolerance: float

    @property
    def whole(self) -> bool:
        """Whether the frozen backbone is there too; ST-Adapter's code saves the trained part only."""
        return any(n.startswith("vit.") for n in self.state)


def import_checkpoint(
    file: Path, method: str, backbone: BackboneConfig, options: ImportOptions, out: Path
) -> dict[str, str]:
    """Write the adapter folder `out`; returns what was found, for the user to check.

    Raises VidpipeError for files that cannot be read without pickled code, another method or
    backbone, and options that are missing or contradict the tensors.
    """
    released = read_released(file, method)
    with _named(file):
        loaded = load_backbone(backbone, image_size(released, options))
        trained = bind(released, loaded, options)
    save_adapter(out, trained, {"imported_from": file.name})
    return describe(trained, released)


def read_released(file: Path, method: str) -> Released:
    if method not in IMPORTABLE:
        raise ArgumentError("method", f" {method}: expected one of {', '.join(IMPORTABLE)}")
    try:
        raw, _ = read_weights(file)
    except VidpipeError as error:
        if file.is_file() and file.suffix != ".safetensors":
            raise VidpipeError(
                f"{error} (files with pickled objects are never opened: where you trust it, save "
                "its `state_dict` or `model` alone into a new file)"
            ) from None
        raise
    tensors = [t for t in raw.values() if isinstance(t, Tensor)]
    bf16 = any(t.dtype == torch.bfloat16 for t in tensors)
    with _named(file):
        state, _ = translate(raw, method)
    refuse_not_finite(str(file), state)
    if not any(name.startswith("adapters.") for name in state):
        raise VidpipeError(f"{file}: {_no_adapters(method)}")
    return Released(file, method, state, TOLERANCE_BF16 if bf16 else TOLERANCE)


def _no_adapters(method: str) -> str:
    if method != "zeroi2v":
        return f"no adapters of {method}; was it saved by another method's code?"
    return (
        "no adapters: the blocks of a merged model are not the backbone's any more; import the "
        "unmerged checkpoint, or use vidpipe.interop.build_from_reference"
    )


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Name the file and the option where the reader of state dicts can only say `checkpoint`."""
    try:
        yield
    except ArgumentError:
        raise
    except VidpipeError as error:
        text = str(error)
        if text.startswith("meta.stdha"):
            raise ArgumentError("stdha", text.removeprefix("meta.stdha")) from None
        raise VidpipeError(re.sub("^checkpoint: ", lambda _: f"{file}: ", text)) from None


def image_size(released: Released, options: ImportOptions) -> int:
    """Pixels a side that the adapters were trained on."""
    patches = released.state.get("vit.patch_embed.proj.weight")
    if patches is None or "vit.pos_embed" not in released.state:
        if options.size is None:
            raise ArgumentError(
                "size",
                f" is missing: {released.file} has no position grid to read the input size from",
            )
        return options.size
    size = grid_of(released.state) * patches.shape[-1]
    if options.size not in (None, size):
        raise ArgumentError(
            "size", f" {options.size}: {released.file} has a grid for {size} pixels"
        )
    return size


def bind(released: Released, backbone: Backbone, options: ImportOptions) -> TrainedModel:
    """The released adapters on `backbone`, in eval mode."""
    method, state = released.method, released.state
    meta = _meta(released, options)
    _refuse_other_architecture(released, backbone, options.heads)
    frames = frames_of(state, meta)
    config = method_config(method, state, meta)
    if options.num_frames not in (None, frames):
        raise ArgumentError(
            "num_frames",
            f" {options.num_frames}: {released.file} was trained with {frames} frames",
        )
    classes = _classes(released, options.classes)
    size = _plain_vit(backbone).patch_embed.img_size
    assert size is not None  # a plain ViT of `load_backbone` always has one
    try:
        sampling = _sampling(method, frames, options)
        transform = TransformConfig(size=size[0])
    except ValidationError as error:
        raise VidpipeError(f"{released.file}: {explain(error, SamplingConfig)}") from None
    model = build_on(backbone, InputForm.of(transform), method, len(classes), frames, config)
    _take_over(released, backbone, model)
    return TrainedModel(model.eval(), backbone, classes, sampling, transform)


def _meta(released: Released, options: ImportOptions) -> dict[str, Any]:
    """The options as the authors' keywords, none of them guessed."""
    method, meta = released.method, {}
    scaled, shifted = method in ("aim", "zeroi2v"), method == "zeroi2v"
    needed = [
        ("adapter_scale", options.adapter_scale, scaled),
        ("stdha", options.stdha or None, shifted),
        ("num_frames", options.num_frames, method == "st_adapter"),
    ]
    for key, value, wanted in needed:
        if wanted and value is None:
            raise ArgumentError(
                key,
                f" is missing: {released.file} does not tell it; it is in the authors' "
                "configuration of this checkpoint",
            )
        if value is not None and not wanted and key != "num_frames":
            raise ArgumentError(key, f": {method} has no such option; leave it out")
        meta[key] = value
    return {key: value for key, value in meta.items() if value is not None}


def _plain_vit(backbone: Backbone) -> VisionTransformer:
    if not isinstance(backbone.vit, VisionTransformer):
        raise ArgumentError(
            "backbone",
            f" {backbone.config.name}: not a plain ViT, and the authors' checkpoints are of plain ViTs; "
            "AIM's on Swin loads through vidpipe.interop.build_from_reference",
        )
    return backbone.vit


def _refuse_other_architecture(released: Released, backbone: Backbone, heads: int | None) -> None:
    """What weights cannot show, or show too late: sizes, activation, norm, heads."""
    vit, state = _plain_vit(backbone), released.state
    name = f" {backbone.config.name}"
    width, depth = vit.embed_dim, len(vit.blocks)
    theirs = state["head.weight"].shape[1]
    if theirs != width:
        raise ArgumentError("backbone", f"{name}: width {width}, but {released.file} has {theirs}")
    if released.whole and (theirs := depth_of(state)) != depth:
        raise ArgumentError("backbone", f"{name}: {depth} blocks, but {released.file} has {theirs}")
    own_heads = cast(Any, vit.blocks[0]).attn.num_heads
    if heads not in (None, own_heads):
        raise ArgumentError("heads", f" {heads}: backbone{name} has {own_heads} heads a block")
    # ST-Adapter's code knows CLIP only, and its file holds nothing that would tell.
    clip = "vit.norm_pre.weight" in state or not released.whole
    activation, eps = ("quickgelu", 1e-5) if clip else ("gelu", 1e-6)
    kind = "CLIP" if clip else "ImageNet"
    if clip == isinstance(vit.norm_pre, nn.Identity):
        raise ArgumentError(
            "backbone", f"{name}: not a {kind} ViT, on which {released.file} was trained"
        )
    if backbone.activation != activation:
        hint = "; choose its quickgelu variant" if clip else ""
        raise ArgumentError(
            "backbone",
            f"{name}: activation {backbone.activation}, but the authors' {kind} ViT has "
            f"{activation}{hint}",
        )
    if (own_eps := getattr(vit.norm, "eps", None)) != eps:
        raise ArgumentError(
            "backbone", f"{name}: norm eps {own_eps}, but the authors' {kind} ViT has {eps}"
        )


def _classes(released: Released, names: tuple[str, ...] | None) -> list[str]:
    count = released.state["head.weight"].shape[0]
    if names is None:
        digits = len(str(count - 1))
        return [f"class_{index:0{digits}}" for index in range(count)]
    if len(names) != count:
        raise ArgumentError(
            "classes", f": {len(names)} names, but the head of {released.file} has {count} classes"
        )
    if len(set(names)) != count:
        raise ArgumentError("classes", ": a name appears twice")
    return list(names)


def _sampling(method: str, frames: int, options: ImportOptions) -> SamplingConfig:
    """Which frames of a video the model was trained on, which the tensors do not tell."""
    strategy = options.sampling
    if strategy not in ("uniform", "dense"):
        got = "is missing" if strategy is None else f"{strategy}: unknown"
        raise ArgumentError("sampling", f" {got}; expected uniform (SSv2) or dense (Kinetics)")
    if strategy == "dense" and options.stride is None:
        raise ArgumentError("stride", " is missing: dense sampling takes frames at a stride")
    if strategy == "uniform" and options.stride is not None:
        raise ArgumentError("stride", ": uniform sampling has none; leave it out")
    return SamplingConfig.model_validate(
        {
            "strategy": strategy,
            "num_frames": frames,
            "short_clips": "repeat_last" if method == "st_adapter" else "loop",
            **({} if options.stride is None else {"stride": options.stride}),
        }
    )


def _take_over(released: Released, backbone: Backbone, model: VideoModel) -> None:
    trained = set(model.adapter_state())
    own, state = model.state_dict(), released.state
    expected = own if released.whole else {name: own[name] for name in trained}
    if released.whole and (grid := state.get("vit.pos_embed")) is not None:
        theirs, ours = grid.shape[1], own["vit.pos_embed"].shape[1]
        if theirs != ours:
            raise VidpipeError(
                f"{released.file}: {theirs} position embeddings, the backbone has {ours}"
            )
    refuse_mismatch(str(released.file), expected, state)
    frozen = [name for name in expected if name not in trained]
    far = [n for n in frozen if not _close(state[n], own[n], released.tolerance)]
    if far:
        more = f" and {len(far) - 3} more" if len(far) > 3 else ""
        hint = (
            "; its position grid may have been resized, which the authors' code does not do"
            if far == ["vit.pos_embed"]
            else ""
        )
        raise VidpipeError(
            f"{backbone.config.weights}: not the weights that {released.file} was trained on; "
            f"different: {', '.join(far[:3])}{more}{hint}"
        )
    model.load_adapter_state({n: state[n] for n in trained}, str(released.file))


def _close(theirs: Tensor, own: Tensor, tolerance: float) -> bool:
    """Equal but for rounding. Values near zero are compared with the tensor's usual size."""
    own = own.float()
    floor = tolerance * own.abs().mean().item() + 1e-7
    return torch.allclose(theirs, own, rtol=tolerance, atol=floor)


def describe(trained: TrainedModel, released: Released) -> dict[str, str]:
    model, config = trained.model, trained.model.config
    card = {
        "method": model.name,
        "backbone": f"{trained.backbone.config.name}: width {model.width}, "
        f"{len(model.blocks)} blocks, {trained.transform.size} pixels",
        "frozen weights": "equal to the backbone's"
        if released.whole
        else "not in the checkpoint, so NOT compared with the backbone's",
        "frames": f"{model.num_frames}, {trained.sampling.strategy}"
        + (f" at stride {trained.sampling.stride}" if trained.sampling.strategy == "dense" else ""),
        "classes": f"{len(trained.classes)} ({', '.join(trained.classes[:3])}, ...)",
    }
    if isinstance(config, AIMConfig):
        card["temporal adapters"] = str(config.num_temporal_adapters)
        card["scale"] = f"{config.scale:g}"
    if isinstance(config, STAdapterConfig):
        placed = config.placements(len(model.blocks))
        for position in config.positions:
            blocks = [str(index) for index, at in placed if at == position]
            card[f"adapters {position}"] = f"blocks {', '.join(blocks)}"
        card["kernel"] = "x".join(str(k) for k in config.kernel_size)
    if isinstance(config, ZeroI2VConfig):
        card["adapters"] = ", ".join(config.adapters)
        card["scale"] = f"{config.scale:g}"
        card["channels: offset"] = ", ".join(f"{c}: {dt}" for c, dt in config.channel_offsets or ())
    card["bottleneck ratio"] = f"{getattr(config, 'bottleneck_ratio'):g}"  # noqa: B009
    return card
