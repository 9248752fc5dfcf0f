"""LoRA (Hu et al., ICLR 2022) under ZeroI2V's shifted heads: the rival of its Table 2.

`y = W x + b + s * B (A x)` on any of the six weights of a block; B starts at zero, no biases. The two
halves of a gated MLP's input count as one weight, `up`. Merging
adds s B A to W. Temporal embedding, final norm and head are trained as in ZeroI2V.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from vidpipe.backbones.block import BlockView, Part
from vidpipe.methods.config import LoRAConfig, Target
from vidpipe.methods.stdha import STDHA, add_to_weight


class Update(nn.Module):
    """s * B (A x)."""

    def __init__(self, layer_in: int, layer_out: int, rank: int, scale: float) -> None:
        super().__init__()
        self.a = nn.Linear(layer_in, rank, bias=False)
        self.b = nn.Linear(rank, layer_out, bias=False)
        self.scale = scale
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.scale * self.b(self.a(x)))

    def matrix(self) -> Tensor:
        return self.scale * (self.b.weight.double() @ self.a.weight.double())


def part_of(target: Target | str) -> Part:
    """LoRA's name of a weight as the block's view has it."""
    return "out" if target == "o" else cast(Part, target)


class LoRA(STDHA):
    name = "lora"
    Config = LoRAConfig
    config: LoRAConfig

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: LoRAConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        self.updates = nn.ModuleList(
            nn.ModuleDict(
                {
                    target: self._zero_update(block, target)
                    for target in (config.targets if index in self.adapted else ())
                }
            )
            for index, block in enumerate(self.blocks)
        )
        self.declare(self.updates, self.temporal_embedding, self.view.norm)

    def _zero_update(self, block: BlockView, target: Target) -> Update:
        layer_out, layer_in = block.affine(part_of(target))[0].shape
        return Update(layer_in, layer_out, self.config.rank, self.config.scale)

    def _update(self, index: int, target: Target, x: Tensor, y: Tensor) -> Tensor:
        updates = cast(nn.ModuleDict, self.updates[index])
        return y + updates[target](x) if target in updates else y

    def qkv(
        self, index: int, block: BlockView, x: Tensor, queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(index, block, x, queries)
        return (
            self._update(index, "q", x[:, :queries], q),
            self._update(index, "k", x, k),
            self._update(index, "v", x, v),
        )

    def out(self, index: int, block: BlockView, x: Tensor) -> Tensor:
        return self._update(index, "o", x, super().out(index, block, x))

    def mlp(self, index: int, block: BlockView, x: Tensor) -> Tensor:
        x = block.norm2(x)
        y = block.hidden(self._update(index, "up", x, block.up(x)))
        return self._update(index, "down", y, block.down(y))

    @torch.no_grad()
    def merge(self) -> LoRA:
        """W += s B A in fp64 for every target. Merging it again returns an equal model."""
        config = self.config.model_copy(update={"targets": ()})
        merged = LoRA(copy.deepcopy(self.vit), self.head.out_features, self.num_frames, config)
        self.copy_rest(merged)
        for block, updates in zip(merged.blocks, self.updates, strict=True):
            for target, update in cast(nn.ModuleDict, updates).items():
                add_to_weight(block, part_of(target), cast(Update, update).matrix())
        return cast(LoRA, merged.train(self.training))
