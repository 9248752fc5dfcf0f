"""AIM (Yang et al., ICLR 2023): the frozen attention, reused over time, and three adapters a block.

x += dp(T_Adapter(attn(ln_1 x over time)));  x += S_Adapter(attn(ln_1 x));
x += mlp(ln_2 x) + dp(s * MLP_Adapter(ln_2 x))          (section 3, equations 3-7)

Time and space share the frozen attention weights and `ln_1`; CLS takes part in temporal attention.
LayerScale, which the paper's backbones lack, stays part of the attention and FFN branches.
DropPath acts per frame (the released CLIP class drops per token position, an accident of layout).
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from vidpipe.backbones.block import BlockView
from vidpipe.backbones.ops import to_space, to_time
from vidpipe.methods.config import AIMConfig, channels
from vidpipe.methods.noise import ClipDropPath
from vidpipe.methods.temporal_embedding import EmbedsTime, TemporalEmbedding


class Adapter(nn.Module):
    """Linear -> GELU -> Linear with biases. As in the released code, the first layer starts at
    N(0, 0.02) whatever the width, and the second at zero."""

    def __init__(self, width: int, bottleneck: int, skip: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, bottleneck)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(bottleneck, width)
        self.skip = skip
        nn.init.trunc_normal_(self.fc1.weight, std=0.02)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(self.act(self.fc1(x)))
        return cast(Tensor, x + y if self.skip else y)


class BlockAdapters(nn.Module):
    def __init__(self, width: int, config: AIMConfig, drop_path: float) -> None:
        super().__init__()
        bottleneck = channels(width, config.bottleneck_ratio, "bottleneck_ratio")
        self.temporal_in: nn.Module = nn.Identity()
        if config.temporal:
            if config.num_temporal_adapters == 2:
                self.temporal_in = Adapter(width, bottleneck, skip=True)
            self.temporal = Adapter(width, bottleneck, skip=False)
        self.spatial = Adapter(width, bottleneck, skip=True)
        if config.joint:
            self.mlp = Adapter(width, bottleneck, skip=False)
        self.temporal_drop_path = ClipDropPath(drop_path)
        self.mlp_drop_path = ClipDropPath(drop_path)


class AIM(EmbedsTime):
    name = "aim"
    Config = AIMConfig
    config: AIMConfig
    not_mergeable = "its adapters have a GELU, and it attends over time as well as over space"

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: AIMConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        self.order_blind = not config.temporal
        last = max(len(self.blocks) - 1, 1)
        rates = [config.drop_path * index / last for index in range(len(self.blocks))]
        self.adapters = nn.ModuleDict(
            {
                str(index): BlockAdapters(self.width, config, rates[index])
                for index in self.chosen_blocks(config.blocks)
            }
        )
        trained: list[nn.Module] = [self.adapters, self.view.norm]
        self.embeds_time_at = -1 if config.temporal else None
        if config.temporal and config.temporal_embedding_at == "first_adapted":
            self.embeds_time_at = min(map(int, self.adapters), default=-1)
        if config.temporal:
            self.temporal_embedding = TemporalEmbedding(num_frames, self.width)
            trained.append(self.temporal_embedding)
        self.declare(*trained)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """All but the norm: the released code also decays biases and the temporal embedding."""
        return not name.startswith(("vit.norm.", "vit.fc_norm."))

    def block(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        if str(index) not in self.adapters:
            return super().block(index, block, x, num_frames)
        adapters = cast(BlockAdapters, self.adapters[str(index)])
        x = self.with_time(index, x, num_frames)
        if self.config.temporal:
            tokens = x.shape[1]
            t = adapters.temporal_in(to_time(block.norm1(x), num_frames))
            t = self.checkpointed(adapters.temporal, block.scale1(block.attention_over_time(t)))
            x = adapters.temporal_drop_path(x, to_space(t, tokens))
        kept = self.tokens_needed(index)
        space = block.scale1(block.attention(block.norm1(x), kept))
        x = x[:, :kept] + self.checkpointed(adapters.spatial, space)
        if not self.config.joint:
            return x + block.scale2(block.mlp(block.norm2(x)))

        def adapted(x: Tensor) -> tuple[Tensor, Tensor]:
            n = block.norm2(x)
            return n, adapters.mlp(n)

        n, joint = self.checkpointed(adapted, x)
        x = x + block.scale2(block.mlp(n))
        return cast(Tensor, adapters.mlp_drop_path(x, joint, self.config.scale))
