"""The view of a Swin V2 block: cosine attention with a continuous position bias, and norms that follow.

x += norm1(out(attend(project(x))));  x += norm2(mlp(x))         (Liu et al., CVPR 2022, section 3.2)

A norm that follows acts on a branch's output, where other models have LayerScale, so it is the view's
`scale1` and `scale2`, and nothing stands before attention and MLP. No paper has adapters on a Swin V2;
ours are where the equations of AIM and ZeroI2V have them: AIM's read and add to what the residual gets,
behind the norm; ZeroI2V's are neighbours of the linear layer that they merge into, before it.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models import SwinTransformer, SwinTransformerV2
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer import WindowAttention as AttentionV1
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.swin_transformer_v2 import WindowAttention as AttentionV2
from torch import Tensor, nn

from vidpipe.backbones.block import mlp_refusal
from vidpipe.backbones.joint_bias import JointBiasView
from vidpipe.backbones.swin import SWINS, WindowView, blocks_of_stage, stages_of
from vidpipe.backbones.view import replaced

MAX_LOGIT_SCALE = math.log(100)


class WindowV2View(JointBiasView, WindowView):
    """A block of Swin V2."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._nothing = nn.Identity()

    @property
    def norm1(self) -> nn.Module:
        return self._nothing

    @property
    def norm2(self) -> nn.Module:
        return self._nothing

    def scale1(self, x: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, self.module).norm1(x))

    def scale2(self, x: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, self.module).norm2(x))

    @property
    def scale(self) -> float:
        return 1.0

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Of unit length, and the queries times their head's temperature (equation 2)."""
        temperature = self.attn.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        return F.normalize(q, dim=-1) * temperature, F.normalize(k, dim=-1)

    def window_bias(self) -> Tensor:
        attn = self.attn
        tokens = attn.relative_position_index.shape[0]
        table = attn.cpb_mlp(attn.relative_coords_table).view(-1, self.num_heads)
        bias = table[attn.relative_position_index.view(-1)].view(tokens, tokens, -1)
        return 16 * torch.sigmoid(bias.permute(2, 0, 1))[None]


def window_view(block: nn.Module) -> WindowView:
    return WindowV2View(block) if isinstance(block, SwinTransformerV2Block) else WindowView(block)


def swin_refusal(model: SwinTransformer | SwinTransformerV2) -> str | None:
    """Why methods cannot promise the features of a Swin of either version; None: they can."""
    version = next(known for known in SWINS if isinstance(model, known))
    kinds: tuple[type[nn.Module], type[nn.Module]] = (SwinTransformerBlock, AttentionV1)
    if version is SwinTransformerV2:
        kinds = (SwinTransformerV2Block, AttentionV2)
    if (reason := replaced(model, version)) is not None:
        return reason
    if (pool := cast(Any, model.head).global_pool.pool_type) != "avg":
        return f"pools its patches by {pool or 'nothing'}, not by their mean"
    for block in (block for stage in stages_of(model) for block in blocks_of_stage(stage)):
        for part, known in zip((block, block.attn), kinds, strict=True):
            if type(part) is not known:
                return f"has {type(part).__name__}, which no method can adapt yet"
        if (reason := mlp_refusal(block.mlp)) is not None:
            return reason
    return None
