"""AIM on Swin (Yang et al., ICLR 2023, section 4 and the released class).

Even blocks of a stage first: x += dp(T_Adapter(attn(norm1 x over time)));  then every block:
x += S_Adapter(window_attn(norm1 x));  x += mlp(norm2 x) + dp(s * MLP_Adapter(norm2 x))

Patches span two frames, so from there on T is half the clip's. Time uses the frozen qkv and output
projection of the block with a position bias of its own, which the released code leaves as it was
drawn: random and frozen. The final norm stays frozen, too. DropPath acts per frame (of T/2).
"""

from __future__ import annotations

from typing import cast

import torch
from timm.layers import trunc_normal_
from timm.models import SwinTransformer
from torch import Tensor, nn

from vidpipe.backbones.swin import WindowView
from vidpipe.errors import VidpipeError
from vidpipe.methods.aim import AIM, Adapter
from vidpipe.methods.config import AIMConfig, channels
from vidpipe.methods.noise import ClipDropPath
from vidpipe.methods.swin import TubeletModel


class SwinBlockAdapters(nn.Module):
    def __init__(self, width: int, config: AIMConfig, drop_path: float, temporal: bool) -> None:
        super().__init__()
        bottleneck = channels(width, config.bottleneck_ratio, "bottleneck_ratio")
        self.temporal = Adapter(width, bottleneck, skip=False) if temporal else None
        self.spatial = Adapter(width, bottleneck, skip=True)
        self.mlp = Adapter(width, bottleneck, skip=False)
        self.temporal_drop_path = ClipDropPath(drop_path)
        self.mlp_drop_path = ClipDropPath(drop_path)


class AIMSwin(TubeletModel):
    name = AIM.name
    Config = AIMConfig
    config: AIMConfig
    not_mergeable = AIM.not_mergeable

    def __init__(
        self, swin: SwinTransformer, num_classes: int, num_frames: int, config: AIMConfig
    ) -> None:
        if config.num_temporal_adapters == 2:
            raise VidpipeError("methods.aim.num_temporal_adapters: 2, but AIM's Swin form has 1")
        if not (config.temporal and config.joint and config.blocks is None):
            raise VidpipeError("methods.aim: temporal, joint and blocks (Tables 1, 7) are for ViTs")
        super().__init__(swin, num_classes, num_frames, config)
        rates = iter(torch.linspace(0, config.drop_path, len(self.blocks), device="cpu").tolist())
        self.adapters = nn.ModuleList(
            SwinBlockAdapters(block.width, config, next(rates), temporal=place % 2 == 0)
            for block, place in zip(self.blocks, self.place_in_stage, strict=True)
        )
        self.temporal_bias = nn.ParameterDict(
            {
                str(i): nn.Parameter(torch.empty(num_frames - 1, block.num_heads))
                for i, (block, own) in enumerate(zip(self.blocks, self.adapters, strict=True))
                if cast(SwinBlockAdapters, own).temporal is not None
            }
        )
        for table in self.temporal_bias.values():
            trunc_normal_(table, std=0.02)
        self.declare(self.adapters)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """All: the released code spares norms only, and none is trained."""
        return True

    def carried(self) -> dict[str, nn.Parameter]:
        """Also the frozen biases: they were drawn at random, so no seed or file can restore them."""
        tables = {f"temporal_bias.{i}": p for i, p in self.temporal_bias.items()}
        return {**super().carried(), **tables}

    def block(  # type: ignore[override]
        self, index: int, block: WindowView, x: Tensor, num_frames: int
    ) -> Tensor:
        adapters = cast(SwinBlockAdapters, self.adapters[index])
        if adapters.temporal is not None:
            table = self.temporal_bias[str(index)]
            t = block.scale1(block.attention_in_time(block.norm1(x), num_frames, table))
            x = adapters.temporal_drop_path(x, adapters.temporal(t))
        # The authors adapt before the windows are put back together: token by token, so the same.
        x = x + adapters.spatial(block.scale1(block.attention_in_windows(block.norm1(x))))
        n = block.norm2(x)
        x = x + block.scale2(block.mlp(n))
        return cast(Tensor, adapters.mlp_drop_path(x, adapters.mlp(n), self.config.scale))
