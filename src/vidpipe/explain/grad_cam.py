"""Grad-CAM (Selvaraju et al., ICCV 2017) of a class logit, by captum."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidpipe.errors import VidpipeError
from vidpipe.explain.attention import Answer, block_index, of_the_clip
from vidpipe.methods.base import VideoModel


def grad_cam(
    model: VideoModel, clip: Tensor, target: int, block: int = -1, answer: Answer = of_the_clip
) -> Tensor:
    """(T, gh, gw), fp32 on the CPU, at least 0: evidence for class `target` in a normalised clip
    (1, 3, T, H, W), at the patches that enter the attention of `block`; of what `answer` computes.

    Behind the last block, a patch has no gradient where the class token is classified, so the
    attention's normed input is taken. A channel's weight is its mean gradient over the patches of
    all frames. Raises VidpipeError without captum, for a Swin, and for a method whose backbone runs
    without a graph (EVL).
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise VidpipeError(
            "Grad-CAM needs captum: pip install 'vidpipe[explain]', or leave Grad-CAM out"
        ) from None
    index = block_index(model, block)
    # Modules of its own around the same tensors: the model itself stays as it is.
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    tapped = copy.deepcopy(model, memo)
    grid = model.view.grid
    norm = _TappedNorm(tapped.blocks[index].norm1, clip.shape[2], grid, model.name)
    tapped.blocks[index].module.norm1 = norm
    with torch.enable_grad():
        # Asked of the pixels, so that there is a graph where every weight before the tap is frozen.
        video = clip.detach().requires_grad_()
        cam = LayerGradCam(partial(answer, tapped), norm.patches).attribute(
            video, target=target, relu_attributions=True
        )
    return cast(Tensor, cam).detach()[0, 0].float().cpu()


class _TappedNorm(nn.Module):
    """A block's `norm1`, whose patch tokens pass `patches` as (B, D, T, gh, gw), as captum has them.

    AIM calls it twice; captum keeps the last call, which is that of the spatial attention.
    """

    def __init__(
        self, norm: nn.Module, num_frames: int, grid: tuple[int, int], method: str
    ) -> None:
        super().__init__()
        self.norm, self.num_frames, self.grid, self.method = norm, num_frames, grid, method
        self.patches = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise VidpipeError(
                f"Grad-CAM: {self.method} runs its backbone without gradients; leave Grad-CAM out"
            )
        y = self.norm(x)
        first = y.shape[1] - self.grid[0] * self.grid[1]
        patches = y[:, first:].unflatten(1, self.grid).unflatten(0, (-1, self.num_frames))
        patches = self.patches(patches.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        return torch.cat([y[:, :first], patches.flatten(0, 1).flatten(1, 2)], dim=1)
