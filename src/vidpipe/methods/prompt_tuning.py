"""Visual prompt tuning, deep (Jia et al., ECCV 2022): learned tokens beside the patches, in every block.

Block i sees `[prefix, prompts_i, patches]`; its outputs at the prompts are dropped, and block i + 1
gets its own. ST-Adapter's Table 1 has it on video as 128 tokens a block, frame by frame (1.18 M).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vidpipe.backbones.block import BlockView
from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import PromptTuningConfig


class PromptTuning(VideoModel):
    name = "prompt_tuning"
    Config = PromptTuningConfig
    config: PromptTuningConfig
    order_blind = True
    not_mergeable = "its prompts are tokens, not weights of a layer"
    starts_as_image_model = False

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: PromptTuningConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        self.prompts = nn.Parameter(torch.empty(len(self.blocks), config.num_tokens, self.width))
        # The scale of a Xavier-initialised patch embedding's weight, as in the released code.
        bound = math.sqrt(6 / (3 * math.prod(self.view.patch_size) + self.width))
        nn.init.uniform_(self.prompts, -bound, bound)
        self.declare(self.prompts)

    def block(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        prefix = self.view.num_prefix_tokens
        end = prefix + self.config.num_tokens
        prompts = self.prompts[index].to(x.dtype).expand(x.shape[0], -1, -1)
        kept = self.tokens_needed(index)
        x = block(torch.cat([x[:, :prefix], prompts, x[:, prefix:]], dim=1), kept)
        return x if kept is not None else torch.cat([x[:, :prefix], x[:, end:]], dim=1)
