"""A model cut where its training begins: what lies before it is computed once and kept.

The cut is found by running the model, not listed by method. Leading stages (embedding, blocks, pooling)
are frozen as long as no gradient reaches their output and it is, to the bit, the image model's own: a
stage that is adapted, shifted, told its place in time or noisy ends them. A `FrozenReader` reads frozen
blocks by its own account, so all that it reads is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidpipe.backbones.ops import fold_frames
from vidpipe.config.identity import deciding
from vidpipe.config.section import OnlyTraining, mark
from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.methods.frozen_reader import FrozenReader

POOLED = -1
"""The cut behind the pooling: features of frames are kept, and only the head follows."""


class Split(nn.Module):
    """The frozen part of `model` (`frozen`) and its rest (calling it). Parameters are the model's own.

    Args:
        model: a video model on a ViT. Its own forward is `split(split.frozen(video))`, to the bit.

    Raises:
        VidpipeError: where the first block is trained or mixes frames, so that nothing is worth keeping.

    Example:
        >>> from vidpipe.methods.create import create_model
        >>> from vidpipe.backbones.still import WEIGHTS
        >>> model = create_model(
        ...     "linear_probe", "vit_still_patch12_48", num_classes=4, num_frames=8, weights=WEIGHTS
        ... )
        >>> split = Split(model)
        >>> split.what, split.shapes
        ('features of frames', ((8, 96),))
        >>> split(split.frozen(torch.zeros(2, 3, 8, 48, 48))).shape
        torch.Size([2, 4])
    """

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        if not hasattr(model, "view"):
            raise VidpipeError(
                f"train.cache_features: method {model.name} on a Swin is not cut; set it to off"
            )
        self.model = model
        self.cut = 0
        probe = _probe(model)
        if not isinstance(model, FrozenReader):
            self.cut = _cut(model, probe)
            if self.cut == 0:
                raise VidpipeError(
                    f"train.cache_features: method {model.name} trains, or mixes frames, from its first "
                    "block on, so there is nothing to keep; set it to off, or limit `blocks` to the top "
                    "(aim, zeroi2v, lora: with temporal_embedding_at: first_adapted)"
                )
        self.shapes = tuple(tuple(x.shape[1:]) for x in self.frozen(probe))
        """Of what `frozen` gives of one clip."""

    @torch.no_grad()
    def frozen(self, video: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, T, H, W) normalised clips -> fp32 tensors (B, ...) that the training never changes:
        tokens (B, T, N, D), pooled features (B, T, D), or what a `FrozenReader` reads."""
        model = self.model
        if isinstance(model, FrozenReader):
            return tuple(x.float() for block in model.read(video) for x in block)
        num_frames, depth = video.shape[2], len(model.blocks)
        model.view.kept = None
        x = model.embed(fold_frames(video), num_frames)
        x = model.through_blocks(x, num_frames, 0, depth if self.cut == POOLED else self.cut)
        if self.cut == POOLED:
            x = model.view.pool(x)
        return (x.unflatten(0, (-1, num_frames)).float(),)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """What `frozen` gave -> (B, C) logits.

        With `patch_drop`, patches are left out behind the cut: those that stay have seen the others in
        the frozen blocks.
        """
        model = self.model
        model.view.kept = None
        if isinstance(model, FrozenReader):
            return model.decide(self._blocks(features))
        (clips,) = features
        num_frames, x = clips.shape[1], clips.flatten(0, 1)
        if self.cut == POOLED:
            return model.classify_pooled(x, num_frames)
        x = model.drop_patches(x, clips)
        return model.classify(model.through_blocks(x, num_frames, self.cut), num_frames)

    def _blocks(self, features: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Tensors in turn, as many together as a block has."""
        each = cast(FrozenReader, self.model).per_block
        for start in range(0, len(features), each):
            yield tuple(features[start : start + each])

    @property
    def what(self) -> str:
        """What is kept, in words."""
        if isinstance(self.model, FrozenReader):
            return f"what {self.model.name} reads"
        if self.cut == POOLED:
            return "features of frames"
        return f"tokens behind block {self.cut} of {len(self.model.blocks)}"

    @property
    def whole_grid(self) -> str | None:
        """Why no patches can be dropped behind the cut (`train.patch_drop`); None: they can."""
        if self.cut == POOLED or isinstance(self.model, FrozenReader):
            return f"with train.cache_features, {self.what} are all that it sees"
        return self.model.whole_grid

    def identity(self) -> list[Any]:
        """What decides the kept tensors, beside weights, input and machine: plain values."""
        own: list[Any] = [self.what, [list(shape) for shape in self.shapes]]
        if isinstance(self.model, FrozenReader):
            fields = type(self.model.config).model_fields
            config = cast(dict[str, Any], deciding(self.model.config))
            own.append({k: v for k, v in config.items() if not mark(fields[k], OnlyTraining)})
        return own


def _probe(model: VideoModel) -> Tensor:
    """One clip of noise."""
    view, device = model.view, model.head.weight.device
    sides = (grid * patch for grid, patch in zip(view.grid, view.patch_size, strict=True))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, model.num_frames, *sides, generator=generator).to(device)


def _cut(model: VideoModel, video: Tensor) -> int:
    """Number of blocks that are frozen and the image model's own; POOLED: the pooling is, too."""
    view, num_frames, depth = model.view, video.shape[2], len(model.blocks)
    training, now, drop = model.training, model.clip_keys.now, model.patch_drop
    gpus = [video.device] if video.device.type == "cuda" else []
    model.clip_keys.now, model.patch_drop = None, None
    model.train()
    try:
        with torch.random.fork_rng(devices=gpus), torch.enable_grad():
            frames = fold_frames(video)
            view.kept = None
            plain = view.norm_pre(view.embed(frames))
            x = model.embed(frames, num_frames)
            if not _same(x, plain):
                return 0
            for index in range(depth):
                plain = model.blocks[index](x.detach(), model.tokens_needed(index))
                x = model.block(index, model.blocks[index], x, num_frames)
                if not _same(x, plain):
                    return index
            pooled = type(model).classify is VideoModel.classify
            return POOLED if pooled and not view.pool(x).requires_grad else depth
    finally:
        model.train(training)
        model.clip_keys.now, model.patch_drop = now, drop


def _same(x: Tensor, plain: Tensor) -> bool:
    return not x.requires_grad and torch.equal(x, plain)
