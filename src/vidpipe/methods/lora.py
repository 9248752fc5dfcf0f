"""LoRA (Hu et al., ICLR 2022) under ZeroI2V's shifted heads: the rival of its Table 2.

`y = W x + b + s * B (A x)` on any of the six weights of a block; B starts at zero, no biases. The two
halves of a gated MLP's input count as one weight, `up`. Merging
adds s B A to W. Temporal embedding, final norm and head are trained as in ZeroI2V.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vidpipe.backbones.mlp import hidden, input_layers, joint, output_layer
from vidpipe.methods.config import LoRAConfig, Target
from vidpipe.methods.stdha import STDHA, add_to_linear


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


class LoRA(STDHA):
    name = "lora"
    Config = LoRAConfig
    config: LoRAConfig

    def __init__(
        self, vit: VisionTransformer, num_classes: int, num_frames: int, config: LoRAConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        width = self.width
        mlp = self.blocks[0].mlp
        up = sum(layer.out_features for layer in input_layers(mlp))
        sizes = {"up": (width, up), "down": (output_layer(mlp).in_features, width)}
        self.updates = nn.ModuleList(
            nn.ModuleDict(
                {
                    target: Update(*sizes.get(target, (width, width)), config.rank, config.scale)
                    for target in config.targets
                }
            )
            for _ in self.blocks
        )
        self.declare(self.updates, self.temporal_embedding, self.view.norm)

    def _update(self, index: int, target: Target, x: Tensor, y: Tensor) -> Tensor:
        updates = cast(nn.ModuleDict, self.updates[index])
        return y + updates[target](x) if target in updates else y

    def qkv(
        self, index: int, block: Block, x: Tensor, queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(index, block, x, queries)
        return (
            self._update(index, "q", x[:, :queries], q),
            self._update(index, "k", x, k),
            self._update(index, "v", x, v),
        )

    def out(self, index: int, block: Block, x: Tensor) -> Tensor:
        return self._update(index, "o", x, super().out(index, block, x))

    def mlp(self, index: int, block: Block, x: Tensor) -> Tensor:
        mlp, x = block.mlp, block.norm2(x)
        y = hidden(mlp, self._update(index, "up", x, joint(mlp, x)))
        return self._update(index, "down", y, output_layer(mlp)(y))

    @torch.no_grad()
    def merge(self) -> LoRA:
        """W += s B A in fp64 for every target. Merging it again returns an equal model."""
        config = self.config.model_copy(update={"targets": ()})
        merged = LoRA(copy.deepcopy(self.vit), self.head.out_features, self.num_frames, config)
        self.copy_rest(merged)
        for block, updates in zip(merged.blocks, self.updates, strict=True):
            by_target = cast(nn.ModuleDict, updates)
            attn, inputs = cast(Any, block.attn), input_layers(block.mlp)
            layers = {"o": [attn.proj], "up": inputs, "down": [output_layer(block.mlp)]}
            for target, update in by_target.items():
                matrix = cast(Update, update).matrix()
                if target in layers:
                    rows_of = [layer.out_features for layer in layers[target]]
                    for layer, part in zip(layers[target], matrix.split(rows_of), strict=True):
                        add_to_linear(layer, part)
                else:
                    rows = "qkv".index(target)
                    below, above = rows * self.width, (2 - rows) * self.width
                    add_to_linear(attn.qkv, F.pad(matrix, (0, 0, below, above)))
        return cast(LoRA, merged.train(self.training))
