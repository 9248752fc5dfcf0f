"""What the Swin forms of the methods share, and the linear probe's.

A Swin has no class token and four widths: tokens are (B*T, H, W, C), and frame features are the
mean of the normed tokens of the last stage.
"""

from __future__ import annotations

import re
from typing import cast

from timm.models import SwinTransformer
from torch import Tensor, nn

from vidpipe.backbones.ops import fold_frames
from vidpipe.backbones.swin import (
    WindowView,
    blocks_of_stage,
    patch_embed_of,
    stages_of,
    with_tubelets,
)
from vidpipe.backbones.swin_v2 import window_view
from vidpipe.errors import VidpipeError
from vidpipe.methods.base import MethodConfig, VideoModel
from vidpipe.methods.config import LinearProbeConfig
from vidpipe.methods.linear_probe import LinearProbe


class SwinModel(VideoModel):
    """A `VideoModel` around a Swin. Its attribute `vit` is the Swin; blocks are numbered through."""

    def __init__(
        self, swin: nn.Module, num_classes: int, num_frames: int, config: MethodConfig
    ) -> None:
        if cast(
            SwinTransformer, swin
        ).dynamic_img_size:  # its blocks hold no attention mask to read
            raise VidpipeError("a Swin must be for one image size: leave strict_img_size on")
        # By name: a Swin form may also inherit from its ViT form, whose init is for ViTs.
        VideoModel.__init__(self, swin, num_classes, num_frames, config)
        self.windows = [window_view(b) for s in stages_of(self.swin) for b in blocks_of_stage(s)]

    @property
    def swin(self) -> SwinTransformer:
        return cast(SwinTransformer, self.vit)

    @property
    def whole_grid(self) -> str | None:
        return "the windows of a Swin are full"

    @property
    def blocks(self) -> list[WindowView]:  # type: ignore[override]
        return self.windows

    @property
    def stage_of_block(self) -> list[int]:
        return [i for i, stage in enumerate(stages_of(self.swin)) for _ in stage.blocks]

    @property
    def place_in_stage(self) -> list[int]:
        """Of each block, counted from the start of its stage."""
        return [i for stage in stages_of(self.swin) for i, _ in enumerate(stage.blocks)]

    def block_of(self, name: str) -> int | None:
        own = re.match(r"vit\.layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.", name)
        if own:  # a stage's downsampling goes with its first block
            return self.stage_of_block.index(int(own[1])) + int(own[2] or 0)
        return super().block_of(name)

    def block(self, index: int, block: WindowView, x: Tensor, num_frames: int) -> Tensor:  # type: ignore[override]
        """Tokens (B*T, H, W, C) through block `index`."""
        return block(x)

    def embed(self, frames: Tensor, num_frames: int) -> Tensor:
        """(B*T, 3, H, W) -> (B*T, H/4, W/4, C)."""
        return cast(Tensor, self.swin.patch_embed(frames))

    def embed_clip(self, video: Tensor) -> tuple[Tensor, int]:
        """Tokens of a (B, 3, T, H, W) clip, and the number of frames they are from now on."""
        num_frames = video.shape[2]
        return self.embed(fold_frames(video), num_frames), num_frames

    def classify(self, x: Tensor, num_frames: int) -> Tensor:
        """Final norm, mean over T, H and W, dropout, linear."""
        feature = self.swin.norm(x).mean((1, 2)).unflatten(0, (-1, num_frames)).mean(1)
        return cast(Tensor, self.head(self.head_dropout(feature)))

    def forward(self, video: Tensor) -> Tensor:
        size, given = patch_embed_of(self.swin).img_size, tuple(video.shape[3:])
        if given != size:
            raise VidpipeError(f"clip has {given} pixels, but the Swin is for {size}")
        x, num_frames = self.embed_clip(video)
        index = 0
        for stage in stages_of(self.swin):
            x = stage.downsample(x)
            for _ in stage.blocks:
                x = self.run_block(index, self.windows[index], x, num_frames)
                index += 1
        return self.classify(x, num_frames)


class TubeletModel(SwinModel):
    """A Swin whose patches span two frames, so that from there on T is half the clip's."""

    def __init__(
        self, swin: SwinTransformer, num_classes: int, num_frames: int, config: MethodConfig
    ) -> None:
        if num_frames % 2:
            raise VidpipeError(
                f"sampling.num_frames: {num_frames}, but {self.name} on a Swin pairs frames; make "
                "it even"
            )
        SwinModel.__init__(self, with_tubelets(swin), num_classes, num_frames, config)

    def embed_clip(self, video: Tensor) -> tuple[Tensor, int]:
        """(B, 3, T, H, W) -> (B*T/2, H/4, W/4, C), T/2."""
        if video.shape[2] != self.num_frames:
            raise VidpipeError(
                f"clip has {video.shape[2]} frames, but {self.name} was trained for "
                f"{self.num_frames}: set sampling.num_frames to that"
            )
        patches = patch_embed_of(self.swin)
        x = patches.proj(video).permute(0, 2, 3, 4, 1).flatten(0, 1)
        return cast(Tensor, patches.norm(x)), self.num_frames // 2


class LinearProbeSwin(SwinModel):
    name = LinearProbe.name
    Config = LinearProbeConfig
    order_blind = True
    not_mergeable = LinearProbe.not_mergeable

    def __init__(
        self, swin: SwinTransformer, num_classes: int, num_frames: int, config: LinearProbeConfig
    ) -> None:
        super().__init__(swin, num_classes, num_frames, config)
        self.declare()
